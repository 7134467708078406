"""From the bytes of one picture to an RGB array, within limits."""

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from dfm_mlflow.errors import ImageError
from dfm_mlflow.images.container import check_parts, is_plain, may_turn, webp_size
from dfm_mlflow.images.depth import FULL, Depth, Words, words_of
from dfm_mlflow.images.fast import decode_fast
from dfm_mlflow.images.foreign import refusal_of
from dfm_mlflow.images.limits import (
    MAX_BYTES,
    MAX_PIXELS,
    check_size,
    check_work,
    max_bytes_of,
    too_many_bytes,
)
from dfm_mlflow.images.mask import marked_pixels
from dfm_mlflow.images.netpbm import Head, head_of, is_netpbm, values_of
from dfm_mlflow.images.picture import spread
from dfm_mlflow.images.wide import (
    Values,
    check_numbers,
    has_wide_colours,
    reals_to_8_bits,
    to_8_bits,
    wide_colours,
    wide_values,
)

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM")

ImageFile.LOAD_TRUNCATED_IMAGES = False


@dataclass(frozen=True)
class Decoder:
    """How one model turns the bytes of a picture into 8 bits, and what it refuses."""

    # Of the pictures; None for models that know none, as all did before: 65535 is white, and of
    # 16-bit colours only the upper bytes count.
    depth: Depth | None = None
    # Black and white of floating-point pictures, which are refused without.
    real_range: tuple[float, float] | None = None
    max_pixels: int = MAX_PIXELS  # limit, checked before any pixel is decoded
    # Whether pictures of another depth are refused; while it is being looked for, none is.
    strict: bool = True

    @property
    def max_bytes(self) -> int:
        """Limit of a file, in bytes."""
        return max_bytes_of(self.max_pixels)

    def decode(self, data: bytes, *, grey: bool = False) -> tuple[np.ndarray, Words | None]:
        """Decode one picture.

        grey: Leave one that has no colours as it is, which saves a copy.

        Gives pixels (height, width, 3) uint8: RGB; or, where that was asked for, (height, width).
        """
        words: Words | None = None

        def convert(values: Values) -> np.ndarray:
            nonlocal words
            array, white = values.array, values.white or FULL
            if array.dtype.kind == "f":
                return self._of_reals(array)
            if self.depth and values.white is None:
                words, white = words_of(array), self.depth.white
                self.check(words)
            return to_8_bits(array, white, values.inverted)

        def to_rgb(image: Image.Image, data: bytes) -> np.ndarray:
            return _to_rgb(image, data, convert, colours=self.depth is not None)

        pixels = _guarded(data, self.max_pixels, self.max_bytes, to_rgb, convert)
        if grey and pixels.ndim == 2:
            return np.require(pixels, None, ["C", "W"]), words
        return spread(pixels), words

    def check(self, words: Words | None) -> None:
        """Refuse a picture of another depth, by its `words`."""
        if words and self.depth and self.strict and (why := self.depth.refusal(words)):
            raise ImageError(why)

    def _of_reals(self, array: np.ndarray) -> np.ndarray:
        if self.real_range is None:
            raise ImageError(
                "The picture has floating-point pixels, whose range is unknown: train with "
                "float_range=LOW:HIGH, or save it as 8 or 16 bit."
            )
        return reals_to_8_bits(array, *self.real_range)


def decode_image(
    data: bytes, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES
) -> np.ndarray:
    """Decode PNG, JPEG, BMP, TIFF, WebP, PGM or PPM, of no known depth.

    The first frame of an animation is used, EXIF rotation is applied, transparency is dropped,
    and 16-bit grey is scaled (65535 becomes 255), not clipped. ``docs/images.md`` has the rest.

    Gives (height, width, 3) uint8: RGB.
    """
    if len(data) > max_bytes:
        raise too_many_bytes(len(data), max_bytes)
    return Decoder(max_pixels=max_pixels).decode(data)[0]


def decode_soft_mask(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[np.ndarray, bool]:
    """Decode a mask, and say whether noise or soft edges had to be cut off.

    Gives mask (height, width) bool.
    """
    soft = False

    def convert(image: Image.Image, _: bytes) -> np.ndarray:
        nonlocal soft
        mask, soft = marked_pixels(image)
        return mask

    return _guarded(data, max_pixels, max_bytes_of(max_pixels), convert), soft


def size_of(data: bytes) -> tuple[int, int] | None:
    """Height and width that the head of a picture's bytes, `data`, names; None for no picture."""
    try:
        if is_netpbm(data):
            return head_of(data).size[::-1]
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
    convert_values: Callable[[Values], np.ndarray] | None = None,
) -> np.ndarray:
    """Decode within limits; netpbm by its values where those are asked for."""
    if not data:
        raise ImageError("The picture is empty (0 bytes): send the bytes of a picture.")
    if len(data) > max_bytes:
        raise too_many_bytes(len(data), max_bytes)
    check_parts(data)
    if is_netpbm(data):
        head = head_of(data)
        check_size(head.size, max_pixels)
        if convert_values:
            values = values_of(data, head)
            return values if head.white == 255 else convert_values(_declared(values, head))
    if canvas := webp_size(data):  # Pillow allocates it when it opens the file
        check_size(canvas, max_pixels)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                check_size(image.size, max_pixels)
                check_work(image, data, max_pixels)
                check_numbers(image)
                return convert(image, data)
    except (ImageError, MemoryError):  # a lack of memory is not the picture's fault
        raise
    except UnidentifiedImageError:
        raise refusal_of(data, FORMATS) from None
    except Image.DecompressionBombError:
        raise ImageError(
            f"The picture has more pixels than the limit of {max_pixels}: scale it down."
        ) from None
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged input
        raise ImageError(
            f"The picture is damaged and cannot be decoded ({type(error).__name__}): replace it."
        ) from None


def _declared(values: np.ndarray, head: Head) -> Values:
    """Values of a PGM or PPM with its own white, unless that is just what a word can hold."""
    return Values(values.astype(np.uint16, copy=False), None if head.white == FULL else head.white)


def _to_rgb(
    image: Image.Image,
    data: bytes,
    convert: Callable[[Values], np.ndarray],
    *,
    colours: bool,
) -> np.ndarray:
    """Decode to RGB, or grey; `colours` of 16 bits count with both bytes, or with the upper one."""
    both_bytes = colours and has_wide_colours(image)  # told before anything is decoded
    orientation = _orientation(image, data)
    pixels = decode_fast(data, image)
    if pixels is None:
        values = wide_colours(image, data) if both_bytes else wide_values(image)
        if values:
            pixels = convert(values)
        else:
            pixels = np.array(image if image.mode == "L" else image.convert("RGB"))
    return _turned(pixels, orientation)


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
    # all colours of a pixel at once, in a third of the time
    cells = pixels if pixels.ndim == 2 else pixels.view("V3")[:, :, 0]
    if orientation in (3, 4, 6, 7):
        cells = cells[::-1]
    if orientation in (2, 3, 7, 8):
        cells = cells[:, ::-1]
    if orientation >= 5:
        cells = cells.T
    whole = cells.copy()  # also of a single row, whose stride would stay negative
    return whole if pixels.ndim == 2 else whole.view(np.uint8).reshape(*cells.shape, 3)
