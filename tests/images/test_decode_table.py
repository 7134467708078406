"""Every row of the table in docs/images.md: formats, limits, and what a foreign file is called."""

import io
import re
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from dfm_mlflow.errors import ImageError
from dfm_mlflow.images.decode import Decoder, decode_image
from dfm_mlflow.images.depth import BYTES, Depth

from ..campaigns.mutation import encode
from .builders import (
    bmp,
    chunk,
    header,
    png,
    tiff,
    tiff_of,
    twice,
    webp_canvas,
    with_scans,
    with_strips,
)

DOCS = Path(__file__).parents[2] / "docs/images.md"
PIXELS = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
RGB = Image.fromarray(PIXELS)
WIDE = np.array([[0, 128, 129, 257, 4095, 32768, 65535]], np.uint16)
SCALED = [0, 0, 1, 1, 16, 128, 255]
BEFORE, NOW = Decoder(), Decoder(BYTES)  # models of format 1, and those trained on files of 8 bits
RED, BLUE = Image.new("RGB", (4, 3), (255, 0, 0)), Image.new("RGB", (4, 3), (0, 0, 255))


def greys(data, decoder=BEFORE):
    pixels = decoder.decode(data)[0]
    assert (pixels == pixels[:, :, :1]).all()
    return pixels[0, :, 0].tolist()


def same(data, expected):
    np.testing.assert_array_equal(decode_image(data), expected)


def refused(data, words, decoder=NOW):
    for one in {decoder, BEFORE}:
        with pytest.raises(ImageError, match=words):
            one.decode(data)


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


def low_bits():
    twelve, left = Decoder(Depth(12, 0, 4095)), Decoder(Depth(12, 4, 65520))
    dark = WIDE[:, :5]
    for kind in ("PNG", "TIFF"):
        assert greys(encode(Image.fromarray(dark), kind), twelve) == [0, 8, 8, 16, 255]
        assert greys(encode(Image.fromarray(dark << 4), kind), left) == [0, 8, 8, 16, 255]
        assert greys(encode(Image.fromarray(dark), kind)) == SCALED[:5]  # by models before
        refused_by(twelve, encode(Image.fromarray(WIDE), kind), "16-bit data .*12-bit data of 0 to")
        refused_by(left, encode(Image.fromarray(dark), kind), "12-bit data .*reaches 65520: send")


def refused_by(decoder, data, words):
    with pytest.raises(ImageError, match=words):
        decoder.decode(data)


def colour_16_bit():
    values = np.array([[[0x00FF, 0x0100, 0xFFFF]]], np.uint16)
    rows = b"\0" + values.astype(">u2").tobytes()
    files = [png(header(1, 1, 16, 2), rows=rows)]
    files += [tiff_of(values, order=order, compression=c) for order in "<>" for c in (1, 8)]
    for data in files:
        assert NOW.decode(data)[0].tolist() == [[[1, 1, 255]]]
        same(data, [[[0, 1, 255]]])  # by models before, which know the upper byte alone
    pixels, words = Decoder(Depth(12, 0, 4095)).decode(tiff_of(values[:, :, [0, 1, 1]] << 3))
    assert (pixels.tolist(), words) == ([[[127, 128, 128]]], (2048, 4088))
    transparent = png(header(1, 1, 16, 6), rows=rows + b"\0\0")
    assert NOW.decode(transparent)[0].tolist() == [[[1, 1, 255]]]
    refused_by(NOW, png(header(1, 1, 16, 4), rows=rows[:5]), "grey with transparency")


def signed():
    values = np.array([[0, 257, 32767]])
    for kind in ("i2", "i4"):
        assert greys(tiff_of(values.astype(kind))) == [0, 1, 127]
    refused(tiff_of(values.astype("i2") - 5), "signed 16-bit values of -5 to 32762")
    refused(tiff_of(values.astype("i4") - 70_000), "signed 32-bit values of -70000")
    refused(tiff_of(np.array([[3, -3]], "i1")), "signed 8-bit values")


