"""What a file costs beside its pixels, looked up before a decoder sees it.

Decoders trust that a file has few parts: they walk every chunk of a PNG in Python, go over the
whole picture once for each scan of a progressive JPEG, and allocate the canvas of a WebP on sight.
"""

import struct
from collections.abc import Iterator

from dfm_mlflow.errors import ImageError

MAX_PARTS = 20_000  # chunks of a PNG, segments of a JPEG; 64 MiB in libpng's 8 KiB chunks are 8192
MAX_SCANS = 100  # of a progressive JPEG; encoders write about 10, optimisers up to 64
SCANS_OF_LARGEST = 12  # passes over a picture of the most pixels that are allowed
MAX_JUNK = 1 << 16  # bytes between the segments of a JPEG

# Where Pillow looks for an orientation: chunks of a PNG, and keywords of its plain texts.
_MAY_TURN = (b"eXIf", b"iTXt", b"zTXt")
_KEYWORDS = (b"Raw profile type", b"XML:com.adobe.xmp", b"exif\0", b"xmp\0")
_EOI, _SOS, _FILL = 0xD9, 0xDA, 0xFF
_ALONE = {0x01, *range(0xD0, _EOI + 1)}  # markers without a length


def check_parts(data: bytes) -> None:
    """Refuse a PNG or JPEG of more parts than any encoder writes.

    Raises
    ------
    ImageError
    """
    if data.startswith(b"\x89PNG"):
        n = _count_chunks(data)
    elif data.startswith(b"\xff\xd8"):
        n = _count_segments(data)
    else:
        return
    if n > MAX_PARTS:
        raise ImageError(f"The image has more than {MAX_PARTS} parts inside: save it anew.")


def check_scans(data: bytes, pixels: int, max_pixels: int) -> None:
    """Refuse a JPEG that makes the decoder go over its pixels again and again.

    Raises
    ------
    ImageError
    """
    scans = data.count(b"\xff\xda")  # within a scan 0xff is followed by 0
    most = min(MAX_SCANS, max(1, SCANS_OF_LARGEST * max_pixels // pixels))
    if scans > most:
        raise ImageError(
            f"The image has {scans} scans, more than the limit of {most} at its size: save it anew."
        )


def webp_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a WebP's canvas; None for anything else."""
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
    """Whether a PNG has a chunk that may hold an orientation, in the clear or compressed."""
    return any(
        kind in _MAY_TURN or (kind == b"tEXt" and data.startswith(_KEYWORDS, place))
        for kind, place in _chunks(data)
    )


def _chunks(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Kind of each chunk of a PNG, and where its contents begin."""
    place = 8
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        yield kind, place + 8
        place += length + 12


def _count_chunks(data: bytes) -> int:
    """Chunks up to the end of the picture, counted no further than needed."""
    n = 0
    for kind, _ in _chunks(data):
        n += 1
        if kind == b"IEND" or n > MAX_PARTS:
            break
    return n


def _count_segments(data: bytes) -> int:
    """Segments before the first scan, counted no further than needed."""
    place, n, junk = 2, 0, 0
    while place + 4 <= len(data) and n <= MAX_PARTS:
        marker = data[place + 1]
        if data[place] != 0xFF or marker == _FILL:  # decoders look for the next marker
            there = data.find(b"\xff", place + 1)
            junk += max(there, place) - place
            if there < 0 or junk > MAX_JUNK:
                raise ImageError("The image is damaged and cannot be decoded: replace it.")
            place = there
            continue
        n += 1
        if marker in (_SOS, _EOI):
            break
        place += 2 if marker in _ALONE else 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return n
