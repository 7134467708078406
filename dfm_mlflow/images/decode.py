"""From the bytes of one picture to an RGB array, within limits."""

import io
import warnings
from collections.abc import Callable
from functools import cache

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from dfm_mlflow.errors import ImageError
from dfm_mlflow.images.container import check_parts, check_scans, is_plain, may_turn, webp_size
from dfm_mlflow.images.fast import decode_fast, spread
from dfm_mlflow.images.mask import marked_pixels

MAX_PIXELS = 50_000_000
MAX_BYTES = 64 * 1024 * 1024
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM")

_BITS, _MEANING, _TILE_WIDTH, _TILE_LENGTH = 258, 262, 322, 323  # tags of a TIFF
_WHITE_IS_ZERO = 0
_RUN_LENGTHS = (1, 2)  # compressions of a BMP
_MOST_LAYERS = 8  # of strips or tiles over the whole picture: one for each colour at most

ImageFile.LOAD_TRUNCATED_IMAGES = False


def decode_image(
    data: bytes, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES
) -> np.ndarray:
    """Decode PNG, JPEG, BMP, TIFF or WebP.

    The first frame of an animation is used, EXIF rotation is applied, transparency is dropped,
    and 16-bit grey is scaled (65535 becomes 255), not clipped. ``docs/images.md`` has the rest.

    Parameters
    ----------
    data : bytes
        The encoded picture.
    max_pixels, max_bytes : int
        Limits, checked before any pixel is decoded.

    Returns
    -------
    ndarray of shape (height, width, 3), uint8
        RGB.

    Raises
    ------
    ImageError
        If the bytes are empty, too large, not one of the formats, or broken.
    """
    return _guarded(data, max_pixels, max_bytes, _to_rgb)


def decode_mask(data: bytes) -> np.ndarray:
    """Decode a mask, by the rules of :func:`~dfm_mlflow.images.mask.marked_pixels`.

    Parameters
    ----------
    data : bytes
        The whole file.

    Returns
    -------
    ndarray of shape (height, width), bool

    Raises
    ------
    ImageError
        As :func:`decode_image`.
    """
    return decode_soft_mask(data)[0]


def decode_soft_mask(data: bytes) -> tuple[np.ndarray, bool]:
    """Decode a mask, and say whether noise or soft edges had to be cut off.

    Parameters
    ----------
    data : bytes
        The whole file.

    Returns
    -------
    mask : ndarray of shape (height, width), bool
    soft : bool

    Raises
    ------
    ImageError
        As :func:`decode_image`.
    """
    soft = False

    def convert(image: Image.Image, _: bytes) -> np.ndarray:
        nonlocal soft
        mask, soft = marked_pixels(image)
        return mask

    return _guarded(data, MAX_PIXELS, MAX_BYTES, convert), soft


