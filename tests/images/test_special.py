"""Every row of the table in docs/images.md."""

import io
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from dfm_mlflow.errors import ImageError
from dfm_mlflow.images.decode import decode_image

from ..campaigns.mutation import encode

DOCS = Path(__file__).parents[2] / "docs/images.md"
PIXELS = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
RGB = Image.fromarray(PIXELS)
WIDE = np.array([[0, 128, 129, 257, 4095, 32768, 65535]], np.uint16)
SCALED = [0, 0, 1, 1, 16, 128, 255]
RED, BLUE = Image.new("RGB", (4, 3), (255, 0, 0)), Image.new("RGB", (4, 3), (0, 0, 255))


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def header(width, height, depth=8, colour=2):
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))


def png(*heads, rows=b"", more=b""):
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            *heads,
            more,
            chunk(b"IDAT", zlib.compress(rows)),
            chunk(b"IEND", b""),
        )
    )


def tiff(width, height, bits, data, meaning=1, **tags):
    given = {
        256: width,
        257: height,
        258: bits,
        259: 1,
        262: meaning,
        273: 200,
        277: 1,
        278: height,
        279: len(data),
        **{int(k[1:]): v for k, v in tags.items()},
    }
    out = b"II*\0" + struct.pack("<IH", 8, len(given))
    for tag in sorted(given):
        out += struct.pack("<HHII", tag, 4, 1, given[tag])
    return (out + b"\0" * 4).ljust(200, b"\0") + data


def webp_canvas(width, height):
    frame = encode(Image.new("RGB", (4, 4)), "WEBP", lossless=True)[12:]

    def part(kind, data):
        return kind + struct.pack("<I", len(data)) + data

    def three(n):
        return struct.pack("<I", n)[:3]

    body = b"WEBP" + part(b"VP8X", b"\x02\0\0\0" + three(width - 1) + three(height - 1))
    body += part(b"ANIM", b"\0" * 6)
    body += part(b"ANMF", three(0) * 2 + three(3) * 2 + three(9) + b"\0" + frame)
    return part(b"RIFF", body)


def with_scans(n):
    data = encode(Image.new("L", (64, 64)), "JPEG", progressive=True)
    last = data[data.rfind(b"\xff\xda") : -2]
    return data[:-2] + last * n + data[-2:]


def greys(data):
    pixels = decode_image(data)
    assert (pixels == pixels[:, :, :1]).all()
    return pixels[0, :, 0].tolist()


def same(data, expected):
    np.testing.assert_array_equal(decode_image(data), expected)


def refused(data, words):
    with pytest.raises(ImageError, match=words):
        decode_image(data)


def colour_8_bit():
    for kind, how in {"PNG": {}, "BMP": {}, "TIFF": {}, "WEBP": {"lossless": True}}.items():
        same(encode(RGB, kind, **how), PIXELS)


def lossy():
    for kind in ("JPEG", "WEBP"):
        data = encode(RGB, kind)
        theirs = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
        assert np.abs(decode_image(data) - theirs).max() <= 2


def grey():
    assert greys(png(header(4, 1, 2, 0), rows=b"\0\x1b")) == [0, 85, 170, 255]
    assert greys(png(header(4, 1, 4, 0), rows=b"\0\x0f\x80")) == [0, 255, 136, 0]
    assert greys(png(header(4, 1, 1, 0), rows=b"\0\x50")) == [0, 255, 0, 255]
    assert greys(png(header(2, 1, 8, 0), rows=b"\0\x07\xff")) == [7, 255]


def grey_16_bit():
    for kind in ("PNG", "TIFF"):
        assert greys(encode(Image.fromarray(WIDE), kind)) == SCALED
        turned = Image.Exif()
        turned[0x0112] = 3
        assert greys(encode(Image.fromarray(WIDE), kind, exif=turned)) == SCALED[::-1]


def grey_12_bit():
    packed = bytes([0, 8, 0, 255, 240, 16])  # 0, 2048, 4095, 16
    assert greys(tiff(4, 1, 12, packed)) == [0, 128, 255, 1]


def white_is_zero():
    assert greys(tiff(3, 1, 8, bytes([0, 1, 255]), 0)) == [255, 254, 0]
    assert greys(tiff(7, 1, 16, WIDE.tobytes(), 0)) == [255 - v for v in SCALED]


def grey_32_bit():
    assert greys(tiff(2, 1, 32, np.array([65535, 257], "<u4").tobytes())) == [255, 1]


def colour_16_bit():
    rows = b"\0" + np.array([0x00FF, 0x0100, 0xFFFF], ">u2").tobytes()
    same(png(header(1, 1, 16, 2), rows=rows), [[[0, 1, 255]]])


