"""One picture in every form of Python, and what is refused, in one sentence."""

import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dfm_mlflow.errors import ConfigError, ImageError
from dfm_mlflow.images.decode import decode_image
from dfm_mlflow.images.picture import is_null, is_single, listed, taken

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
BGR = RGB[..., ::-1]


def encode(image, kind="PNG", **how):
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (b"abc", b"abc"),
        (bytearray(b"abc"), b"abc"),
        (memoryview(b"abc"), b"abc"),
        (memoryview(b"aXbXcX")[::2], b"abc"),
        (np.void(b"abc"), b"abc"),
        (np.bytes_(b"abc"), b"abc"),
        ("a/b.png", Path("a/b.png")),
        (Path("b.png"), Path("b.png")),
    ],
)
def test_files_and_bytes_are_taken(given, expected):
    assert taken(given) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (RGB, RGB),
        (BGR[..., ::-1], RGB),
        (np.asfortranarray(RGB), RGB),
        (np.repeat(RGB, 2, axis=0)[::2], RGB),
        (np.moveaxis(np.moveaxis(RGB, 2, 0).copy(), 0, 2), RGB),
        (RGB[:, :, 0], np.repeat(RGB[:, :, :1], 3, axis=2)),
        (RGB[:, :, :1], np.repeat(RGB[:, :, :1], 3, axis=2)),
        (Image.fromarray(RGB), RGB),
        (Image.fromarray(RGB).convert("RGBA"), RGB),
        (Image.fromarray(RGB[:, :, 0]), np.repeat(RGB[:, :, :1], 3, axis=2)),
    ],
)
def test_values_are_taken_as_rgb_in_one_piece(given, expected):
    found = taken(given)
    np.testing.assert_array_equal(found, expected)
    assert found.flags.c_contiguous
    assert found.dtype == np.uint8


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_a_pil_image_is_what_its_file_is(mode):
    image = Image.fromarray(RGB).convert(mode)
    data = encode(image, "TIFF" if mode == "CMYK" else "PNG")
    np.testing.assert_array_equal(taken(Image.open(io.BytesIO(data))), decode_image(data))
    turned = Image.Exif()
    turned[0x0112] = 6
    data = encode(Image.fromarray(RGB), "PNG", exif=turned)
    np.testing.assert_array_equal(taken(Image.open(io.BytesIO(data))), decode_image(data))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (RGB / 255, "float64 and shape (6, 9, 3) is not a picture: scale it to 0 to 255 and give"),
        (RGB > 9, "bool and shape (6, 9, 3) is not a picture: multiply it by 255 and give uint8"),
        (RGB.astype(np.uint16), "uint16 and shape"),
        (RGB.astype(np.int64), "int64 and shape"),
        (np.moveaxis(RGB, 2, 0), "channels come first: transpose it by (1, 2, 0)"),
        (np.dstack([RGB, RGB[:, :, :1]]), "leave out its fourth channel"),
        (RGB[:, :, :2], "shape (6, 9, 2) is not a picture"),
        (RGB[:0], "shape (0, 9, 3) is not a picture"),
        (RGB[None], "shape (1, 6, 9, 3) is not a picture"),
        (RGB[0, 0], "shape (3,) is not a picture"),
        (Image.fromarray(RGB[:, :, 0].astype(np.uint16)), "mode I;16 with more than 8 bits"),
        (None, "The row holds no picture (null): send the bytes of one."),
        (float("nan"), "no picture (null)"),
        (pd.NA, "no picture (null)"),
        (7, "A value of the type int is not a picture"),
        ([b"abc"], "A value of the type list is not a picture"),
        ({"image": b"abc"}, "A value of the type dict is not a picture"),
    ],
)
def test_anything_else_is_refused_in_one_sentence(given, words):
    with pytest.raises(ImageError, match=re.escape(words)) as caught:
        taken(given)
    assert str(caught.value).endswith(".")
    assert len(str(caught.value)) < 250


def test_a_pil_image_of_16_bit_colours_is_refused_before_pillow_drops_half_of_them():
    imagecodecs = pytest.importorskip("imagecodecs")
    data = imagecodecs.png_encode(RGB.astype(np.uint16))
    with pytest.raises(ImageError, match="more than 8 bits"):
        taken(Image.open(io.BytesIO(data)))
    broken = Image.open(io.BytesIO(encode(Image.fromarray(RGB))[:-40]))
    with pytest.raises(ImageError, match="cannot be decoded"):
        taken(broken)


def test_nulls_are_those_of_python_pandas_and_mlflow():
    nulls = [None, float("nan"), np.float32("nan"), pd.NA, pd.NaT, "None", b"None", "nan"]
    assert all(map(is_null, nulls))
    assert not any(map(is_null, ["", b"", "a.png", b"abc", 0, 0.0, RGB, []]))


@pytest.mark.parametrize(
    "single",
    ["a.png", Path("a.png"), b"a", bytearray(b"a"), memoryview(b"a"), np.void(b"a"), RGB]
    + [RGB[:, :, 0], Image.fromarray(RGB), RGB.astype(float)],
)
def test_a_single_picture_is_no_list(single):
    assert is_single(single)
    with pytest.raises(ConfigError, match=r"give a list of them, such as \[picture\]"):
        listed(single)


def test_sequences_are_listed_and_tables_are_not():
    column = pd.Series([b"a", b"b"], index=[5, 3])
    for many in ([b"a", b"b"], (b"a", b"b"), column, np.array([b"a", b"b"], object)):
        assert listed(many) == [b"a", b"b"]
    assert [a.shape for a in listed(np.stack([RGB, RGB]))] == [RGB.shape] * 2
    assert listed(iter([b"a"])) == [b"a"]
    with pytest.raises(ConfigError, match=r"give its column of pictures, such as table\['image'\]"):
        listed(pd.DataFrame({"image": column}))
    for other in (None, 7, {"image": [b"a"]}):
        with pytest.raises(ConfigError, match="is not a list of pictures"):
            listed(other)


def test_it_needs_no_pillow():
    code = (
        "import sys, numpy as np; from dfm_mlflow.images.picture import taken; "
        "taken(np.zeros((2, 2), np.uint8)); print({'torch', 'mlflow', 'PIL'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
