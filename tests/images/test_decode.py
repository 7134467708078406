import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dfm_mlflow.errors import ImageError
from dfm_mlflow.images.decode import decode_image

from ..conftest import examples

PICTURE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_formats_round_trip(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(decode_image(encode(Image.fromarray(PICTURE), kind, **options)), PICTURE)


def test_jpeg_comes_close():
    smooth = np.tile(np.linspace(0, 255, 64, dtype=np.uint8)[None, :, None], (64, 1, 3))
    decoded = decode_image(encode(Image.fromarray(smooth), "JPEG", quality=95))
    assert np.abs(decoded.astype(int) - smooth).max() < 8


def test_sixteen_bit_is_scaled_not_clipped():
    wide = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    for kind in ("PNG", "TIFF"):
        decoded = decode_image(encode(Image.fromarray(wide), kind))
        assert decoded[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_every_mode_becomes_rgb(mode):
    kind = "TIFF" if mode == "CMYK" else "PNG"
    decoded = decode_image(encode(Image.fromarray(PICTURE).convert(mode), kind))
    assert decoded.shape == (20, 30, 3)
    assert decoded.dtype == np.uint8


def test_exif_rotation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(encode(Image.fromarray(PICTURE), "PNG", exif=exif)).shape == (30, 20, 3)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"hello", "not a picture"),
        (encode(Image.fromarray(PICTURE), "GIF"), "not a picture"),
        (encode(Image.fromarray(PICTURE))[:-60], "damaged"),
        (encode(Image.new("F", (4, 4)), "TIFF"), "floating-point"),
    ],
)
def test_unreadable_bytes_are_refused_with_a_sentence(data, words):
    with pytest.raises(ImageError, match=words):
        decode_image(data)


def test_limits_are_checked_before_decoding():
    with pytest.raises(ImageError, match="more than the limit of 500"):
        decode_image(encode(Image.fromarray(PICTURE)), max_pixels=500)
    with pytest.raises(ImageError, match="more than the limit of 100"):
        decode_image(encode(Image.fromarray(PICTURE)), max_bytes=100)
    with pytest.raises(ImageError, match="limit"):
        decode_image(encode(Image.new("1", (20000, 20000))))


@examples(150)
@given(
    st.integers(0, 3), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=6)
)
def test_damaged_files_give_an_array_or_an_image_error(which, changes):
    kind = ("PNG", "JPEG", "TIFF", "WEBP")[which]
    data = bytearray(encode(Image.fromarray(PICTURE), kind))
    for place, value in changes:
        data[place % len(data)] = value
    try:
        decoded = decode_image(bytes(data), max_pixels=10**6)
    except ImageError:
        return
    assert decoded.ndim == 3
    assert decoded.shape[2] == 3
    assert decoded.dtype == np.uint8


@pytest.mark.parametrize("white", [255, 1023, 4095, 65535])
def test_pgm_of_any_depth_is_scaled(white):
    values = np.linspace(0, white, 48).round().reshape(6, 8)
    kind = ">u2" if white > 255 else "u1"
    data = f"P5\n8 6\n{white}\n".encode() + values.astype(kind).tobytes()
    found = decode_image(data)
    np.testing.assert_array_equal(found[:, :, 0], np.round(values / white * 255))
    with pytest.raises(ImageError, match="damaged"):
        decode_image(data[:-1])
    with pytest.raises(ImageError, match="more than the limit"):
        decode_image(b"P5\n100000 100000\n255\n")
