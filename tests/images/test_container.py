import io
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dfm_mlflow.errors import ImageError
from dfm_mlflow.images import container
from dfm_mlflow.images.container import check_parts, check_scans, may_turn, webp_size

from ..campaigns.mutation import encode
from ..conftest import examples

PICTURE = Image.new("RGB", (9, 7), (1, 2, 3))


def with_chunks(kind, n):
    """A PNG with so many chunks of a kind before its pixels."""
    data = encode(PICTURE, "PNG")
    chunk = struct.pack(">I", 0) + kind + struct.pack(">I", zlib.crc32(kind))
    return data[:33] + chunk * n + data[33:]


def with_segments(n):
    """A JPEG with so many empty application segments."""
    data = encode(PICTURE, "JPEG")
    return data[:2] + b"\xff\xef\0\2" * n + data[2:]


@examples(30)
@given(st.integers(1, 3000), st.integers(1, 20), st.sampled_from(["lossy", "lossless", "animated"]))
def test_the_canvas_of_a_webp_is_what_pillow_reads(width, height, kind):
    picture = Image.new("RGB", (width, height))
    how = {
        "lossy": {},
        "lossless": {"lossless": True},
        "animated": {"save_all": True, "append_images": [Image.new("RGB", picture.size, "red")]},
    }[kind]
    data = encode(picture, "WEBP", **how)
    assert webp_size(data) == (width, height)
    assert webp_size(data[:20]) is None


def test_other_formats_have_no_webp_canvas():
    for kind in ("PNG", "JPEG", "BMP", "TIFF"):
        assert webp_size(encode(PICTURE, kind)) is None


@pytest.mark.parametrize("made", [lambda n: with_chunks(b"abCd", n), with_segments])
def test_parts_are_counted_up_to_the_limit(made, monkeypatch):
    usual = next(n for n in range(100) if not refused(made(0), n, monkeypatch))
    assert not refused(made(7), usual + 7, monkeypatch)
    assert refused(made(8), usual + 7, monkeypatch)
    with pytest.raises(ImageError, match=f"more than {usual + 7} parts inside"):
        check_parts(made(8))


def refused(data, limit, monkeypatch):
    monkeypatch.setattr(container, "MAX_PARTS", limit)
    try:
        check_parts(data)
    except ImageError:
        return True
    return False


def test_parts_after_the_end_do_not_count():
    check_parts(encode(PICTURE, "PNG") + with_chunks(b"abCd", 30_000)[33:])
    check_parts(encode(PICTURE, "BMP"))  # no format of parts


def test_fewer_scans_are_allowed_the_larger_the_picture_is():
    scan = b"\xff\xda"
    check_scans(scan * container.MAX_SCANS, 1, 10**8)
    with pytest.raises(ImageError, match="101 scans, more than the limit of 100"):
        check_scans(scan * 101, 1, 10**8)
    check_scans(scan * 12, 10**8, 10**8)
    with pytest.raises(ImageError, match="13 scans, more than the limit of 12"):
        check_scans(scan * 13, 10**8, 10**8)
    check_scans(scan, 10**12, 10**8)  # one is always needed


def test_a_png_may_turn_where_pillow_would_look():
    plain = encode(PICTURE, "PNG")
    assert not may_turn(plain)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert may_turn(encode(PICTURE, "PNG", exif=exif))
    for keyword, turns in (("Raw profile type exif", True), ("Software", False)):
        text = PngInfo()
        text.add_text(keyword, "anything")
        buffer = io.BytesIO()
        PICTURE.save(buffer, "PNG", pnginfo=text)
        assert may_turn(buffer.getvalue()) == turns
