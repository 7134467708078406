"""PGM and PPM, which many cameras and line-scan grabbers write: a head of text, then raw values.

Pillow reads them, too, but scales values of more than 8 bits before anybody can look at them, and
goes over the plain kinds, whose values are text, in Python.
"""

import re
from typing import NamedTuple

import numpy as np

from dfm_mlflow.errors import ImageError

_KINDS = {b"P5": 1, b"P6": 3}
_OTHERS = (b"P1", b"P2", b"P3", b"P4", b"P7", b"PF", b"Pf")
_SPACE = b" \t\r\n\v\f"
_HEAD = 4096  # bytes within which the values must begin
# Three numbers, with white space and comments before each, and one white space behind.
_NUMBER = rb"(?:[ \t\r\n\v\f]|#[^\r\n]*[\r\n])+(\d{1,9})"
_NUMBERS = re.compile(rb"P[56]" + _NUMBER * 3 + rb"[ \t\r\n\v\f]")


class Head(NamedTuple):
    """What stands before the values."""

    size: tuple[int, int]  # width and height in pixels
    channels: int  # 1 or 3
    white: int  # value that means white, 1 to 65535
    place: int  # where the values begin


def is_netpbm(data: bytes) -> bool:
    """Whether `data` begins as any file of the family does."""
    return data[:2] in (*_KINDS, *_OTHERS) and data[2:3] in [_SPACE[i : i + 1] for i in range(6)]


def head_of(data: bytes) -> Head:
    """Read the head of a PGM or PPM."""
    if data[:2] in _OTHERS:
        raise ImageError(
            f"The picture is netpbm of the kind {data[:2].decode()}: save it as a binary PGM (P5) "
            "or PPM (P6)."
        )
    found = _NUMBERS.match(data[:_HEAD])
    width, height, white = map(int, found.groups()) if found else (0, 0, 0)
    if not found or not 0 < white <= 65535:
        raise ImageError("The picture is damaged and cannot be decoded: replace it.")
    return Head((width, height), _KINDS[data[:2]], white, found.end())


def values_of(data: bytes, head: Head) -> np.ndarray:
    """Give the values of a PGM or PPM, whose size was checked.

    Gives (height, width) or (height, width, 3) uint8 or uint16.
    """
    (width, height), kind = head.size, "u1" if head.white < 256 else ">u2"
    n = width * height * head.channels
    if len(data) - head.place < n * np.dtype(kind).itemsize:
        raise ImageError(
            "The picture is damaged and cannot be decoded (values are missing): replace it."
        )
    values = np.frombuffer(data, kind, n, head.place)
    if head.white not in (255, 65535) and n and values.max() > head.white:
        raise ImageError(f"The picture has values above its white of {head.white}: re-encode it.")
    shape = (height, width) if head.channels == 1 else (height, width, head.channels)
    return values.reshape(shape).astype(np.dtype(kind).newbyteorder("="))
