"""What a mask marks, however it was painted and saved."""

import io

import numpy as np
import pytest
from PIL import Image

from dfm_mlflow.images.decode import decode_soft_mask
from dfm_mlflow.images.mask import orientation_of, turned

SHAPE = np.zeros((40, 60), dtype=bool)
SHAPE[8:24, 12:40] = True
GREY = SHAPE.astype(np.uint8) * 255
CLEAR = np.zeros_like(GREY)


def saved(image, kind="PNG", **how):
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **how)
    return buffer.getvalue()


def with_alpha(colour, alpha):
    return Image.fromarray(np.dstack([colour, colour, colour, alpha]).astype(np.uint8), "RGBA")


def palette(colours, indices=SHAPE):
    image = Image.fromarray(indices.astype(np.uint8), "P")
    image.putpalette(colours)
    return image


EXACT = {
    "grey": saved(Image.fromarray(GREY)),
    "one bit": saved(Image.fromarray(SHAPE)),
    "value 1": saved(Image.fromarray(SHAPE.astype(np.uint8))),
    "16 bits": saved(Image.fromarray(SHAPE.astype(np.uint16) * 65535)),
    "16 bits, value 300": saved(Image.fromarray(SHAPE.astype(np.uint16) * 300)),
    "colour": saved(Image.fromarray(np.dstack([GREY, CLEAR, CLEAR]))),
    "white on transparent": saved(with_alpha(GREY * 0 + 255, GREY)),
    "black on transparent": saved(with_alpha(CLEAR, GREY)),
    "opaque": saved(with_alpha(GREY, GREY * 0 + 255)),
    "transparent throughout": saved(with_alpha(GREY, CLEAR)),
    "grey and alpha": saved(Image.fromarray(np.dstack([GREY, GREY * 0 + 255]), "LA")),
    "palette, black first": saved(palette([0, 0, 0, 128, 0, 0])),
    "palette without black": saved(palette([68, 1, 84, 253, 231, 37])),
    "palette, transparent first": saved(palette([0, 0, 0, 0, 0, 0]), transparency=b"\x00\xff"),
    "tiff": saved(Image.fromarray(GREY), "TIFF"),
    "float tiff": saved(Image.fromarray(SHAPE.astype(np.float32)), "TIFF"),
}


@pytest.mark.parametrize("name", EXACT)
def test_a_mask_is_read_as_it_was_meant(name):
    np.testing.assert_array_equal(decode_soft_mask(EXACT[name])[0], SHAPE)


def test_instances_are_all_marked():
    labels = np.zeros((40, 60), dtype=np.uint8)
    for i in range(1, 6):
        labels[8 * i - 8 : 8 * i - 4, 10 * i : 10 * i + 5] = i
    np.testing.assert_array_equal(decode_soft_mask(saved(Image.fromarray(labels)))[0], labels > 0)


@pytest.mark.parametrize("quality", [30, 75, 95])
@pytest.mark.parametrize("colours", ["L", "RGB"])
def test_the_noise_of_jpeg_is_cut_off_and_said(quality, colours):
    y, x = np.mgrid[:90, :120]
    disc = (y - 40) ** 2 + (x - 55) ** 2 < 23**2  # no edge of it lies on a block of JPEG
    painted = Image.fromarray(disc.astype(np.uint8) * 255).convert(colours)
    data = saved(painted, "JPEG", quality=quality)
    marked_before = (np.asarray(Image.open(io.BytesIO(data)).convert("L")) > 0).mean()
    assert marked_before > 1.1 * disc.mean()  # what nonzero pixels would have been
    resaved = saved(Image.open(io.BytesIO(data)))  # the same noise in a PNG, by the next tool
    for noisy in (data, resaved):
        mask, soft = decode_soft_mask(noisy)
        assert soft
        assert (mask != disc).mean() < 0.003


def test_a_black_jpeg_marks_nothing():
    noise = np.random.default_rng(0).integers(0, 6, GREY.shape).astype(np.uint8)
    assert not decode_soft_mask(saved(Image.fromarray(noise), "JPEG"))[0].any()


def test_a_mask_is_turned_as_its_own_exif_says():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(Image.fromarray(GREY), "PNG", exif=exif)
    assert orientation_of(data) == 6
    np.testing.assert_array_equal(decode_soft_mask(data)[0], turned(SHAPE, 6))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turning_is_pillow_s(orientation):
    from PIL import ImageOps

    uneven = np.arange(6, dtype=np.uint8).reshape(2, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.open(io.BytesIO(saved(Image.fromarray(uneven), exif=exif)))
    np.testing.assert_array_equal(turned(uneven, orientation), ImageOps.exif_transpose(image))


def test_what_is_no_picture_has_no_orientation():
    assert orientation_of(b"no picture") == 1
