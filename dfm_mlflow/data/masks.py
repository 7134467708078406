"""Where defects are: files of masks, looked at before any network runs."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from dfm_mlflow.data.item import GOOD, Item, Mask
from dfm_mlflow.errors import DfmError, ImageError
from dfm_mlflow.images.decode import decode_soft_mask
from dfm_mlflow.images.limits import MAX_PIXELS
from dfm_mlflow.images.mask import orientation_of, turned
from dfm_mlflow.images.read import read_picture
from dfm_mlflow.storage.store import S3Object, threads_for

MOST_MARKED = 0.5  # of a picture; above it a mask is likely to be inverted
_STRETCH = 1.02  # by which the proportions of a mask and its picture may differ
_MOST_NAMED = 5
_MOST_THREADS = 8

_logger = logging.getLogger(__name__)


def read_mask(mask: Mask) -> np.ndarray:
    """Read what a mask, in one file or several, marks.

    Gives (height, width) bool.
    """
    return _read(mask)[0]


def fitted_mask(mask: Mask, size: tuple[int, int], picture: Path | S3Object) -> np.ndarray:
    """Read a mask as it lies over its picture.

    A mask that was drawn on a picture before EXIF turned it is turned as the picture is.

    Gives (height, width) bool: at the size of the mask.
    """
    marked = read_mask(mask)
    if _alike(marked.shape, size):
        return marked
    if _alike(marked.shape[::-1], size):
        orientation = orientation_of(read_picture(picture))
        if orientation >= 5:
            return turned(marked, orientation)
    raise ImageError(
        f"{mask}: it has {_size(marked.shape)} pixels, and its picture {_size(size)}: save it in "
        "the proportions of the picture."
    )


def check_masks(items: Sequence[Item], max_pixels: int = MAX_PIXELS) -> list[Item]:
    """Look at every mask, and take those away that cannot be right; the log names them.

    These are the broken ones, those that mark nothing of a defect or more than half of a picture,
    and those that mark something of a good picture.
    """
    items = [
        replace(item, mask=replace(item.mask, max_pixels=max_pixels)) if item.mask else item
        for item in items
    ]
    masked = [i for i, item in enumerate(items) if item.mask]
    if not masked:
        return items
    files = [item.mask.files[0] for item in items if item.mask]
    # masks may be large, and threads hold one each
    threads = 1 if max_pixels > MAX_PIXELS else min(threads_for(files), _MOST_THREADS)
    with ThreadPoolExecutor(threads) as pool:
        looks = dict(zip(masked, pool.map(lambda i: _look(items[i]), masked), strict=True))
    troubles = [trouble for trouble, _ in looks.values() if trouble]
    if troubles:
        more = len(troubles) - _MOST_NAMED
        _logger.warning(
            "%d of %d masks are not used and count as missing: %s%s.",
            len(troubles),
            len(masked),
            "; ".join(trouble.rstrip(".") for trouble in troubles[:_MOST_NAMED]),
            f"; and {more} more" if more > 0 else "",
        )
    soft = sum(soft for _, soft in looks.values())
    if soft:
        _logger.warning(
            "%d of %d masks have the noise of JPEG or soft edges: what is brighter than half of "
            "the largest value is marked; save masks as PNG of black and white.",
            soft,
            len(masked),
        )
    bad = {i for i, (trouble, _) in looks.items() if trouble}
    return [replace(item, mask=None) if i in bad else item for i, item in enumerate(items)]


def _look(item: Item) -> tuple[str, bool]:
    """Say what is wrong with a mask, or nothing; and whether it needed a limit."""
    assert item.mask is not None
    try:
        marked, soft = _read(item.mask)
    except DfmError as error:
        return str(error), False
    share = float(marked.mean())
    if item.label == GOOD:
        return (f"{item.mask} marks something of a good picture" if share else ""), False
    if share == 0:
        return f"{item.mask} marks nothing", False
    if share > MOST_MARKED:
        return f"{item.mask} marks {share:.0%} of its picture, as if it were inverted", False
    return "", soft


def _read(mask: Mask) -> tuple[np.ndarray, bool]:
    whole: np.ndarray | None = None
    any_soft = False
    for file in mask.files:
        try:
            part, soft = decode_soft_mask(read_picture(file), mask.max_pixels)
        except ImageError as error:
            raise ImageError(f"{file}: {error}") from None
        if whole is not None and part.shape != whole.shape:
            raise ImageError(
                f"{file}: it has {_size(part.shape)} pixels, and {mask.files[0].name} beside it "
                f"{_size(whole.shape)}: save them in one size."
            )
        whole, any_soft = part if whole is None else whole | part, any_soft or soft
    assert whole is not None  # a mask has files
    return whole, any_soft


def _alike(mask: tuple[int, ...], picture: tuple[int, int]) -> bool:
    """Whether two sizes have the same proportions, up to a pixel of either."""
    height, width = mask
    ratio = (height * picture[1]) / (width * picture[0])
    pixel = 1 + 1 / min(height, width, *picture)
    return 1 / (_STRETCH * pixel) <= ratio <= _STRETCH * pixel


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
