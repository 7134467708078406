"""From an opened mask to the pixels that it marks, however it was painted and saved."""

import io

import numpy as np
from PIL import Image, ImageOps

# Masks of instances have few values; the noise of JPEG, and soft edges, have many.
_MOST_VALUES = 16
_LEAST_WHITE = 64  # of 255: below it, noise and marks cannot be told apart
_NOISE = 8
_OPAQUE = 128
_LOSSY = ("JPEG", "MPO")


def marked_pixels(image: Image.Image) -> tuple[np.ndarray, bool]:
    """Say which pixels a mask marks.

    Every pixel that is not black is marked. Where alpha varies, what is transparent is not; paint
    of one colour, black too, on a transparent ground counts by its alpha alone. In JPEG, and where
    noise or soft edges give many values, the limit is half of the largest one. A palette without
    black counts by its numbers. EXIF rotation is applied.

    Gives marked (height, width) bool.
    """
    lossy = image.format in _LOSSY
    image = ImageOps.exif_transpose(image)
    if image.mode == "P" and "transparency" not in image.info:
        marked, soft = _levels(image.convert("RGB"), lossy)
        return (np.asarray(image) != 0, False) if marked.all() else (marked, soft)
    if image.mode in ("P", "PA", "LA", "La", "RGBA", "RGBa"):
        return _with_alpha(image.convert("RGBA"), lossy)
    return _levels(image.convert("RGB") if image.mode == "CMYK" else image, lossy)


def orientation_of(data: bytes) -> int:
    """Orientation in the EXIF of a picture's bytes, `data`: 1 to 8; 1 where there is none."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            found = int(image.getexif().get(0x0112, 1))
    except MemoryError:
        raise
    except Exception:  # Pillow raises nearly anything on damaged input
        return 1
    return found if found in range(1, 9) else 1


def turned(mask: np.ndarray, orientation: int) -> np.ndarray:
    """Turn and mirror a mask as EXIF says of its picture.

    Shapes: mask (height, width).
    """
    if orientation in (3, 4, 6, 7):
        mask = mask[::-1]
    if orientation in (2, 3, 7, 8):
        mask = mask[:, ::-1]
    return mask.T if orientation >= 5 else mask


def _with_alpha(image: Image.Image, lossy: bool) -> tuple[np.ndarray, bool]:
    alpha = np.asarray(image.getchannel("A"))
    painted, soft = _levels(image.convert("RGB"), lossy)
    visible = alpha >= _OPAQUE
    if visible.all() or not visible.any():  # says nothing
        return painted, soft
    both = painted & visible
    return (both, soft) if both.any() else (visible, False)


def _levels(image: Image.Image, lossy: bool) -> tuple[np.ndarray, bool]:
    pixels = np.asarray(image)
    if pixels.ndim == 3:
        pixels = pixels.max(axis=2)
    if pixels.dtype == bool:
        return pixels, False
    limit = _noise_limit(pixels, lossy)
    return pixels > limit, limit > 0


def _noise_limit(pixels: np.ndarray, lossy: bool) -> float:
    """Largest value that marks nothing: 0, or half of the largest where noise is among them."""
    top = float(pixels.max()) if pixels.size else 0.0
    if top < _LEAST_WHITE:
        return top if lossy else 0.0
    if pixels.dtype in (np.uint8, np.uint16):
        values = np.flatnonzero(np.bincount(pixels.ravel()))
    else:
        values = np.unique(pixels)
    # JPEG of high quality, saved as PNG by the next tool, leaves few values beside black and white
    beside_white = (values >= top - _NOISE).sum() > 1
    beside_black = ((values > 0) & (values <= _NOISE)).any()
    noisy = lossy or len(values) > _MOST_VALUES or (beside_white and beside_black)
    return top / 2 if noisy else 0.0