def size_of(data: bytes) -> tuple[int, int] | None:
    """Height and width that the head of a picture's bytes, `data`, names; None for no picture."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                width, height = image.size
                turned = image.getexif().get(0x0112, 1) >= 5
                return (width, height) if turned else (height, width)
    except MemoryError:
        raise
    except Exception:  # Pillow's decoders raise nearly anything on damaged input
        return None


def _guarded(
    data: bytes,
    max_pixels: int,
    max_bytes: int,
    convert: Callable[[Image.Image, bytes], np.ndarray],
) -> np.ndarray:
    if not data:
        raise ImageError("The image is empty (0 bytes): send the bytes of a picture.")
    if len(data) > max_bytes:
        raise ImageError(
            f"The image has {len(data)} bytes, more than the limit of {max_bytes}: compress it."
        )
    check_parts(data)
    if canvas := webp_size(data):  # Pillow allocates it when it opens the file
        _check_size(canvas, max_pixels)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check_size(image.size, max_pixels)
                _check_work(image, data, max_pixels)
                return convert(image, data)
    except (ImageError, MemoryError):  # a lack of memory is not the picture's fault
        raise
    except UnidentifiedImageError:
        raise ImageError(
            f"The bytes are not a picture in one of the formats {', '.join(FORMATS)}: "
            "convert the file."
        ) from None
    except Image.DecompressionBombError:
        raise ImageError(
            f"The image has more pixels than the limit of {max_pixels}: scale it down."
        ) from None
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged input
        raise ImageError(
            f"The image is damaged and cannot be decoded ({type(error).__name__}): replace it."
        ) from None


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageError(
            f"The image has {width}x{height} pixels, more than the limit of {max_pixels}: "
            "scale it down."
        )
    if max(width, height) > max_pixels // 4:  # a row takes 16 bytes beside its pixels
        raise ImageError(
            f"The image has a side of {max(width, height)} pixels, more than the limit of "
            f"{max_pixels // 4}: cut it."
        )
    if width < 1 or height < 1:
        raise ImageError(f"The image has {width}x{height} pixels: replace it.")


def _check_work(image: Image.Image, data: bytes, max_pixels: int) -> None:
    if image.format in ("JPEG", "MPO"):
        check_scans(data, image.width * image.height, max_pixels)
    elif image.format == "BMP" and image.info.get("compression") in _RUN_LENGTHS:
        raise ImageError(  # Pillow goes over it byte by byte
            "The image is a BMP with run-length encoding: save it without, or as PNG."
        )
    elif image.format == "TIFF":  # a tile may be far larger than the picture
        tags = getattr(image, "tag_v2", {})
        if _TILE_WIDTH in tags and _TILE_LENGTH in tags:
            _check_size((tags[_TILE_WIDTH], tags[_TILE_LENGTH]), max_pixels)
    if image.format in ("BMP", "TIFF"):
        _check_strips(image)


def _check_strips(image: Image.Image) -> None:
    """Look at the parts that Pillow itself reads; they may lie over each other."""
    extents = [tile[1] for tile in getattr(image, "tile", [])]
    area = sum((right - left) * (bottom - top) for left, top, right, bottom in extents)
    if area > _MOST_LAYERS * image.width * image.height:
        raise ImageError("The image has strips that overlap: save it anew.")
    # Pillow copies an unfinished row for every block that it reads: let a block hold one.
    row = 8 * max((right - left for left, _, right, _ in extents), default=0)
    image.decodermaxblock = max(image.decodermaxblock, row)  # type: ignore[attr-defined]


def _to_rgb(image: Image.Image, data: bytes) -> np.ndarray:
    orientation = _orientation(image, data)
    pixels = decode_fast(data, image)
    return _turned(_by_pillow(image) if pixels is None else pixels, orientation)


def _by_pillow(image: Image.Image) -> np.ndarray:
    if image.mode == "F":
        raise ImageError(
            "The image has floating-point pixels, whose range is unknown: save it as 8 or 16 bit."
        )
    if image.mode.startswith("I"):
        white, inverted = _meaning(image)
        wide = np.asarray(image)
        if wide.dtype.itemsize > 2 and (wide.min() < 0 or wide.max() > 65535):
            raise ImageError(
                "The image has 32-bit pixels outside 0 to 65535: save it as 8 or 16 bit."
            )
        table = _table_to_8_bit(white)
        return spread((255 - table if inverted else table)[wide])
    return np.array(image.convert("RGB"))


def _meaning(image: Image.Image) -> tuple[int, bool]:
    """Give the value of white in grey of more than 8 bits, and whether 0 is white instead."""
    if image.format != "TIFF":
        return 65535, False
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS, (16,))[0]
    return (2**bits - 1 if 8 < bits < 16 else 65535, tags.get(_MEANING) == _WHITE_IS_ZERO)


@cache
def _table_to_8_bit(white: int) -> np.ndarray:
    """What each 16-bit value becomes: `white` becomes 255, all between in proportion, rounded."""
    values = np.minimum(np.arange(65536), white)
    return ((values * 255 + white // 2) // white).astype(np.uint8)


def _orientation(image: Image.Image, data: bytes) -> int:
    if image.format == "PNG":
        if not may_turn(data):
            return 1
        if not is_plain(data):
            image.load()  # Pillow's word counts, and it looks behind the pixels, too
    elif image.format == "TIFF":
        image.load()  # which turns it
    orientation: int = image.getexif().get(0x0112, 1)
    return orientation


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an orientation of EXIF."""
    if orientation not in range(2, 9):
        return pixels
    cells = pixels.view("V3")[:, :, 0]  # all colours of a pixel at once, in a third of the time
    if orientation in (3, 4, 6, 7):
        cells = cells[::-1]
    if orientation in (2, 3, 7, 8):
        cells = cells[:, ::-1]
    if orientation >= 5:
        cells = cells.T
    return np.ascontiguousarray(cells).view(np.uint8).reshape(*cells.shape, 3)
