"""The bytes of a picture on disk or in S3, and their digest."""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dfm_mlflow.errors import DfmError, ImageError
from dfm_mlflow.images.decode import size_of
from dfm_mlflow.images.limits import MAX_BYTES, too_many_bytes
from dfm_mlflow.storage.store import S3Object


def read_picture(source: Path | S3Object, max_bytes: int = MAX_BYTES) -> bytes:
    """Read the bytes of one picture."""
    try:
        size = source.size if isinstance(source, S3Object) else source.stat().st_size
        if size > max_bytes:
            raise too_many_bytes(size, max_bytes)
        return source.read_bytes()
    except DfmError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        why = getattr(error, "strerror", None) or error
        raise ImageError(f"The file cannot be read ({why}): check it.") from None


@dataclass(frozen=True)
class Look:
    """What one read of a picture shows beside its pixels."""

    # Of the file, hexadecimal. Of what cannot be read, or is too large to be a picture, that of its
    # ETag and size, or of nothing: whoever needs it will say so.
    sha256: str
    # Height and width in pixels, as the head of the file has them; None where it is not a picture.
    size: tuple[int, int] | None


_DEPTHS = {
    "1": "1 bit",
    "L": "8-bit grey",
    "LA": "8-bit grey with alpha",
    "P": "palette",
    "RGB": "8-bit colour",
    "RGBA": "8-bit colour with alpha",
    "F": "32-bit numbers",
}


def depth_of(source: Path | S3Object) -> str | None:
    """Say how a picture holds its pixels, such as ``16-bit grey``; None where it is not a picture.

    `source` is a file or an object.
    """
    try:
        with Image.open(io.BytesIO(read_picture(source))) as image:
            mode = image.mode
    except (DfmError, OSError, ValueError, SyntaxError):
        return None
    return "16-bit grey" if mode.startswith("I") else _DEPTHS.get(mode, mode)


def look_at(source: Path | S3Object) -> Look:
    """Read a picture for its digest and size alone."""
    try:
        data = read_picture(source)
    except ImageError:
        data = b""
        if isinstance(source, S3Object):
            data = repr((source.etag, source.size)).encode()
    return Look(hashlib.sha256(data).hexdigest(), size_of(data))
