"""What a TIFF costs beside its pixels, looked up in its directory before a decoder sees it.

Pillow reads the directory and makes a tile of every strip; libtiff then reads the directory once
more and decodes the strips, each for itself, though they may share their bytes.
"""

import struct
from typing import NamedTuple

import numpy as np

from dfm_mlflow.errors import ImageError

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"MM*\0", b"II\0*")  # Pillow reads the last two
MAX_TAGS = 4096  # of a directory; cameras write about 50
MAX_STRIPS = 50_000  # or tiles; Pillow takes 6 microseconds for each
MAX_SCANS = 12  # of a JPEG inside; the standard wants one for each colour

_COMPRESSION, _RAW, _JPEGS = 259, 1, (6, 7)
_BITS, _CHANNELS, _FORMAT = 258, 277, 339
_FORMATS = {1: "whole numbers", 2: "signed whole numbers", 3: "floating-point numbers"}
_OFFSETS, _LENGTHS = (273, 324), (279, 325)  # of strips, or of tiles
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
_NUMBERS = {1: "u1", 3: "u2", 4: "u4", 6: "u1", 8: "u2", 9: "u4", 13: "u4", 16: "u8", 17: "u8"}


class _Entry(NamedTuple):
    kind: int
    n: int
    place: int  # of its values


def check_tiff(data: bytes) -> None:
    """Refuse `data`, a TIFF, whose directory makes a decoder work again and again."""
    if data.startswith(b"MM\0+"):  # Pillow reads another directory there than libtiff
        raise ImageError("The picture is a big-endian BigTIFF: save it as little-endian.")
    try:
        _check_strips(data, _directory(data))
    except ImageError:
        raise
    except (struct.error, ValueError):  # something lies behind the end
        raise ImageError("The picture is damaged and cannot be decoded: replace it.") from None


def _directory(data: bytes) -> dict[int, _Entry]:
    """Give the tags of the first picture."""
    order, big = ">" if data[:1] == b"M" else "<", data[2] == 43
    wide, entry, inside = ("Q", "HHQ", 8) if big else ("I", "HHI", 4)
    (place,) = struct.unpack_from(order + wide, data, 8 if big else 4)
    count = order + ("Q" if big else "H")
    (n,) = struct.unpack_from(count, data, place)
    if n > MAX_TAGS:
        raise ImageError(f"The picture has more than {MAX_TAGS} tags inside: re-encode it.")
    tags: dict[int, _Entry] = {}
    place, total = place + struct.calcsize(count), 0
    for _ in range(n):
        tag, kind, values = struct.unpack_from(order + entry, data, place)
        place += struct.calcsize(order + entry)
        size = values * _SIZES.get(kind, 0)
        where = place
        if size > inside:
            total += size
            (where,) = struct.unpack_from(order + wide, data, place)
        place += inside
        if tag in tags:  # Pillow and libtiff need not take the same of them
            raise ImageError(f"The picture has two tags {tag}: re-encode it.")
        tags[tag] = _Entry(kind, values, where)
    if total > len(data):  # Pillow before 13 keeps the same bytes for every tag
        raise ImageError("The picture has tags that overlap: re-encode it.")
    return tags


def _check_strips(data: bytes, tags: dict[int, _Entry]) -> None:
    places, sizes = (_numbers(data, tags, *either) for either in (_OFFSETS, _LENGTHS))
    compression = _numbers(data, tags, _COMPRESSION)
    if _COMPRESSION not in tags or compression == [_RAW]:  # Pillow asks for no lengths
        return
    if len(places) == 1:  # libtiff may take all that follows
        sizes = [len(data)]
    if sum(sizes) > len(data):
        raise ImageError("The picture has strips that overlap: re-encode it.")
    if not set(compression) & set(_JPEGS):
        return
    for place, size in zip(places, sizes, strict=False):
        scans = data.count(b"\xff\xda", place, place + size)
        if scans > MAX_SCANS:
            raise ImageError(
                f"The picture has {scans} scans, more than the limit of {MAX_SCANS} in a strip of "
                "a TIFF: re-encode it."
            )


def _numbers(data: bytes, tags: dict[int, _Entry], *either: int) -> list[int]:
    """Whole numbers of the one tag of these that is there; none if they are of another kind."""
    there = [tags[tag] for tag in either if tag in tags]
    if len(there) > 1:
        raise ImageError("The picture has strips and tiles: re-encode it.")
    kind, n, place = there[0] if there else (0, 0, 0)
    if n > MAX_STRIPS:
        raise ImageError(f"The picture has more than {MAX_STRIPS} parts inside: re-encode it.")
    if kind not in _NUMBERS or not n:
        return []
    order = ">" if data[:1] == b"M" else "<"
    numbers: list[int] = np.frombuffer(data, order + _NUMBERS[kind], n, place).tolist()
    return numbers


def kind_of(data: bytes) -> str:
    """Say what numbers the first picture of a TIFF holds; empty where that cannot be read."""
    try:
        tags = _directory(data)
        bits, channels, formats, meaning, compression = (
            _numbers(data, tags, tag) or [default]
            for tag, default in ((_BITS, 1), (_CHANNELS, 1), (_FORMAT, 1), (262, 0), (259, 1))
        )
    except (ImageError, struct.error, ValueError):
        return ""
    what = _FORMATS.get(formats[0], "unknown numbers")
    if channels[0] in (1, 3) and bits[0] in (8, 16) and formats[0] == 1:
        return f"a kind that is not read (photometric {meaning[0]}, compression {compression[0]})"
    many = f"{channels[0]} channels of " if channels[0] != 1 else ""
    return f"{many}{bits[0]}-bit {what}"
