import base64
import io

import numpy as np
import pytest
from PIL import Image

import dfm_mlflow
from dfm_mlflow.errors import ImageError
from dfm_mlflow.images.overlay import GOOD_LEVEL, colours, overlay, tint


def encoded(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def test_a_stronger_level_is_a_darker_colour_and_hides_more_of_the_picture():
    levels = np.arange(256, dtype=np.uint8)
    light = colours(levels) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(light) <= 1e-3).all()  # so the order shows without the legend
    for grey in (0, 90, 255):
        image = np.full((1, 256, 3), grey, np.uint8)
        marked = tint(image, levels[None])[0].astype(int)
        assert (marked[: GOOD_LEVEL // 2] == grey).all()  # calm
        away = np.abs(marked - grey).max(axis=1)
        assert away[GOOD_LEVEL] > 20  # what nine in ten good pictures stay under is seen
        assert away[255] > 80


def test_the_public_overlay_takes_what_a_model_answers():
    assert dfm_mlflow.overlay is overlay
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 300, 3), dtype=np.uint8)
    level = rng.integers(0, 256, (40, 300), dtype=np.uint8)
    answer = base64.b64encode(encoded(level)).decode()
    plain = tint(pixels, level)
    for image in (pixels, encoded(pixels), Image.fromarray(pixels)):
        for found in (answer, encoded(level), level):
            np.testing.assert_array_equal(overlay(image, found, legend=False), plain)
    with_legend = overlay(pixels, answer)
    np.testing.assert_array_equal(with_legend[:40], plain)
    strip = with_legend[40:]
    assert strip.shape[0] > 20
    assert (strip[-5:] == 255).mean() > 0.5  # words on white
    assert max(overlay(np.zeros((3000, 10, 3), np.uint8), level[:, :10]).shape) < 1100


@pytest.mark.parametrize("width", [1, 7, 24, 64, 200, 1024])
def test_a_legend_fits_under_any_picture(width):
    found = overlay(np.zeros((9, width, 3), np.uint8), np.zeros((9, width), np.uint8))
    assert found.shape[1:] == (width, 3)


def test_what_is_no_picture_or_no_map_is_refused_in_words(tmp_path):
    pixels, level = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8)
    with pytest.raises(ImageError, match="float64 and shape .* is not a picture"):
        overlay(np.zeros((4, 4, 3)), level)
    with pytest.raises(ImageError, match="cannot be read"):
        overlay(tmp_path / "none.png", level)
    for wrong in ("noise!", b"noise", pixels, level.astype(float), None):
        with pytest.raises(ImageError, match="anomaly map"):
            overlay(pixels, wrong)