def palette():
    image = Image.new("P", (2, 1), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    same(encode(image, "PNG"), [[[10, 20, 30]] * 2])


def cmyk():
    for kind in ("JPEG", "TIFF"):
        same(encode(Image.new("CMYK", (2, 1), (255, 0, 0, 0)), kind), [[[0, 255, 255]] * 2])


def alpha():
    same(encode(Image.new("RGBA", (1, 1), (9, 8, 7, 0)), "PNG"), [[[9, 8, 7]]])
    same(encode(Image.new("LA", (1, 1), (9, 0)), "PNG"), [[[9, 9, 9]]])
    image = Image.new("P", (1, 1), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    same(encode(image, "PNG", transparency=1), [[[10, 20, 30]]])


def rotation():
    for kind in ("PNG", "TIFF", "WEBP"):
        for orientation in range(1, 9):
            exif = Image.Exif()
            exif[0x0112] = orientation
            data = encode(RGB, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
            with Image.open(io.BytesIO(data)) as image:
                same(data, np.asarray(ImageOps.exif_transpose(image).convert("RGB")))


def frames():
    for kind, how in {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}}.items():
        same(encode(RED, kind, save_all=True, append_images=[BLUE], **how), np.asarray(RED))


def long_line():
    same(encode(Image.new("RGB", (100_000, 1), (1, 2, 3)), "PNG"), [[[1, 2, 3]] * 100_000])


def no_size():
    for width, height in ((0, 0), (0, 5), (5, 0)):
        refused(png(header(width, height), rows=b"\0" * 16), "not a picture")
    refused(tiff(0, 5, 8, b"\0" * 9), ".")


def other_formats():
    for data in (
        encode(RGB, "GIF"),
        b"\0\0\0\x18ftypheic" + b"\0" * 40,
        b"%PDF-1.7 ",
        b"<svg><image href='file:///etc/passwd'/></svg>",
        b"https://example.com/a.png",
        b"/etc/passwd",
    ):
        refused(data, "not a picture in one of the formats")


def truncated():
    for kind in ("PNG", "JPEG", "TIFF", "BMP", "WEBP"):
        data = encode(RGB, kind)
        refused(data[: len(data) * 2 // 3], "damaged|not a picture")


def bombs():
    for width, height in ((8000, 8000), (20_000, 20_000), (2**31 - 1, 2**31 - 1)):
        refused(png(header(width, height, 1, 0), rows=b"\0" * 2000), "more .*than the limit")


def tiles():
    tags = {"_322": 30_000, "_323": 30_000, "_324": 200, "_325": 50}
    for compression in (1, 5, 8, 32773):
        refused(tiff(1, 1, 8, b"\0" * 300, _259=compression, **tags), "more than the limit")


def scans():
    assert decode_image(with_scans(50)).shape == (64, 64, 3)
    refused(with_scans(100), "scans, more than the limit of 100")
    big = encode(Image.new("L", (64, 64)), "JPEG", progressive=True)
    assert decode_image(big, max_pixels=64 * 64).shape == (64, 64, 3)
    with pytest.raises(ImageError, match="scans, more than the limit of 12"):
        decode_image(with_scans(10), max_pixels=64 * 64)


def parts():
    many = chunk(b"abCd", b"") * 30_000
    refused(png(header(1, 1), rows=b"\0\1\2\3", more=many), "parts inside")
    data = encode(RGB, "JPEG")
    refused(data[:2] + b"\xff\xef\0\2" * 30_000 + data[2:], "parts inside")
    refused(data[:20] + b"\0" * 70_000 + data[20:], "damaged")
    same(png(header(1, 1), rows=b"\0\1\2\3", more=many[: 12 * 9000]), [[[1, 2, 3]]])


def two_headers():
    same(png(header(20_000, 20_000), header(1, 1), rows=b"\0\1\2\3"), [[[1, 2, 3]]])


CASES = {
    "PNG, BMP, TIFF, lossless WebP in 8-bit colour": colour_8_bit,
    "JPEG, lossy WebP": lossy,
    "grey in 1, 2, 4 or 8 bits": grey,
    "16-bit grey PNG or TIFF": grey_16_bit,
    "12-bit grey TIFF (packed)": grey_12_bit,
    "12-bit values in a 16-bit file": lambda: greys(encode(Image.fromarray(WIDE), "PNG"))[4] == 16,
    "grey TIFF whose 0 is white": white_is_zero,
    "16-bit colour PNG": colour_16_bit,
    "32-bit grey TIFF, 0 to 65535": grey_32_bit,
    "32-bit grey TIFF beyond": lambda: refused(
        tiff(1, 1, 32, struct.pack("<I", 65536)), "outside 0 to 65535"
    ),
    "floating-point TIFF": lambda: refused(
        encode(Image.new("F", (4, 4)), "TIFF"), "floating-point pixels"
    ),
    "palette": palette,
    "CMYK": cmyk,
    "alpha, or a transparent colour": alpha,
    "EXIF rotation": rotation,
    "animated PNG or WebP, TIFF of several pages": frames,
    "1x1": lambda: same(png(header(1, 1), rows=b"\0\1\2\3"), [[[1, 2, 3]]]),
    "100,000x1": long_line,
    "zero width or height": no_size,
    "no bytes": lambda: refused(b"", "empty"),
    "JPEG named .png": lambda: decode_image(encode(RGB, "JPEG")),  # no name reaches the decoder
    "GIF, HEIC, SVG, PDF, a URL": other_formats,
    "truncated file": truncated,
    "more pixels than 50 million": bombs,
    "WebP with a huge canvas": lambda: refused(webp_canvas(16_000, 16_000), "more than the limit"),
    "TIFF with tiles larger than any picture": tiles,
    "JPEG of very many scans": scans,
    "PNG or JPEG of more than 20,000 parts": parts,
    "PNG with two headers": two_headers,
}


def rows_of_the_table():
    table = DOCS.read_text().split("|---|---|\n")[1].split("\n\n")[0]
    return [re.match(r"\| (.*?) \|", line)[1] for line in table.splitlines()]


@pytest.mark.parametrize("row", rows_of_the_table())
def test_each_row_of_the_table_is_true(row):
    assert CASES[row]() is not False


def test_the_table_has_every_case():
    assert rows_of_the_table() == list(CASES)
    assert decode_image(webp_canvas(5, 6)).shape == (6, 5, 3)
