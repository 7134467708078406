import io

import numpy as np
import pytest
from PIL import Image

from dfm_mlflow.images.decode import Decoder
from dfm_mlflow.images.depth import Depth, words_of
from dfm_mlflow.images.wide import (
    has_wide_colours,
    reals_to_8_bits,
    to_8_bits,
    wide_colours,
    wide_values,
)

from .builders import encode, tiff_of

COLOURS = np.random.default_rng(0).integers(0, 65536, (40, 30, 3)).astype(np.uint16)


def coloured_files():
    imagecodecs = pytest.importorskip("imagecodecs")
    yield imagecodecs.png_encode(COLOURS)
    yield imagecodecs.png_encode(np.dstack([COLOURS, COLOURS[:, :, :1]]))
    for order in "<>":
        for compression in (1, 8):
            yield tiff_of(COLOURS, order=order, compression=compression)


def test_both_bytes_of_every_colour_are_there():
    for data in coloured_files():
        with Image.open(io.BytesIO(data)) as image:
            assert has_wide_colours(image)
            found = wide_colours(image, data)
        np.testing.assert_array_equal(found.array, COLOURS)
        assert (found.white, found.inverted) == (None, False)
        pixels, words = Decoder(Depth(16)).decode(data)
        np.testing.assert_array_equal(pixels, to_8_bits(COLOURS, 65535))
        assert words == words_of(COLOURS)


@pytest.mark.parametrize("values", [COLOURS, COLOURS[:, :, 0]])
def test_a_turned_picture_is_turned_with_both_bytes(values):
    pixels, words = Decoder(Depth(16)).decode(tiff_of(values, turn=6))
    expected = np.rot90(to_8_bits(values, 65535), k=-1)
    np.testing.assert_array_equal(
        pixels, np.dstack([expected] * 3) if values.ndim == 2 else expected
    )
    assert words == words_of(values)


def test_eight_bits_are_nothing_wide():
    for image in (Image.new("RGB", (2, 2)), Image.new("L", (2, 2)), Image.new("P", (2, 2))):
        with Image.open(io.BytesIO(encode(image, "PNG"))) as opened:
            assert not has_wide_colours(opened)
            assert wide_values(opened) is None


@pytest.mark.parametrize("white", [1, 255, 1023, 4095, 65535])
def test_white_becomes_255_and_all_between_is_rounded(white):
    values = np.arange(65536).astype(np.uint16)
    found = to_8_bits(values, white)
    exact = np.minimum(values, white) * 255.0 / white
    assert np.abs(found - exact).max() <= 0.5
    assert (np.diff(found.astype(int)) >= 0).all()
    np.testing.assert_array_equal(to_8_bits(values, white, inverted=True), 255 - found)


def test_reals_are_scaled_within_their_range():
    values = np.linspace(-2, 6, 3000, dtype=np.float32).reshape(1000, 3)  # more rows than a part
    exact = (values.astype(float) + 2) / 8 * 255
    assert np.abs(reals_to_8_bits(values, -2, 6) - exact).max() <= 0.5 + 1e-9
