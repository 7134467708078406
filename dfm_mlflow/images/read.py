"""The bytes of a picture on disk or in S3, and their digest."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from dfm_mlflow.errors import ImageError
from dfm_mlflow.images.decode import MAX_BYTES
from dfm_mlflow.storage.store import S3Object, map_in_threads


def read_picture(source: Path | S3Object) -> bytes:
    """Read the bytes of one picture.

    Parameters
    ----------
    source : Path or S3Object

    Returns
    -------
    bytes

    Raises
    ------
    ImageError
        If it is larger than any picture may be, and then nothing is read, or a file cannot be read.
    DataError
        If an object cannot be read, or is no longer the one that was listed.
    """
    try:
        size = source.size if isinstance(source, S3Object) else source.stat().st_size
        if size > MAX_BYTES:
            raise ImageError(
                f"The image has {size} bytes, more than the limit of {MAX_BYTES}: compress it."
            )
        return source.read_bytes()
    except OSError as error:
        raise ImageError(f"The file cannot be read ({error.strerror}): check it.") from None


def digests(sources: Sequence[Path | S3Object]) -> list[str]:
    """SHA-256 of the contents of `sources`, hexadecimal, read in parallel.

    Of what cannot be read, or is too large to be a picture, of its size and ETag, or of nothing:
    whoever needs it will say so.
    """
    return map_in_threads(_digest, sources)


def _digest(source: Path | S3Object) -> str:
    try:
        data = read_picture(source)
    except ImageError:
        data = b""
        if isinstance(source, S3Object):
            data = repr((source.etag, source.size)).encode()
    return hashlib.sha256(data).hexdigest()