def floating_point():
    values = np.array([[-1, 0, 0.25, 3]], "f4")
    refused(tiff_of(values), "floating-point pixels, whose range is unknown: .*float_range")
    stated = Decoder(BYTES, (-1.0, 3.0))
    assert greys(tiff_of(values), stated) == [0, 64, 80, 255]
    for outside in (values - 1, values + 1, values * np.float32("nan")):
        refused_by(stated, tiff_of(outside), "values of .* float_range=-1:3 is what")


def foreign_tiffs():
    five = np.zeros((3, 2, 5))
    for kind, words in {
        "u1": "5 channels of 8-bit whole numbers",
        "u2": "5 channels of 16-bit whole numbers",
        "i2": "5 channels of 16-bit signed whole numbers",
        "u4": "5 channels of 32-bit whole numbers",
        "f4": "5 channels of 32-bit floating-point numbers",
    }.items():
        refused(tiff_of(five.astype(kind), meaning=1), f"a TIFF of {words}: save it as grey or RGB")
    refused(tiff_of(five[:, :, 0].astype("f8")), "a TIFF of 64-bit floating-point numbers")
    refused(tiff_of(five[:, :, 0].astype("u8")), "a TIFF of 64-bit whole numbers")
    refused(tiff_of(five[:, :, :3].astype("f4")), "3 channels of 32-bit floating-point")


