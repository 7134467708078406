"""What a file costs beside its pixels, looked up before a decoder sees it.

Decoders trust that a file has few parts: they walk every chunk of a PNG in Python, go over the
whole picture once for each scan of a progressive JPEG, and allocate the canvas of a WebP on sight.
TIFFs have a module of their own.
"""

import struct
from collections.abc import Iterator

from dfm_mlflow.errors import ImageError
from dfm_mlflow.images.tiff import TIFF, check_tiff

MAX_PARTS = 20_000  # chunks of a PNG, segments of a JPEG; 64 MiB in libpng's 8 KiB chunks are 8192
MAX_SCANS = 100  # of a progressive JPEG; encoders write about 10, optimisers up to 64
SCANS_OF_LARGEST = 12  # passes over a picture of the most pixels that are allowed
MAX_JUNK = 1 << 16  # bytes between the segments of a JPEG
MAX_TEXTS = 64  # compressed ones of a PNG, of which Pillow inflates 1 MiB each
MAX_EXIF = 64  # segments of a JPEG, which Pillow joins one by one
MAX_TABLES = 1 << 20  # bytes of a JPEG's segments that Pillow reads in a loop

_COMPRESSED = (b"iTXt", b"zTXt")

# Where Pillow looks for an orientation: chunks of a PNG, and keywords of its plain texts.
_MAY_TURN = (b"eXIf", b"iTXt", b"zTXt")
_KEYWORDS = (b"Raw profile type", b"XML:com.adobe.xmp", b"exif\0", b"xmp\0")
_BEHIND = (b"tEXt", b"tIME", b"IEND")  # what may follow the pixels and change nothing
_ANIMATION = {b"acTL", b"fcTL", b"fdAT"}
_LOWEST, _SOS, _FILL = 0xC0, 0xDA, 0xFF  # Pillow knows no marker below the lowest
_ALONE = {0xC8, *range(0xD0, _SOS), *range(0xF0, 0xFE)}  # without a length, as Pillow reads them
_TABLES = {0xDB, 0xDE, 0xED, *range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_APP1 = 0xE1


def check_parts(data: bytes) -> None:
    """Refuse `data`, a PNG or JPEG, of more parts than any encoder writes."""
    if data.startswith(b"\x89PNG"):
        _check_chunks(data)
    elif data.startswith(b"\xff\xd8"):
        _check_segments(data)
    elif data.startswith(TIFF):
        check_tiff(data)


def check_scans(data: bytes, pixels: int, max_pixels: int) -> None:
    """Refuse a JPEG that makes the decoder go over its pixels again and again."""
    scans = data.count(b"\xff\xda")  # within a scan 0xff is followed by 0
    most = min(MAX_SCANS, max(1, SCANS_OF_LARGEST * max_pixels // pixels))
    if scans > most:
        raise ImageError(
            f"The picture has {scans} scans, more than the limit of {most} at its size: re-encode "
            "it."
        )


def webp_size(data: bytes) -> tuple[int, int] | None:
    """Width and height in pixels of a WebP's canvas, from its `data`; None for anything else."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    kind = data[12:16]
    if kind == b"VP8X":
        return (
            int.from_bytes(data[24:27], "little") + 1,
            int.from_bytes(data[27:30], "little") + 1,
        )
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def may_turn(data: bytes) -> bool:
    """Whether `data`, a PNG, has a chunk that may hold an orientation, plain or compressed."""
    return any(_turns(data, kind, place) for kind, place, _ in _chunks(data))


def _turns(data: bytes, kind: bytes, place: int) -> bool:
    return kind in _MAY_TURN or (kind == b"tEXt" and data.startswith(_KEYWORDS, place))


def is_plain(data: bytes) -> bool:
    """Whether `data`, a PNG, is laid out so that every decoder reads the same of it."""
    parts = list(_chunks(data))
    kinds = [kind for kind, _, _ in parts]
    n = kinds.count(b"IDAT")
    if not n or kinds[0] != b"IHDR" or parts[0][2] != 13 or kinds[-1] != b"IEND":
        return False
    if kinds.count(b"IHDR") > 1 or not _ANIMATION.isdisjoint(kinds):
        return False
    end = kinds.index(b"IDAT") + n
    return kinds[end - n : end] == [b"IDAT"] * n and all(
        kind in _BEHIND and not _turns(data, kind, place) for kind, place, _ in parts[end:]
    )


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind of each chunk of a PNG up to its end, where its contents begin, and their length."""
    place, kind = 8, b""
    while place + 8 <= len(data) and kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, place)
        yield kind, place + 8, length
        place += length + 12


def _check_chunks(data: bytes) -> None:
    profiles = texts = 0
    for n, (kind, _, _) in enumerate(_chunks(data), 1):
        profiles += kind == b"iCCP"
        texts += kind in _COMPRESSED
        if n > MAX_PARTS:
            raise _too_many("parts", MAX_PARTS)
        if profiles > 1:
            raise _too_many("colour profiles", 1)
        if texts > MAX_TEXTS:
            raise _too_many("compressed texts", MAX_TEXTS)


def _check_segments(data: bytes) -> None:
    """Go over a JPEG up to its first scan, from marker to marker as Pillow does."""
    place, n, junk, exif, tables = 2, 0, 0, 0, 0
    while place + 4 <= len(data):
        marker = data[place + 1]
        if data[place] != 0xFF or marker in (0, _FILL):  # decoders look for the next marker
            there = data.find(b"\xff", place + 1)
            junk += max(there, place) - place
            if there < 0 or junk > MAX_JUNK:
                raise ImageError("The picture is damaged and cannot be decoded: replace it.")
            place = there
            continue
        n += 1
        if n > MAX_PARTS:
            raise _too_many("parts", MAX_PARTS)
        if marker == _SOS or marker < _LOWEST:
            break
        if marker in _ALONE:
            place += 2
            continue
        length = max(2, int.from_bytes(data[place + 2 : place + 4], "big"))
        exif += marker == _APP1 and data.startswith(b"Exif\0\0", place + 4)
        tables += length if marker in _TABLES else 0
        if exif > MAX_EXIF:
            raise _too_many("Exif segments", MAX_EXIF)
        if tables > MAX_TABLES:
            raise _too_many("bytes of tables", MAX_TABLES)
        place += 2 + length


def _too_many(what: str, most: int) -> ImageError:
    return ImageError(f"The picture has more than {most} {what} inside: re-encode it.")
