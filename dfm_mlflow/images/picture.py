"""One picture, in every form that Python gives it: for library, client and ``mlflow.pyfunc`` alike.

Neither torch nor MLflow, and Pillow only where one of its images is given.
"""

import io
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dfm_mlflow.errors import ConfigError, ImageError

if TYPE_CHECKING:
    from PIL.Image import Image

    # A file; encoded bytes; RGB or grey values of 8 bits.
    Picture = str | Path | bytes | bytearray | memoryview | np.void | np.ndarray | Image
else:
    Picture = str | Path | bytes | bytearray | memoryview | np.void | np.ndarray

_SHAPES = "uint8 of shape (H, W, 3), RGB, or (H, W), grey"
# What MLflow makes of a JSON null on its way to a model.
_NULLS = ("None", b"None", "nan", b"nan")
_NOTHING = "The row holds no picture (null): send the bytes of one."


def taken(value: Any) -> Path | bytes | np.ndarray:
    """Take one picture, in whatever form.

    Gives (H, W, 3) uint8: the array lies in one piece, and is RGB.
    """
    if isinstance(value, bytes | Path):
        return value
    if isinstance(value, str):
        return Path(value)
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if isinstance(value, np.void):
        return value.tobytes()
    if isinstance(value, np.ndarray):
        return _from_array(value)
    if _is_pil(value):
        return _from_pil(value)
    if is_null(value):
        raise ImageError(_NOTHING)
    raise ImageError(
        f"A value of the type {type(value).__name__} is not a picture: give a file, encoded bytes, "
        f"a PIL image, or an array of {_SHAPES}."
    )


def encoded(value: Any) -> bytes:
    """Give the bytes of one picture, in whatever form it is; values become a PNG."""
    picture = taken(value)
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, Path):
        try:
            return picture.read_bytes()
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            why = getattr(error, "strerror", None) or error
            raise ImageError(f"The file cannot be read ({why}): check it.") from None
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def is_null(value: Any) -> bool:
    """Whether a row has no picture: None, NaN, pandas' NA, or what MLflow makes of a JSON null."""
    if isinstance(value, str | bytes):
        return value in _NULLS
    if value is None or isinstance(value, float | np.floating):
        return value is None or bool(np.isnan(value))
    return type(value).__name__ in ("NAType", "NaTType")


def is_single(value: Any) -> bool:
    """Whether a value is one picture, where a list of them is expected."""
    if isinstance(value, np.ndarray):
        return value.dtype.kind not in "OSUV" and value.ndim in (2, 3)
    plain = (str, Path, bytes, bytearray, memoryview, np.void)
    return isinstance(value, plain) or _is_pil(value)


def listed(values: Any) -> list[Any]:
    """Give the pictures of a sequence, an array of them, or a column of a table, as a list."""
    if is_single(values):
        raise ConfigError("A single picture was given: give a list of them, such as [picture].")
    if hasattr(values, "columns"):
        raise ConfigError("A table was given: give its column of pictures, such as table['image'].")
    if isinstance(values, dict) or not isinstance(values, Iterable):
        raise ConfigError(
            f"A value of the type {type(values).__name__} is not a list of pictures: give a list."
        )
    return list(values)


def spread(pixels: np.ndarray) -> np.ndarray:
    """Give `pixels` of shape (H, W) or (H, W, 3 or 4), uint8, three channels."""
    if pixels.ndim == 3 and pixels.shape[2] == 3:
        return np.ascontiguousarray(pixels)
    rgb = np.empty((*pixels.shape[:2], 3), np.uint8)
    for channel in range(3):  # in half the time of np.repeat, and of a copy without the alpha
        rgb[:, :, channel] = pixels if pixels.ndim == 2 else pixels[:, :, channel]
    return rgb


def _from_array(array: np.ndarray) -> np.ndarray:
    shape = array.shape
    if array.dtype != np.uint8:
        scaled = {"f": "scale it to 0 to 255 and give", "b": "multiply it by 255 and give"}
        remedy = scaled.get(array.dtype.kind, "scale it to 0 to 255, or save it as PNG; give")
        raise ImageError(
            f"An array of {array.dtype} and shape {shape} is not a picture: {remedy} {_SHAPES}."
        )
    if array.ndim == 3 and shape[2] == 1:
        array = array[:, :, 0]
    if 0 in shape or not (array.ndim == 2 or (array.ndim == 3 and shape[2] == 3)):
        remedy = "give"
        if array.ndim == 3 and shape[0] in (1, 3):
            remedy = "its channels come first: transpose it by (1, 2, 0), and give"
        elif array.ndim == 3 and shape[2] == 4:
            remedy = "leave out its fourth channel, and give"
        raise ImageError(f"An array of shape {shape} is not a picture: {remedy} {_SHAPES}.")
    return spread(array)


def _is_pil(value: Any) -> bool:
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(value, module.Image)


def _from_pil(image: "Image") -> np.ndarray:
    tiles = getattr(image, "tile", [])  # of a file that was opened and not yet decoded
    if image.mode.startswith(("I", "F")) or any(";16" in str(tile) for tile in tiles):
        raise ImageError(
            f"A PIL image of the mode {image.mode} with more than 8 bits is not taken: give the "
            "bytes of its file, or convert it to L or RGB."
        )
    from PIL import ImageOps

    try:
        return _from_array(np.array(ImageOps.exif_transpose(image).convert("RGB")))
    except (OSError, SyntaxError, ValueError) as error:  # its file is read only now
        raise ImageError(
            f"A PIL image cannot be decoded ({type(error).__name__}): replace its file."
        ) from None
