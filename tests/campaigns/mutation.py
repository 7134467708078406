"""Synthetic pictures in every format and mode, and ways to damage them."""

import random
import struct
import zlib
from functools import cache

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..images.builders import (
    bmp,
    chunk,
    encode,
    header,
    png,
    tiff_of,
    with_scans,
    with_strips,
)

LARGE = 0.1  # of the pictures: above what libdeflate inflates, in ten times the time of a small one
INTERESTING = (
    0,
    1,
    2,
    7,
    8,
    15,
    16,
    31,
    32,
    64,
    127,
    128,
    255,
    256,
    32767,
    32768,
    65535,
    2**24 - 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
)


@cache
def seeds() -> dict[str, bytes]:
    """Give whole pictures of a few kilobytes by name."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:45, :60]
    base = 120 + 60 * np.sin(x / 5)[:, :, None] + 30 * np.cos(y / 7)[:, :, None]
    rgb = Image.fromarray((base + rng.normal(0, 6, (45, 60, 3))).clip(0, 255).astype(np.uint8))
    wide = Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257)
    turned = Image.Exif()
    turned[0x0112] = 6
    found = {
        f"png {mode}": encode(rgb.convert(mode), "PNG")
        for mode in ("1", "L", "P", "RGB", "RGBA", "LA")
    }
    found |= {
        "png 16 bit": encode(wide, "PNG"),
        "png rotated": encode(rgb, "PNG", exif=turned),
        "png transparent": encode(rgb.convert("P"), "PNG", transparency=3),
        "png animated": encode(rgb, "PNG", save_all=True, append_images=[rgb.rotate(90)]),
        "jpeg": encode(rgb, "JPEG", quality=90),
        "jpeg grey": encode(rgb.convert("L"), "JPEG"),
        "jpeg progressive": encode(rgb, "JPEG", progressive=True),
        "jpeg CMYK": encode(rgb.convert("CMYK"), "JPEG"),
        "jpeg rotated": encode(rgb, "JPEG", exif=turned, subsampling=0),
        "tiff 16 bit": encode(wide, "TIFF"),
        "tiff CMYK": encode(rgb.convert("CMYK"), "TIFF"),
        "tiff pages": encode(rgb, "TIFF", save_all=True, append_images=[rgb.rotate(90)]),
        "tiff tiled": encode(rgb, "TIFF", compression="tiff_lzw", tiffinfo={278: 7}),
        "bmp": encode(rgb, "BMP"),
        "bmp palette": encode(rgb.convert("P"), "BMP"),
        "png 16 bit colour": png(header(60, 45, 16, 2), rows=wide_rows(rgb)),
        "tiff 16 bit colour": tiff_of(np.asarray(rgb).astype(np.uint16) * 257, compression=8),
        "tiff float": tiff_of(np.asarray(rgb.convert("L")).astype(np.float32)),
        "tiff signed": tiff_of(np.asarray(rgb.convert("L")).astype(np.int16)),
        "tiff bands": tiff_of(np.dstack([np.asarray(rgb)] * 2)[:, :, :5], meaning=1),
        "pgm": b"P5\n60 45\n255\n" + np.asarray(rgb.convert("L")).tobytes(),
        "pgm 12 bit": b"P5 60 45 4095\n" + (np.asarray(wide) >> 4).astype(">u2").tobytes(),
        "ppm": b"P6\n# made by a camera\n60 45\n255\n" + np.asarray(rgb).tobytes(),
        "webp": encode(rgb, "WEBP", quality=80),
        "webp lossless": encode(rgb, "WEBP", lossless=True),
        "webp alpha": encode(rgb.convert("RGBA"), "WEBP", exif=turned),
        "webp animated": encode(rgb, "WEBP", save_all=True, append_images=[rgb.rotate(90)]),
    }
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"):
        found[f"tiff {compression}"] = encode(rgb, "TIFF", compression=compression)
    return found | _laborious(rgb, turned)


def wide_rows(rgb: Image.Image) -> bytes:
    """Rows of a PNG of 16-bit colours, without filters."""
    values = np.asarray(rgb).astype(">u2") * 257
    return b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)


def _laborious(rgb: Image.Image, turned: Image.Exif) -> dict[str, bytes]:
    """Pictures with parts that a decoder may have to go over often."""
    texts = PngInfo()
    for key in ("Raw profile type exif", "Comment"):
        texts.add_text(key, "x" * 9000, zip=True)
        texts.add_itxt(key, "y" * 9000, zip=True)
    exif, jpeg = turned.tobytes(), encode(rgb, "JPEG", icc_profile=b"p" * 900)
    exif = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    blocks = b"\xff\xed\0\x36Photoshop 3.0\0" + b"8BIM\3\xed\0\0\0\0\0\0" * 3 + b"\0\0"
    grey = encode(rgb.convert("L"), "JPEG")
    return {
        "png profile": encode(rgb, "PNG", icc_profile=b"\0" * 20_000, pnginfo=texts),
        "jpeg Exif": jpeg[:2] + exif * 3 + blocks + jpeg[2:],
        "jpeg scans": with_scans(20),
        "bmp run-length": bmp(60, 45, b"\x3c\5\0\0" * 45 + b"\0\1", 1),
        "bmp row": bmp(3000, 1, b"\7" * 9000, 0, 24),
        "tiff jpeg strips": with_strips(60, 45, [grey, grey], compression=7),
        "tiff jpeg scans": with_strips(64, 64, [with_scans(3)] * 2, compression=7),
        "tiff strips": with_strips(30, 1, [zlib.compress(b"\7" * 30)] * 40, compression=8),
        "tiff raw strips": with_strips(30, 1, [b"\7" * 30] * 40),
    }


@cache
def large_seeds() -> dict[str, bytes]:
    """Give whole pictures by name, of so many bytes that their PNGs are inflated apart."""
    rng = np.random.default_rng(1)
    noise = {
        mode: Image.fromarray(rng.integers(0, 256, (side, side, n), dtype=np.uint8).squeeze())
        for mode, side, n in (("L", 600, 1), ("RGB", 350, 3), ("RGBA", 300, 4))
    }
    wide = Image.fromarray(rng.integers(0, 65536, (420, 420)).astype(np.uint16))
    turned = Image.Exif()
    turned[0x0112] = 8
    found = {f"large png {mode}": encode(image, "PNG") for mode, image in noise.items()}
    return found | {
        "large png 16 bit": encode(wide, "PNG"),
        "large png P": encode(noise["L"].convert("P"), "PNG"),
        "large png rotated": encode(noise["RGB"], "PNG", exif=turned),
        "large png smooth": encode(noise["L"].resize((700, 700)).convert("RGB"), "PNG"),
        "large png one IDAT": _png(_joined(_parts(found["large png RGB"]))),
        "large png small IDATs": _png(_split(_joined(_parts(found["large png RGBA"])), 8192)),
        "large jpeg": encode(noise["RGB"].resize((900, 900)), "JPEG", quality=95),
        "large tiff": encode(noise["RGB"], "TIFF", compression="tiff_adobe_deflate"),
    }


def mutate(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """Damage bytes in one to six ways; heads, where sizes stand, more often than the rest."""
    if data.startswith(b"\x89PNG") and rng.random() < 0.3:
        return _png(_rearranged(rng, _parts(data)))
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        place = rng.randrange(min(len(out), 160) if rng.random() < 0.6 else len(out)) if out else 0
        _damage(rng, out, place, others)
    if out.startswith(b"\x89PNG") and rng.random() < 0.7:
        return with_checksums(bytes(out))
    return bytes(out)


def _damage(rng: random.Random, out: bytearray, place: int, others: list[bytes]) -> None:
    kind = rng.randrange(8)
    if kind == 0 and out:
        out[place] ^= 1 << rng.randrange(8)
    elif kind == 1 and out:
        out[place] = rng.randrange(256)
    elif kind in (2, 3):  # a number that sizes are made of
        size, order = rng.choice((2, 4)), rng.choice("<>")
        value = rng.choice((*INTERESTING, rng.randrange(2**32))) & (2 ** (8 * size) - 1)
        out[place : place + size] = struct.pack(order + {2: "H", 4: "I"}[size], value)
    elif kind == 4:
        del out[place:]
    elif kind == 5:
        del out[place : place + rng.randrange(1, 64)]
    elif kind == 6:  # a part once more, up to many times
        part = bytes(out[place : place + rng.randrange(1, 200)])
        out[place:place] = part * rng.choice((1, 2, 50))
    else:
        other = rng.choice(others)
        start = rng.randrange(len(other))
        out[place : place + 40] = other[start : start + rng.randrange(1, 300)]


def _parts(data: bytes) -> list[tuple[bytes, bytes]]:
    """Kinds and contents of the chunks of a whole PNG."""
    parts, place = [], 8
    while place < len(data):
        (length,) = struct.unpack_from(">I", data, place)
        parts.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += length + 12
    return parts


def _png(parts: list[tuple[bytes, bytes]]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def _joined(parts: list) -> list:
    """The same chunks with one IDAT."""
    pixels = b"".join(data for kind, data in parts if kind == b"IDAT")
    others = [part for part in parts if part[0] != b"IDAT"]
    return [*others[:-1], (b"IDAT", pixels), others[-1]]


def _split(parts: list, size: int) -> list:
    """The same chunks, each IDAT of them in pieces."""
    return [
        (kind, data[i : i + size])
        for kind, data in parts
        for i in range(0, max(len(data), 1), size if kind == b"IDAT" else max(len(data), 1))
    ]


def _rearranged(rng: random.Random, parts: list) -> list:
    """Chunks in another order, twice, away, in pieces, longer, or with another header."""
    parts = list(parts)
    for _ in range(rng.choice((1, 1, 2, 3))):
        kind, i, j = rng.randrange(8), rng.randrange(len(parts)), rng.randrange(len(parts))
        if kind == 0:
            parts[i], parts[j] = parts[j], parts[i]
        elif kind == 1:
            parts.insert(j, parts[i])
        elif kind == 2 and len(parts) > 1:
            del parts[i]
        elif kind == 3:
            parts = _split(parts, rng.choice((0x7FFF, 1000, 65536)))
        elif kind == 4:
            parts = _split(_joined(parts), 1 << 30) if parts[-1][0] == b"IEND" else parts
        elif kind == 5:
            parts.insert(i, (rng.choice((b"tEXt", b"eXIf", b"tRNS", b"gAMA", b"IDAT")), b"a\0\0\1"))
        elif kind == 6:
            name, data = parts[i]
            parts[i] = name, data + bytes(rng.randrange(1, 20))
        else:
            head = bytearray(parts[0][1].ljust(13, b"\0"))
            head[rng.choice((3, 7, 8, 9, 12))] = rng.choice(
                (0, 1, 2, 3, 4, 6, 8, 16, rng.randrange(256))
            )
            parts[rng.choice((0, 0, i))] = (b"IHDR", bytes(head))
    return parts


def with_checksums(data: bytes) -> bytes:
    """Give a PNG's chunks the checksums that they should have, so that decoders read on."""
    out, place = bytearray(data), 8
    while place + 12 <= len(out):
        (length,) = struct.unpack_from(">I", out, place)
        end = place + 8 + length
        if end + 4 > len(out):
            break
        struct.pack_into(">I", out, end, zlib.crc32(out[place + 4 : end]))
        place = end + 4
    return bytes(out)


def picture(seed: int, index: int) -> tuple[str, bytes]:
    """Give the damaged picture of a number, the same in every process."""
    rng = random.Random(f"{seed}/{index}")
    whole = large_seeds() if rng.random() < LARGE else seeds()
    name = rng.choice(list(whole))
    return name, mutate(rng, whole[name], list(seeds().values()))
