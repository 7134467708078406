"""Small synthetic pictures in every format and mode, and ways to damage them."""

import io
import random
import struct
import zlib
from functools import cache

import numpy as np
from PIL import Image

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


def encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@cache
def seeds() -> dict[str, bytes]:
    """Give whole pictures by name."""
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
        "webp": encode(rgb, "WEBP", quality=80),
        "webp lossless": encode(rgb, "WEBP", lossless=True),
        "webp alpha": encode(rgb.convert("RGBA"), "WEBP", exif=turned),
        "webp animated": encode(rgb, "WEBP", save_all=True, append_images=[rgb.rotate(90)]),
    }
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"):
        found[f"tiff {compression}"] = encode(rgb, "TIFF", compression=compression)
    return found


def mutate(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """Damage bytes in one to six ways; heads, where sizes stand, more often than the rest."""
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
    whole = seeds()
    name = rng.choice(list(whole))
    return name, mutate(rng, whole[name], list(whole.values()))
