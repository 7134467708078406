"""What one request to a server may cost: pictures, bytes, and time."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from dfm_mlflow.errors import ConfigError

COLUMN = "image"
# Pictures are compressed already. These two cannot hold much more than was sent: Snappy at most
# 21 times as much, where others reach many thousands.
_CODECS = ("UNCOMPRESSED", "SNAPPY")
_TYPES = (pa.binary(), pa.large_binary(), pa.string(), pa.large_string())


class LateError(Exception):
    """The time of a request is over, and its client was told so."""


class Turn:
    """A context that a thread enters to decode a picture of one request, while there is time."""

    def __init__(
        self,
        slots: threading.Semaphore,
        seconds: float,
        observe: Callable[[float], None] | None = None,
    ):
        self._slots, self._end = slots, time.monotonic() + seconds
        self._observe, self._begun = observe, threading.local()

    def __enter__(self) -> None:
        left = self._end - time.monotonic()
        if left <= 0 or not self._slots.acquire(timeout=min(left, threading.TIMEOUT_MAX)):
            raise LateError
        if self._observe:
            self._begun.at = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._slots.release()
        if self._observe:
            self._observe(time.monotonic() - self._begun.at)


def check_size(images: Sequence[Any], max_pictures: int, max_bytes: int) -> None:
    """Refuse a request of too many pictures, or of pictures with too many bytes in all."""
    n_bytes = sum(len(i) for i in images if isinstance(i, bytes | str))
    n_bytes += sum(getattr(i, "nbytes", 0) for i in images)  # of pixels in nested lists
    if len(images) > max_pictures:
        raise ConfigError(
            f"The request has {len(images)} pictures, more than the limit of {max_pictures}: send "
            "several requests, or raise max_pictures in model_config."
        )
    if n_bytes > max_bytes:
        raise ConfigError(
            f"The request's pictures have {n_bytes} bytes, more than the limit of {max_bytes}: "
            "send several requests, or raise max_megabytes in model_config."
        )


def read_parquet(body: bytes, max_pictures: int, max_bytes: int) -> pd.DataFrame:
    """Read the pictures of a request row by row, and stop where there are too many.

    What the file says of its own size is not believed: a dictionary or a shared prefix makes many
    large rows of few bytes.
    """
    try:
        file = pq.ParquetFile(pa.BufferReader(body))
        _check_layout(file, max_pictures)
        images: list[Any] = []
        size = 0
        for batch in file.iter_batches(4, columns=[COLUMN], use_threads=False):
            images += batch.column(0).to_pylist()
            size += batch.nbytes
            if len(images) > max_pictures or size > max_bytes + 64 * len(images):
                break
    except ConfigError:
        raise
    except (pa.ArrowException, OSError, ValueError):
        raise ConfigError(
            "The request's body is not a whole parquet file: send it again."
        ) from None
    check_size(images, max_pictures, max_bytes)
    return pd.DataFrame({COLUMN: pd.Series(images, dtype=object)})


def _check_layout(file: pq.ParquetFile, max_pictures: int) -> None:
    meta, schema = file.metadata, file.schema_arrow
    if schema.names.count(COLUMN) != 1 or schema.field(COLUMN).type not in _TYPES:
        raise ConfigError(f"The request has no column {COLUMN!r} of bytes: send the pictures so.")
    if meta.num_row_groups > max_pictures:
        raise ConfigError(
            f"The request has {meta.num_row_groups} row groups, more than the {max_pictures} "
            "pictures that a request may have: write fewer."
        )
    place = next(i for i in range(meta.num_columns) if meta.schema.column(i).path == COLUMN)
    for i in range(meta.num_row_groups):
        codec = meta.row_group(i).column(place).compression
        if codec not in _CODECS:
            raise ConfigError(
                f"The request's parquet is compressed by {codec}: write it with Snappy or without, "
                "pictures are compressed already."
            )
