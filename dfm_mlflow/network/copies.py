"""Turned and mirrored copies of a picture: the seven ways to turn and mirror a square."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Copy(NamedTuple):
    """One way to turn a picture."""

    turns: int  # quarter turns, counter-clockwise, after mirroring
    mirrored: bool  # whether left and right change places


UPRIGHT = Copy(0, False)  # the picture itself
_TURNS, _MIRRORED = (tuple(Copy(turns, m) for turns in range(4)) for m in (False, True))
# What the fit sees of every training picture, by the option ``augment``: itself first.
COPIES: dict[str, tuple[Copy, ...]] = {
    "none": (UPRIGHT,),
    "flips": (UPRIGHT, Copy(0, True)),
    "rotations": _TURNS,
    "all": (*_TURNS, *_MIRRORED),
}


def turned(image: np.ndarray, copy: Copy) -> np.ndarray:
    """Turn a picture before anything else is done with it, as if the part had lain so.

    A square input without a region of interest is turned itself (:func:`turned_input`): then a
    picture need not be decoded, resized or kept again.

    Shapes: image (H, W, 3) or (H, W) uint8; gives the same, or with H and W exchanged.
    """
    if copy == UPRIGHT:
        return image
    mirrored = image[:, ::-1] if copy.mirrored else image
    return np.rot90(mirrored, copy.turns).copy()  # also of a single row, whose stride is negative


def turned_input(pixels: Tensor, copy: Copy) -> Tensor:
    """Turn a square input of the network, as :func:`turned` does a picture.

    Shapes: pixels (3, S, S) uint8; gives (3, S, S) uint8.
    """
    mirrored = pixels.flip(2) if copy.mirrored else pixels
    return torch.rot90(mirrored, copy.turns, (1, 2))


def copies_of(augment: str) -> tuple[Copy, ...]:
    """Give what the fit sees of every picture; ``auto``, which nobody has decided, adds nothing.

    `augment` is the option.
    """
    return COPIES.get(augment, COPIES["none"])


def augment_of(n_copies: int) -> str:
    """Name of the option ``augment`` that shows each picture in so many ways.

    There are `n_copies` of each picture, itself included.
    """
    return next(name for name, copies in COPIES.items() if len(copies) == n_copies)
