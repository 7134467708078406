"""Delete what a server kept before a date: pictures, and rows where that is asked."""

import logging
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from dfm_mlflow.errors import ConfigError, DataError
from dfm_mlflow.storage.dated_folder import Dated, DatedFolder
from dfm_mlflow.storage.served_log import KEPT, parts

if TYPE_CHECKING:
    import pyarrow as pa

WHAT = ("pictures", "rows", "all")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Forgotten:
    """What was deleted, and what is left."""

    log: str  # address of the log
    before: datetime  # what is older is gone
    n_pictures: int
    n_rows: int
    n_pictures_left: int  # kept pictures that are as young or younger

    def summary(self) -> str:
        """Say it in one sentence."""
        return (
            f"Deleted from {self.log}, older than {self.before:%Y-%m-%dT%H:%M:%SZ}: "
            f"{self.n_pictures} pictures and {self.n_rows} rows; {self.n_pictures_left} pictures "
            "are left."
        )


def forget(log: str, before: str, what: str = "pictures") -> Forgotten:
    """Delete what a server kept before a date; the server may be running.

    The age of a picture is that of the last row that shows it, or of its file where no row is left.
    """
    if what not in WHAT:
        raise ConfigError(f"what={what!r} is not valid: give {', '.join(WHAT)}.")
    until = moment(before)
    folder = DatedFolder(log)
    kept, written = folder.files(KEPT), parts(folder)
    if not kept and not written:
        raise DataError(f"{log} holds neither kept pictures nor rows: give a server's log_to.")
    seen = _last_seen(folder, written) if what != "rows" else {}
    n_rows = _forget_rows(folder, written, until) if what != "pictures" else 0
    old: list[Dated] = []
    if what != "rows":
        old = [file for file in kept if _time_of(file, seen) < until.timestamp()]
        for file in old:
            folder.delete(file.name)
    return Forgotten(log, until, len(old), n_rows, len(kept) - len(old))


def moment(text: str) -> datetime:
    """Read a date or time in ISO 8601, `text`, as UTC unless it says otherwise."""
    try:
        found = datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
    except ValueError:
        raise ConfigError(
            f"before={text!r} is not a date: give one such as 2026-11-27 or 2026-11-27T06:00:00Z."
        ) from None
    return (found if found.tzinfo else found.replace(tzinfo=timezone.utc)).astimezone(timezone.utc)


def _time_of(file: Dated, seen: dict[str, float]) -> float:
    """When a picture was kept: by its rows where they are left, as files are copied about."""
    digest = file.name.rpartition("/")[2].partition(".")[0]
    return seen.get(digest, file.stamp)


def _last_seen(folder: DatedFolder, written: list[Dated]) -> dict[str, float]:
    """Time of the last row of each picture, in seconds since 1970."""
    seen: dict[str, float] = {}
    for part in written:
        table = _read(folder, part)
        if table is None:
            continue
        times = table["time"].cast("int64").to_pylist()
        for digest, time in zip(table["sha256"].to_pylist(), times, strict=True):
            if digest is not None:
                seen[digest] = max(seen.get(digest, 0.0), time / 1e6)
    return seen


def _forget_rows(folder: DatedFolder, written: list[Dated], until: datetime) -> int:
    """Delete rows: whole parts where all are old, else what is left is written in their place."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    n = 0
    for part in written:
        table = _read(folder, part)
        if table is None:
            continue
        young = table.filter(pc.greater_equal(table["time"], pa.scalar(until, table["time"].type)))
        if len(young) == len(table):
            continue
        n += len(table) - len(young)
        if len(young):
            sink = pa.BufferOutputStream()
            pq.write_table(young, sink, compression="zstd")
            folder.write(part.name, sink.getvalue().to_pybytes())
        else:
            folder.delete(part.name)
    return n


def _read(folder: DatedFolder, part: Dated) -> "pa.Table | None":
    """Read a part; None for one that has just made room, and, with a warning, for a damaged one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(folder.read(part.name)))
        table.select(["time", "sha256"])
    except FileNotFoundError:
        return None
    except (pa.ArrowException, KeyError):
        _logger.warning(
            "%s is damaged and is left as it is: delete it by hand.", folder.address(part.name)
        )
        return None
    return table
