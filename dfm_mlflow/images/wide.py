"""Values of more than 8 bits: out of a file as they are, and from there to 8 bits."""

import io
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dfm_mlflow.errors import ImageError
from dfm_mlflow.images.depth import FULL

_BITS, _MEANING, _FORMAT = 258, 262, 339  # tags of a TIFF
_WHITE_IS_ZERO, _SIGNED = 0, 2
_ROWS = 256  # that are computed with at a time
# Pillow's raw modes of 16-bit colours, but for the order of their bytes; and the other order.
_COLOURS = {"RGB;16", "RGBA;16", "RGBX;16", "LA;16"}
_OTHER_BYTE = {"B": "L", "L": "B", "N": "B"}


class Values(NamedTuple):
    """Values of a picture as its file has them."""

    array: np.ndarray  # (height, width) or (height, width, 3) uint16 or float32
    white: int | None = None  # value that the file itself calls white; None where it does not say
    inverted: bool = False  # whether 0 is white instead


def wide_values(image: Image.Image) -> Values | None:
    """Give the values of grey with more than 8 bits of them; None for anything else."""
    tags: Any = getattr(image, "tag_v2", {})
    if image.mode == "F":
        return Values(np.asarray(image))
    if not image.mode.startswith("I"):
        return None
    bits = tags.get(_BITS, (16,))[0]
    declared = 2**bits - 1 if 8 < bits < 16 else None
    inverted = image.format == "TIFF" and tags.get(_MEANING) == _WHITE_IS_ZERO
    return Values(_whole(image, tags), declared, inverted)


def has_wide_colours(image: Image.Image) -> bool:
    """Whether colours have 16 bits each."""
    return any(_raw_mode(tile)[:-1] in _COLOURS for tile in getattr(image, "tile", []))


def wide_colours(image: Image.Image, data: bytes) -> Values:
    """Give colours of 16 bits, of which Pillow keeps a byte: it decodes twice, once for either."""
    upper = _colours(image)
    with Image.open(io.BytesIO(data), formats=(image.format or "",)) as again:
        again.decodermaxblock = image.decodermaxblock  # type: ignore[attr-defined]
        again.tile = [_with_other_byte(tile) for tile in again.tile]
        lower = _colours(again)
    values = upper.astype(np.uint16)
    values <<= 8
    values |= lower
    return Values(values)


def check_numbers(image: Image.Image) -> None:
    """Refuse a TIFF whose numbers Pillow takes for others."""
    tags: Any = getattr(image, "tag_v2", {})
    if image.mode.startswith(("I", "F")):
        return
    if _SIGNED in tags.get(_FORMAT, ()):
        raise ImageError(
            "The picture holds signed 8-bit values, and those below 0 have no brightness: save it "
            "as unsigned 8 or 16 bit."
        )
    tiles = getattr(image, "tile", [])
    if 16 in tags.get(_BITS, ()) and not all(";16" in _raw_mode(tile) for tile in tiles):
        raise ImageError(
            "The picture is a TIFF of 16-bit colours in separate planes: save it with the colours "
            "of each pixel together."
        )


def to_8_bits(values: np.ndarray, white: int, inverted: bool = False) -> np.ndarray:
    """Scale whole numbers to 0 to 255, rounded."""
    table = _table(white)
    return np.asarray((255 - table if inverted else table)[values])


def reals_to_8_bits(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Scale floating-point numbers of a stated range to 0 to 255, rounded.

    Shapes: values (height, width) float32.
    """
    least, largest = float(values.min()), float(values.max())
    if not (np.float32(low) <= least and largest <= np.float32(high)):  # false for NaN, too
        raise ImageError(
            f"The picture holds floating-point values of {least:.6g} to {largest:.6g}, and "
            f"float_range={low:g}:{high:g} is what the model knows: send pictures of that range, "
            "or train with a wider one."
        )
    out = np.empty(values.shape, np.uint8)
    for row in range(0, len(values), _ROWS):
        part = values[row : row + _ROWS].astype(np.float64)
        out[row : row + _ROWS] = ((part - low) * (255 / (high - low)) + 0.5).clip(0, 255)
    return out


@cache
def _table(white: int) -> np.ndarray:
    """What each 16-bit value becomes: `white` becomes 255, all between in proportion, rounded."""
    values = np.minimum(np.arange(FULL + 1), white)
    return ((values * 255 + white // 2) // white).astype(np.uint8)


def _whole(image: Image.Image, tags: Any) -> np.ndarray:
    wide = np.asarray(image)
    if wide.dtype.itemsize == 2:
        return wide
    least, largest = int(wide.min()), int(wide.max())
    if least >= 0 and largest <= FULL:
        return wide.astype(np.uint16)
    bits = tags.get(_BITS, (32,))[0]
    if _SIGNED in tags.get(_FORMAT, ()):
        raise ImageError(
            f"The picture holds signed {bits}-bit values of {least} to {largest}, and those "
            "outside 0 to 65535 have no brightness: save it as unsigned 8 or 16 bit."
        )
    raise ImageError(
        f"The picture has {bits}-bit pixels outside 0 to 65535: save it as 8 or 16 bit."
    )


def _raw_mode(tile: Any) -> str:
    args = tile[3]
    return str(args[0] if isinstance(args, tuple) else args)


def _colours(image: Image.Image) -> np.ndarray:
    image.load()
    return np.asarray(image)[:, :, :3]


def _with_other_byte(tile: Any) -> Any:
    args = tile[3]
    mode = _raw_mode(tile)
    if mode.startswith("LA;"):
        raise ImageError(
            "The picture is 16-bit grey with transparency: save it without transparency."
        )
    other = mode[:-1] + _OTHER_BYTE[mode[-1]]
    return tile._replace(args=(other, *args[1:]) if isinstance(args, tuple) else other)
