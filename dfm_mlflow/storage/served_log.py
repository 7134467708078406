"""Where a served model's log lies and what it holds; who writes it is in ``serving.monitor``.

::

    LOG/scores/part-0000000007-20261127T040000Z-3f2a90c1.parquet   one row a picture
    LOG/kept/3b/3bd1....png                                         pictures, by their SHA-256
    LOG/_state/worker-0.json                                        the state of the alarm
"""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from dfm_mlflow.errors import DataError
from dfm_mlflow.storage.dated_folder import Dated, DatedFolder

if TYPE_CHECKING:
    import pyarrow as pa

SCORES, KEPT, STATE = "scores", "kept", "_state"
# Of a part, in their order; the type is pyarrow's.
COLUMNS = {
    "time": "timestamp[us, tz=UTC]",
    "model_version": "string",
    "sha256": "string",
    "anomaly_score": "double",
    "p_value": "double",
    "is_anomaly": "bool",
    "predicted_class": "string",
    "decision": "string",
    "error": "string",
    "latency_ms": "double",
    "alarm": "string",
}
_PART = re.compile(r"part-(\d{10})-\d{8}T\d{6}Z-[0-9a-f]{8}\.parquet")
# First bytes of the formats that are read, and the suffix of a kept picture.
_SUFFIXES = (
    (b"\x89PNG", "png"),
    (b"\xff\xd8", "jpg"),
    (b"BM", "bmp"),
    (b"II*\0", "tif"),
    (b"MM\0*", "tif"),
    (b"RIFF", "webp"),
    (b"P5", "pgm"),
    (b"P6", "ppm"),
)


def schema() -> "pa.Schema":
    """Columns of a part with their types."""
    import pyarrow as pa

    kinds = {
        "timestamp[us, tz=UTC]": pa.timestamp("us", tz="UTC"),
        "string": pa.string(),
        "double": pa.float64(),
        "bool": pa.bool_(),
    }
    return pa.schema([pa.field(name, kinds[kind]) for name, kind in COLUMNS.items()])


def kept_name(sha256: str, data: bytes) -> str:
    """Name of a kept picture below the log's folder, by its digest and its first bytes."""
    suffix = next((end for magic, end in _SUFFIXES if data.startswith(magic)), "bin")
    return f"{KEPT}/{sha256[:2]}/{sha256}.{suffix}"


def part_number(name: str) -> int:
    """Place of the part `name` in the order of writing, from 1; 0 for another file."""
    found = _PART.fullmatch(name.rpartition("/")[2])
    return int(found[1]) if found else 0


def parts(folder: DatedFolder) -> list[Dated]:
    """List the parts of the log in `folder`, in the order of writing."""
    found = [file for file in folder.files(SCORES) if part_number(file.name)]
    return sorted(found, key=lambda file: (part_number(file.name), file.name))


def tables(address: str) -> "Iterator[pa.Table]":
    """Read the parts of a log one after another, in the order of writing."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = DatedFolder(address)
    found = parts(folder)
    if not found:
        raise DataError(f"{address} holds no log ({SCORES}/part-*.parquet): give a log_to folder.")
    for part in found:
        try:
            data = folder.read(part.name)
        except FileNotFoundError:
            continue  # the oldest one, which made room while this was read
        try:
            yield pq.read_table(pa.BufferReader(data)).select(list(COLUMNS))
        except (pa.ArrowException, KeyError) as error:
            raise DataError(
                f"{folder.address(part.name)} is not part of a log ({type(error).__name__}): "
                "remove it."
            ) from None
