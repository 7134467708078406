"""Rows to parquet parts, pictures to files by their digest, each bounded and whole."""

import time
import uuid
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dfm_mlflow.serving.monitor.bounded import Bounded
from dfm_mlflow.storage.dated_folder import Dated, DatedFolder
from dfm_mlflow.storage.served_log import (
    COLUMNS,
    KEPT,
    SCORES,
    STATE,
    kept_name,
    part_number,
    schema,
)

Row = Sequence[Any]  # one value a column, in the order of COLUMNS


class LogStore:
    """The log of one worker.

    Parts are numbered, so that their order outlives a clock that jumps.
    """

    def __init__(self, address: str, megabytes: int, keep_megabytes: int, workers: int):
        self.folder = DatedFolder(address)
        self._parts = Bounded(self.folder, SCORES, megabytes << 20, workers, _by_number)
        self._kept = Bounded(self.folder, KEPT, keep_megabytes << 20, workers, _by_stamp)
        self._number = 0

    @property
    def n_evicted(self) -> dict[str, int]:
        """Files that made room for others, of each kind."""
        return {"scores": self._parts.n_evicted, "kept": self._kept.n_evicted}

    def add_rows(self, rows: Sequence[Row]) -> None:
        """Write `rows` as one part."""
        data = to_parquet(rows)
        if not self._number:
            self._parts.make_room(len(data))
        newest = self._parts.newest
        self._number = max(self._number, part_number(newest.name) if newest else 0) + 1
        now = datetime.fromtimestamp(time.time(), timezone.utc)
        name = f"part-{self._number:010d}-{now:%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}.parquet"
        self._parts.put(f"{SCORES}/{name}", data)

    def keep(self, sha256: str, data: bytes) -> None:
        """Write a picture under its digest."""
        self._kept.put(kept_name(sha256, data), data)

    def read_state(self, slot: int) -> str | None:
        """Read what :meth:`write_state` wrote for a worker's `slot`; None where nothing is."""
        name = _state_name(slot)
        known = {file.name for file in self.folder.files(STATE)}
        return self.folder.read(name).decode() if name in known else None

    def write_state(self, slot: int, text: str) -> None:
        """Keep the state `text` of the alarm of the worker in `slot`."""
        self.folder.write(_state_name(slot), text.encode())


def to_parquet(rows: Sequence[Row]) -> bytes:
    """Encode `rows`, whose first value is the time in seconds since 1970."""
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(COLUMNS)
    kinds = schema()
    times = [round(t * 1e6) for t in columns[0]]
    arrays = [pa.array(times, pa.int64()).cast(kinds.field(0).type)]
    arrays += [pa.array(c, kinds.field(i).type) for i, c in enumerate(columns[1:], 1)]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_arrays(arrays, schema=kinds), sink, compression="zstd")
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _by_number(file: Dated) -> tuple[int, str]:
    return part_number(file.name), file.name


def _by_stamp(file: Dated) -> tuple[float, str]:
    return file.stamp, file.name


def _state_name(slot: int) -> str:
    return f"{STATE}/worker-{slot}.json"