def netpbm():
    for white, kind in ((255, "u1"), (4095, ">u2"), (65535, ">u2")):
        values = np.array([0, white // 2 + 1, white], kind)
        assert greys(b"P5 3 1 %d\n" % white + values.tobytes()) == [0, 128, 255]
        same(b"P6 1 1 %d\n" % white + values.tobytes(), [[[0, 128, 255]]])
    refused_by(NOW, b"P5 2 1 65535\n\0\1\x0f\xff", "12-bit data")


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
    for data, name, remedy in (
        (encode(RGB, "GIF"), "The picture is a GIF, ", "PNG or TIFF"),
        (b"\0\0\0\x18ftypheic" + b"\0" * 40, "The picture is HEIC, ", "convert it to JPEG"),
        (b"\0\0\0\x18ftypavif" + b"\0" * 40, "The picture is AVIF, ", "convert it to JPEG"),
        (b"%PDF-1.7 ", "The picture is a PDF, ", "PNG or TIFF"),
        (bytes(128) + b"DICM" + bytes(9), "The picture is DICOM, ", "PNG or TIFF"),
        (b"\x93NUMPY" + bytes(99), "The picture is a NumPy file, ", "send its array"),
        (b"<svg><image href='file:///etc/passwd'/></svg>", "an SVG", "PNG or TIFF"),
        (b"https://example.com/a.png", "The bytes are ", "convert the file"),
        (b"/etc/passwd", "The bytes are ", "convert the file"),
    ):
        refused(data, f"{name}.*not a picture in one of the formats PNG, .*PPM: .*{remedy}")
    kind = encode(RGB, "JPEG")
    start = kind.index(b"\xff\xc0")
    refused(kind[: start + 4] + b"\x0c" + kind[start + 5 :], "JPEG of 12 bits")


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


def overlaps():
    refused(twice(tiff(9, 9, 8, b"\0" * 99)), "two tags 256")
    many = {f"_{tag}": 0 for tag in range(30_000, 30_016)}
    data = tiff(9, 9, 8, b"\0" * 99, **many)
    for tag in range(30_000, 30_016):  # all hold the same 250 bytes
        entry = data.index(struct.pack("<HH", tag, 4))
        data = data[:entry] + struct.pack("<HHII", tag, 7, 250, 0) + data[entry + 12 :]
    refused(data, "tags that overlap")
    rows = zlib.compress(b"\0" * 99)
    data = with_strips(10, 1, [rows] * 2, compression=8)
    assert decode_image(data).shape == (2, 10, 3)
    refused(with_strips(10, 1, [rows] * 50, compression=8, shared=True), "strips that overlap")
    # Pillow lays what is too many over the picture again and again
    refused(with_strips(10, 1, [b"\0" * 10] * 40, height=2), "strips that overlap")


def scans_in_a_tiff():
    one, many = encode(Image.new("L", (64, 64)), "JPEG"), with_scans(40)
    assert decode_image(with_strips(64, 64, [one] * 3, compression=7)).shape == (192, 64, 3)
    refused(with_strips(64, 64, [one, many], compression=7), "scans, more than the limit of 12")
    refused(with_strips(64, 64, [many], compression=7), "scans, more than the limit of 12")
    padded = with_strips(64, 64, [many] * 7, compression=7, shared=True) + b"\0" * 7 * len(many)
    refused(padded, "scans, more than the limit of 12")


def strips():
    assert decode_image(with_strips(1, 1, [b"\1"] * 3000)).shape == (3000, 1, 3)
    refused(with_strips(1, 1, [b"\1"] * 50_001), "parts inside")
    refused(with_strips(1, 1, [zlib.compress(b"\1")] * 50_001, compression=8), "parts inside")


def run_lengths():
    for compression, body in ((1, b"\1\5\0\0"), (2, b"\1\5\0\0"), (1, b"\0\2\xff\xff")):
        refused(bmp(10_000_000, 1, body, compression), "run-length")
    for body in (b"\0\2\xff\xff" * 9, b"\5\1" * 9 + b"\0\1"):  # steps beyond the picture
        refused(bmp(4, 4, body, 1), "run-length")


def profiles_and_texts():
    rows = b"\0\1\2\3"
    profile, texts = chunk(b"iCCP", b"x\0\0" + zlib.compress(b"p")), (b"zTXt", b"iTXt")
    same(png(header(1, 1), rows=rows, more=profile), [[[1, 2, 3]]])
    refused(png(header(1, 1), rows=rows, more=profile * 2), "1 colour profiles inside")
    for kind in texts:
        one = chunk(kind, b"a\0\0" + zlib.compress(b"t"))
        same(png(header(1, 1), rows=rows, more=one * 64), [[[1, 2, 3]]])
        refused(png(header(1, 1), rows=rows, more=one * 65), "64 compressed texts inside")
    behind = png(header(1, 1), rows=rows)
    refused(behind[:-12] + profile * 2 + behind[-12:], "1 colour profiles inside")
    same(behind + profile * 2, [[[1, 2, 3]]])


def segments():
    data = encode(RGB, "JPEG")

    def with_segment(marker, contents, n, before=b""):
        segment = b"\xff" + bytes([marker]) + struct.pack(">H", len(contents) + 2) + contents
        return data[:2] + before + segment * n + data[2:]

    exif = b"Exif\0\0" + b"\0" * 20
    assert decode_image(with_segment(0xE1, exif, 64)).shape == (9, 7, 3)
    for before in (b"", b"\xff\xd9", b"\xff\xf0\xff\xff", b"\xff\xd0\0\0\xff\xff"):
        refused(with_segment(0xE1, exif, 65, before), "64 Exif segments inside")  # Pillow reads on
    assert decode_image(with_segment(0xE1, b"else", 99)).shape == (9, 7, 3)
    blocks = b"Photoshop 3.0\0" + b"8BIM\0\0\0\0\0\0\0\0" * 5300
    for marker, contents in ((0xED, blocks), (0xDB, (b"\0" + bytes(64)) * 1000)):
        assert decode_image(with_segment(marker, contents, 2)).shape == (9, 7, 3)
        refused(with_segment(marker, contents, 20), "bytes of tables inside")


def two_headers():
    same(png(header(20_000, 20_000), header(1, 1), rows=b"\0\1\2\3"), [[[1, 2, 3]]])
    rows = b"\0\1\2\3"
    same(png(header(1, 1), header(1, 1, 8, 0), rows=rows), [[[1, 1, 1]]])
    longer = chunk(b"IHDR", header(1, 1)[8:21] + chunk(b"IDAT", zlib.compress(b"\0\7\7\7")))
    same(png(longer, rows=rows), [[[1, 2, 3]]])
    pixels = zlib.compress(rows)
    halves = chunk(b"IDAT", pixels[:5]), chunk(b"IDAT", pixels[5:])
    whole = png(header(1, 1), rows=rows)
    at, end = whole.index(b"IDAT") - 4, whole[-12:]
    same(whole[:at] + b"".join(halves) + end, [[[1, 2, 3]]])
    refused(whole[:at] + chunk(b"tEXt", b"a\0b").join(halves) + end, "damaged")
    for late in (chunk(b"eXIf", b"a\0\0\1"), chunk(b"tRNS", b"a\0\0\1")):  # Pillow reads these
        refused(whole[:-12] + late + end, "damaged")
    round_again = struct.pack(">I4sI", 2**32 - 12, b"abCd", 0)
    refused(whole[:-12] + round_again + end, "damaged")


def one_row():
    wide = bmp(10_000_000, 1, b"\1" * 30_000_000, 0, 24)
    for data in (wide, tiff(10_000_000, 1, 8, b"\1" * 10_000_000)):
        begin = time.process_time()
        assert (decode_image(data) == 1).all()
        assert time.process_time() - begin < 2  # 0.3 s; with a copy for every block 5 and 0.8 s


def sides():
    for size in ((1, 13_000_000), (13_000_000, 1)):
        refused(tiff(*size, 8, b""), "a side of 13000000 pixels, more than the limit of 12500000")
        refused(png(header(*size)), "a side of")
        refused(bmp(*size, b"", 0, 24), "a side of")


CASES = {
    "PNG, BMP, TIFF, lossless WebP in 8-bit colour": colour_8_bit,
    "JPEG, lossy WebP": lossy,
    "grey in 1, 2, 4 or 8 bits": grey,
    "16-bit grey PNG or TIFF": grey_16_bit,
    "12-bit grey TIFF (packed)": grey_12_bit,
    "10- or 12-bit values in 16-bit words": low_bits,
    "grey TIFF whose 0 is white": white_is_zero,
    "16-bit colour PNG or TIFF": colour_16_bit,
    "32-bit grey TIFF, 0 to 65535": grey_32_bit,
    "32-bit grey TIFF beyond": lambda: refused(
        tiff(1, 1, 32, struct.pack("<I", 65536)), "32-bit pixels outside 0 to 65535"
    ),
    "signed TIFF": signed,
    "floating-point TIFF": floating_point,
    "TIFF of 5 bands, of 64 bits, of floating-point colours": foreign_tiffs,
    "TIFF of 16-bit colours in separate planes": lambda: refused(
        tiff_of(np.zeros((3, 2, 3), "u2"), planes=True), "16-bit colours in separate planes"
    ),
    "PGM and PPM (P5, P6)": netpbm,
    "other kinds of netpbm (plain text, bitmaps, floats)": lambda: refused(
        b"P2\n1 1\n255\n7\n", "save it as a binary PGM"
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
    "TIFF whose tags or strips overlap, or with a tag twice": overlaps,
    "TIFF with more than 12 scans in a strip of JPEG": scans_in_a_tiff,
    "TIFF of more than 50,000 strips or tiles": strips,
    "BMP with run-length encoding": run_lengths,
    "JPEG of very many scans": scans,
    "PNG or JPEG of more than 20,000 parts": parts,
    "PNG with two colour profiles, or 65 compressed texts": profiles_and_texts,
    "JPEG of 65 Exif segments, or 1 MiB of tables": segments,
    "PNG with two headers, a longer one, or chunks amid the pixels": two_headers,
    "one row of 10 million pixels": one_row,
    "a side of more than 12.5 million pixels": sides,
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
