import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dfm_mlflow.errors import ImageError
from dfm_mlflow.images.decode import Decoder, decode_image, size_of
from dfm_mlflow.images.depth import Depth
from dfm_mlflow.images.netpbm import head_of, is_netpbm, values_of

from ..conftest import examples


def netpbm(values, white, head=b"\n"):
    kind, order = (b"P5", b"P6")[values.ndim == 3], "u1" if white < 256 else ">u2"
    size = b"%d %d" % (values.shape[1], values.shape[0])
    return kind + head + size + b"\n%d\n" % white + values.astype(order).tobytes()


@examples(60)
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([1, 15, 100, 255, 256, 1023, 4095, 65535]),
    st.booleans(),
    st.sampled_from([b" ", b"\n", b"\r\n", b"\t# a comment\n", b"\n# one\n# two\n"]),
)
def test_values_come_back_and_white_is_white(height, width, white, colour, head):
    shape = (height, width, 3) if colour else (height, width)
    values = np.random.default_rng(white).integers(0, white + 1, shape)
    data = netpbm(values, white, head)
    np.testing.assert_array_equal(values_of(data, head_of(data)), values)
    assert size_of(data) == (height, width)
    expected = (values * 255 + white // 2) // white
    expected = expected if colour else np.repeat(expected[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(decode_image(data), expected)
    if white == 255:
        with Image.open(io.BytesIO(data)) as image:
            np.testing.assert_array_equal(decode_image(data), np.asarray(image.convert("RGB")))


def test_a_white_of_65535_says_nothing_of_the_camera_and_another_does():
    values = np.array([[0, 2048, 4095]])
    decoder = Decoder(Depth(12, 0, 4095))
    for white in (4095, 65535):
        pixels, words = decoder.decode(netpbm(values, white))
        assert pixels[0, :, 0].tolist() == [0, 128, 255]
        assert (words is None) == (white == 4095)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"P5\n3 2\n255\n12345", "damaged"),
        (b"P5\n3 2\n70000\n" + bytes(99), "damaged"),
        (b"P5\n3 2\n0\n" + bytes(99), "damaged"),
        (b"P5\n3 -2\n255\n" + bytes(99), "damaged"),
        (b"P5\n3 2", "damaged"),
        (b"P5\n#" + b"x" * 9999 + b"\n3 2\n255\n123456", "damaged"),
        (b"P5\n" + b"9" * 5000 + b" 2\n255\n", "damaged"),
        (b"P5\n2 1\n100\n\x65\0", "above its white of 100"),
        (b"P6\n99999 99999\n255\n", "more than the limit"),
        (b"P5\n0 7\n255\n", "0x7 pixels"),
        *(
            (kind + b"\n2 2\n1 0 0 1\n", "save it as a binary PGM")
            for kind in (b"P1", b"P2", b"P3")
        ),
        *((kind + b"\n2 2\n" + bytes(99), "save it as a binary PGM") for kind in (b"P4", b"Pf")),
    ],
)
def test_what_is_none_is_refused_with_a_sentence(data, words):
    assert is_netpbm(data)
    with pytest.raises(ImageError, match=words):
        decode_image(data)


def test_base64_of_anything_is_no_netpbm():
    assert not is_netpbm(b"P5QAAAAA")
    assert not is_netpbm(b"P5")
