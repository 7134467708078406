"""Large pictures: overlapping tiles for the network, and masks at the size of a picture."""

from collections.abc import Callable

import numpy as np
from torch import Tensor

from dfm_mlflow.errors import BackboneError

CELL = 32  # pixels of the largest cell of a convolutional layer that tiles fit


def run_tiles(
    network: Callable[[Tensor], dict[str, Tensor]], inputs: Tensor, side: int, unit: int = CELL
) -> dict[str, Tensor]:
    """Put the maps of overlapping tiles together; where two overlap, each gives its inner half.

    Near a tile's border the network sees its own zero padding instead of the picture.

    Shapes: inputs (n, 3, H, W).
    """
    size = (inputs.shape[2], inputs.shape[3])
    rows, columns = (_starts(s, side, unit) for s in size)
    whole: dict[str, Tensor] = {}
    for top in rows:
        for left in columns:
            part = inputs[:, :, top : top + side, left : left + side]
            for name, output in network(part).items():
                step = _step(name, output, side, rows + columns)
                if name not in whole:
                    grid = [s // step for s in size]
                    whole[name] = output.new_zeros((len(inputs), output.shape[1], *grid))
                y, x = _given(top, rows, side, step), _given(left, columns, side, step)
                target = whole[name][
                    :, :, top // step : (top + side) // step, left // step : (left + side) // step
                ]
                target[:, :, y:, x:] = output[:, :, y:, x:]
    return whole


def scaled_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale a mask of shape (h, w) to (height, width), each pixel the nearest of the mask's.

    Shapes: mask (h, w); gives size, of the dtype of the mask; the mask itself where it has that
    size.
    """
    if mask.shape == size:
        return mask
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int)
        for old, new in zip(mask.shape, size, strict=True)
    )
    return mask[np.ix_(rows, columns)]


def _starts(length: int, side: int, unit: int) -> list[int]:
    """Where tiles begin along an axis: they overlap by a quarter, and the last ends at the end."""
    step = max(unit, (side - side // 4) // unit * unit)
    return [*range(0, length - side, step), length - side]


def _given(start: int, starts: list[int], side: int, step: int) -> int:
    """Cells at the beginning of a tile that its predecessor gives: half of their overlap."""
    i = starts.index(start)
    return 0 if i == 0 else (starts[i - 1] + side - start) // 2 // step


def _step(name: str, output: Tensor, side: int, starts: list[int]) -> int:
    grid = tuple(output.shape[2:])
    step = side // grid[0] if len(grid) == 2 else 0
    if grid != (side // max(1, step),) * 2 or any(s % step for s in [side, *starts]):
        raise BackboneError(
            f"The layer {name} has no cells that fit tiles of {side} pixels: choose a "
            "convolutional layer at a stride of at most 32, or tile=none."
        )
    return step
