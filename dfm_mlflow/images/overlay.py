"""An anomaly map drawn over its picture, in colours that only grow stronger, with their legend."""

import base64
import binascii
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dfm_mlflow.errors import ImageError
from dfm_mlflow.images.decode import decode_image

# Level of an 8-bit map that nine in ten held-out good pictures stay under everywhere, in every
# picture of a model: equal levels mean equally unusual.
GOOD_LEVEL = 128
_FAINTEST = 64  # below it a picture is shown as it is
_STRONGEST = 0.85  # opacity at level 255
# Each darker than the one before (ColorBrewer's YlOrRd; Harrower & Brewer, 2003), so that the order
# of two colours can be seen without the legend, in print and by those who tell few colours apart.
_COLOURS = np.array(
    [(255, 237, 160), (254, 217, 118), (254, 178, 76), (253, 141, 60)]
    + [(252, 78, 42), (227, 26, 28), (189, 0, 38)],
    dtype=np.float32,
)
_SIDE = 1024  # most pixels of the longer side of a picture with a legend
PNG_LEVEL = 3  # of zlib: 0.4 of the time of its default, and files 8 % larger


def tint(image: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Lay the colours of a map over its picture: nothing below level 64, then yellow to dark red.

    Shapes: image (H, W, 3) uint8; level (H, W) uint8; gives (H, W, 3) uint8.
    """
    colour, opacity = colours(level), _opacity(level)
    blend: np.ndarray = (image * (1 - opacity) + colour * opacity).round().astype(np.uint8)
    return blend


def layer(level: np.ndarray) -> np.ndarray:
    """Give the colours of a map by themselves, to be laid over a picture of any size.

    Shapes: level (H, W) uint8; gives (H, W, 4) uint8: RGBA: over a picture it is what :func:`tint`
    gives.
    """
    opacity = 255 * _opacity(level)
    return np.concatenate([colours(level), opacity], axis=-1).round().astype(np.uint8)


def _opacity(level: np.ndarray) -> np.ndarray:
    """Share of the map's colour in a picture, of shape (H, W, 1)."""
    strength = np.clip((level.astype(np.float32) - _FAINTEST) / (255 - _FAINTEST), 0, 1)
    opacity: np.ndarray = (_STRONGEST * np.sqrt(strength))[..., None]
    return opacity


def colours(level: np.ndarray) -> np.ndarray:
    """Colour of each level of a map."""
    stops = np.linspace(_FAINTEST, 255, len(_COLOURS))
    parts = [np.interp(level, stops, _COLOURS[:, i]) for i in range(3)]
    return np.stack(parts, axis=-1).astype(np.float32)


def overlay(
    image: str | Path | bytes | np.ndarray | Image.Image,
    anomaly_map: str | bytes | np.ndarray,
    *,
    legend: bool = True,
) -> np.ndarray:
    """Draw an anomaly map over its picture.

    Parameters
    ----------
    image : str, Path, bytes, ndarray or PIL.Image.Image
        A file, an encoded picture, or RGB pixels of shape (H, W, 3), uint8.
    anomaly_map : str, bytes or ndarray
        As a model answers it: base64 of a PNG; or that PNG, or its levels of shape (h, w), uint8.
    legend : bool
        Whether to add a strip below the picture that says what the colours mean.

    Returns
    -------
    ndarray of shape (H, W, 3), uint8
        At most 1024 pixels a side, and the strip.

    Raises
    ------
    ImageError
        For a picture or a map that cannot be read.
    """
    pixels = Image.fromarray(_pixels(image))
    pixels.thumbnail((_SIDE, _SIDE))
    level = Image.fromarray(_levels(anomaly_map)).resize(pixels.size, Image.Resampling.BILINEAR)
    marked = tint(np.asarray(pixels), np.asarray(level))
    return np.concatenate([marked, _strip(marked.shape[1])]) if legend else marked


def _pixels(image: str | Path | bytes | np.ndarray | Image.Image) -> np.ndarray:
    if isinstance(image, Image.Image):
        image = np.asarray(image.convert("RGB"))
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ImageError(
                f"An array of {image.dtype} and shape {image.shape} is not a picture: give uint8 "
                "of shape (H, W, 3), RGB."
            )
        return np.ascontiguousarray(image)
    try:
        return decode_image(image if isinstance(image, bytes) else Path(image).read_bytes())
    except OSError as error:
        raise ImageError(f"{image!s} cannot be read ({error.strerror}): check it.") from None


def _levels(anomaly_map: str | bytes | np.ndarray) -> np.ndarray:
    wrong = "give the column anomaly_map of an answer, or uint8 levels of shape (h, w)"
    if isinstance(anomaly_map, np.ndarray):
        if anomaly_map.dtype != np.uint8 or anomaly_map.ndim != 2:
            raise ImageError(
                f"An array of {anomaly_map.dtype} and shape {anomaly_map.shape} is not an anomaly "
                f"map: {wrong}."
            )
        return anomaly_map
    try:
        data = base64.b64decode(anomaly_map) if isinstance(anomaly_map, str) else anomaly_map
        return decode_image(data)[:, :, 0]
    except (binascii.Error, ImageError, TypeError):
        raise ImageError(f"The anomaly map cannot be read: {wrong}.") from None


def _strip(width: int) -> np.ndarray:
    """Draw the scale: its colours over grey, and what its ends and its middle mean."""
    size = max(9, min(15, width // 28))
    font = ImageFont.load_default(size)
    bar = np.tile(np.linspace(0, 255, width).round().astype(np.uint8), (size, 1))
    grey = np.full((*bar.shape, 3), 128, dtype=np.uint8)
    strip = Image.new("RGB", (width, int(2.6 * size)), "white")
    strip.paste(Image.fromarray(tint(grey, bar)), (0, 0))
    draw = ImageDraw.Draw(strip)
    middle = width * GOOD_LEVEL // 255
    draw.line([(middle, 0), (middle, size + 3)], fill="black")
    for text, place, anchor in _fitting(_LEGENDS, font, width):
        draw.text((place, int(1.2 * size)), text, fill="black", font=font, anchor=anchor)
    return np.asarray(strip)


# From the one that says most to the one that fits anywhere: left, middle, right.
_LEGENDS = (
    ("calm", "most of any good picture: level 128", "far above: 255"),
    ("0", "good pictures' most: 128", "255"),
    ("0", "128", "255"),
)


def _fitting(
    legends: Sequence[tuple[str, str, str]],
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    width: int,
) -> list[tuple[str, int, str]]:
    for texts in legends:
        left, middle, right = (font.getlength(text) for text in texts)
        centre = width * GOOD_LEVEL / 255
        if left + 8 < centre - middle / 2 and centre + middle / 2 + 8 < width - right:
            break
    places = [(2, "la"), (width * GOOD_LEVEL // 255, "ma"), (width - 2, "ra")]
    return [(text, *place) for text, place in zip(texts, places, strict=True)]
