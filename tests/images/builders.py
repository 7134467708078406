"""Pictures put together byte by byte, as no encoder would."""

import io
import struct
import zlib
from itertools import accumulate

from PIL import Image


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


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
    if 322 in given:
        del given[273], given[278], given[279]  # tiles, not strips
    out = b"II*\0" + struct.pack("<IH", 8, len(given))
    for tag in sorted(given):
        out += struct.pack("<HHII", tag, 4, 1, given[tag])
    return (out + b"\0" * 4).ljust(200, b"\0") + data


def tiff_of(values, *, order="<", compression=1, planes=False, meaning=None, turn=1):
    """A TIFF of any numbers in one strip, or in one for each of its planes."""
    height, width, n = (*values.shape, 1)[:3]
    kind, bits = values.dtype.kind, 8 * values.dtype.itemsize
    bodies = [values[:, :, i] for i in range(n)] if planes else [values]
    bodies = [b.astype(f"{order}{kind}{bits // 8}").tobytes() for b in bodies]
    bodies = [zlib.compress(b) for b in bodies] if compression == 8 else bodies
    meaning = (2 if n > 2 else 1) if meaning is None else meaning
    tags = {
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", [bits] * n),
        259: ("H", [compression]),
        262: ("H", [meaning]),
        273: ("I", [0] * len(bodies)),
        274: ("H", [turn]),
        277: ("H", [n]),
        278: ("I", [height]),
        279: ("I", [len(b) for b in bodies]),
        284: ("H", [2 if planes else 1]),
        339: ("H", [{"u": 1, "i": 2, "f": 3, "c": 6}[kind]] * n),
    }
    if n > 3 and meaning in (1, 2):
        tags[338] = ("H", [0] * (n - (3 if meaning == 2 else 1)))
    lists = 8 + 2 + 12 * len(tags) + 4
    start = lists + sum(struct.calcsize(f"<{len(v)}{k}") for k, v in tags.values())
    places = [start + before for before in accumulate([0, *map(len, bodies[:-1])])]
    entries, behind = b"", b""
    for tag, (code, numbers) in sorted((tags | {273: ("I", places)}).items()):
        packed = struct.pack(f"{order}{len(numbers)}{code}", *numbers)
        entries += struct.pack(f"{order}HHI", tag, {"H": 3, "I": 4}[code], len(numbers))
        if len(packed) > 4:
            entries += struct.pack(f"{order}I", lists + len(behind))
            behind += packed
        else:
            entries += packed.ljust(4, b"\0")
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}IH", 8, len(tags))
    return (head + entries + bytes(4) + behind).ljust(start, b"\0") + b"".join(bodies)


def twice(data):
    """A TIFF with its first tag once more, in place of the last."""
    n = struct.unpack_from("<H", data, 8)[0]
    last = 10 + 12 * (n - 1)
    return data[: 10 + 12] + data[10:last] + data[last + 12 :]


def with_strips(width, rows, bodies, *, compression=1, height=None, shared=False):
    """A grey TIFF of strips of so many rows, that may all lie on the first one's bytes."""
    n, sizes = len(bodies), [len(body) for body in bodies]
    height = height or rows * n
    tags = {256: [width], 257: [height], 258: [8], 259: [compression], 262: [1], 277: [1]}
    tags |= {273: [0] * n, 278: [rows], 279: sizes}
    lists = 8 + 2 + 12 * len(tags) + 4
    start = lists + 8 * n
    places = [start] * n if shared else [start + before for before in accumulate([0, *sizes[:-1]])]
    out = b"II*\0" + struct.pack("<IH", 8, len(tags))
    for tag, values in sorted((tags | {273: places}).items()):
        at = lists + 4 * n * (tag == 279)
        out += struct.pack("<HHII", tag, 4, len(values), at if len(values) > 1 else values[0])
    out += bytes(4) + struct.pack(f"<{2 * n}I", *places, *sizes)
    return out + (bodies[0] if shared else b"".join(bodies))


def bmp(width, height, body, compression, bits=8):
    colours = b"".join(bytes((i, i, i, 0)) for i in range(256)) if bits == 8 else b""
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, *(0,) * 5)
    offset = 14 + len(head) + len(colours)
    return b"BM" + struct.pack("<IHHI", offset + len(body), 0, 0, offset) + head + colours + body


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
