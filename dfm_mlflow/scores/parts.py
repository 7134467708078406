"""A folder of scores in parts, local or in S3, with which a broken job goes on.

The plan is written first. Each picture belongs to the part that its path is hashed to, and a part's
name holds a digest of its pictures, of each its path, size and time of change (ETag in S3): what
lies there under the expected name is done. Pictures that come, go or change cost their own parts
only.
"""

import hashlib
import io
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.errors import ConfigError
from dfm_mlflow.images.overlay_files import OverlayFolder
from dfm_mlflow.images.read import read_picture
from dfm_mlflow.scores.part_decisions import PART_COLUMNS, part_decisions
from dfm_mlflow.storage import store
from dfm_mlflow.storage.score_table import ARROW, counts_of
from dfm_mlflow.storage.store import SCHEME, S3Object
from dfm_mlflow.storage.whole_file import whole_file

PLAN, DONE = "_plan.json", "_SUCCESS"  # readers of parquet folders skip names that start with _
PICTURES = 1000  # in a part
_FORMAT = 1
# Names that this program gives its files; whatever else lies in the folder is somebody's own.
_OURS = re.compile(rf"{DONE}|part-\d{{5}}-[0-9a-f]{{16}}\.parquet")


@dataclass(frozen=True)
class Asked:
    """How pictures are to be scored; goes to the executors of Spark, too."""

    category: str = "auto"  # class that all of them are known to be of, or ``auto``
    fpr: float | None = None  # false-positive rate of the decision; None for the model's own
    anomaly_map: bool = False  # whether the table holds their maps
    on_error: str = "report"  # what becomes of one that cannot be read

    def plan(self) -> dict[str, Any]:
        """What the scores of a folder must have in common, beside the model."""
        return {"category": self.category, "fpr": self.fpr, "anomaly_map": self.anomaly_map}


AS_IT_IS = Asked()


@dataclass(frozen=True)
class Part:
    """Pictures whose scores go into one file."""

    number: int  # place among the parts of the plan
    name: str  # of its file; holds a digest of its pictures
    sources: tuple[Path | S3Object, ...]
    # What part of the line's products each picture shows; empty where nobody asked.
    shown: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Parts that are to be scored, and those whose scores are there."""

    missing: list[Part]
    finished: list[Part]
    # Pictures of missing parts whose scores were there and were removed, since a picture of their
    # part has come, gone or changed.
    n_again: int = 0


@dataclass(frozen=True)
class OutputFolder:
    """A folder or ``s3://`` prefix in which a file appears whole or not at all."""

    address: str  # A local path, or an ``s3://`` prefix

    def names(self) -> set[str]:
        """Names of the files and folders in it, one level deep."""
        if self._remote:
            return {found.name for found in store.S3Folder(self.address).iterdir()}
        folder = Path(self.address)
        return {p.name for p in folder.iterdir()} if folder.is_dir() else set()

    def read(self, name: str) -> bytes:
        """Read the file called `name`."""
        return store.read(self._path(name))

    def write(self, name: str, data: bytes) -> None:
        """Write `data` as the file called `name`."""
        if self._remote:
            store.upload(self._path(name), data)
        else:
            with whole_file(Path(self._path(name))) as draft:
                draft.write_bytes(data)

    def remove(self, name: str) -> None:
        """Remove the file called `name`, if it is there."""
        if self._remote:
            store.delete(self._path(name))
        else:
            Path(self._path(name)).unlink(missing_ok=True)

    @property
    def _remote(self) -> bool:
        return self.address.startswith(SCHEME)

    def _path(self, name: str) -> str:
        return f"{self.address.rstrip('/')}/{name}"


def plan_parts(
    folder: OutputFolder,
    sources: Sequence[Path | S3Object],
    model: str,
    least: int = 1,
    asked: Asked = AS_IT_IS,
    shown: Sequence[str] = (),
    uri: str = "",
) -> Plan:
    """Deal pictures to parts as the folder's plan says, or make the plan.

    Parts of pictures that are no longer the same are removed; no other file is.
    """
    there = folder.names()
    if PLAN in there:
        n_parts = _read_plan(folder, model, asked)
    else:
        if there:
            raise ConfigError(
                f"output={folder.address} holds other files, such as {min(there)}: give a new "
                "folder, or one that an earlier run began."
            )
        n_parts = min(len(sources), max(least, -(-len(sources) // PICTURES)))
        plan = {"format": _FORMAT, "model": model, "parts": n_parts, **asked.plan()}
        plan |= {"uri": uri} if uri else {}
        folder.write(PLAN, json.dumps(plan).encode())
    parts = _deal(sources, n_parts, shown)
    stale = {n for n in there if _OURS.fullmatch(n)} - {part.name for part in parts}
    for name in stale:
        folder.remove(name)
    missing = [part for part in parts if part.name not in there]
    replaced = {name.split("-")[1] for name in stale - {DONE}}
    n_again = sum(len(part.sources) for part in missing if part.name.split("-")[1] in replaced)
    return Plan(missing, [part for part in parts if part.name in there], n_again)


def score_part(
    detector: AnomalyDetector,
    part: Part,
    folder: OutputFolder,
    asked: Asked = AS_IT_IS,
    overlays: OverlayFolder | None = None,
) -> tuple[int, int, int]:
    """Score one part and write its file."""
    table = scores_of(detector, part.sources, asked, part.shown, overlays)
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    folder.write(part.name, buffer.getvalue())
    return counts_of(table)


def scores_of(
    detector: AnomalyDetector,
    sources: Sequence[Path | S3Object],
    asked: Asked = AS_IT_IS,
    shown: Sequence[str] = (),
    overlays: OverlayFolder | None = None,
) -> pa.Table:
    """Score pictures."""
    table = detector.score(
        sources,
        fpr=asked.fpr,
        category=asked.category,
        anomaly_map=asked.anomaly_map or overlays is not None,
        on_error=asked.on_error,
    )
    if overlays is not None:
        for source, drawn in zip(sources, table["anomaly_map"], strict=True):
            if drawn is not None:
                overlays.write(source, read_picture(source), drawn)
        if not asked.anomaly_map:
            table["anomaly_map"] = None
    if shown:
        table = table.join(part_decisions(detector, table, shown, asked.fpr))
    table.insert(0, "path", [str(source) for source in sources])
    return pa.Table.from_pandas(table, schema_of(detector, bool(shown)), preserve_index=False)


def schema_of(detector: AnomalyDetector, with_parts: bool = False) -> pa.Schema:
    """Types of the scores of a `detector`, `with_parts` those of decisions on parts, too."""
    columns = {"path": "object", **detector.columns, **(PART_COLUMNS if with_parts else {})}
    return pa.schema([(name, ARROW[kind]) for name, kind in columns.items()])


def _read_plan(folder: OutputFolder, model: str, asked: Asked) -> int:
    try:
        plan = json.loads(folder.read(PLAN))
        known, n_parts = plan["model"], int(plan["parts"])
        before = AS_IT_IS.plan() | {k: v for k, v in plan.items() if k in AS_IT_IS.plan()}
        if plan["format"] != _FORMAT or n_parts < 1:
            raise ValueError("another format")
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{folder.address.rstrip('/')}/{PLAN} is not a plan of this version ({error}): give a "
            "new folder."
        ) from None
    if known != model:
        raise ConfigError(
            f"output={folder.address} holds the scores of another model (SHA-256 {known[:12]}..., "
            f"not {model[:12]}...): give a new folder."
        )
    for name, value in asked.plan().items():
        if before[name] != value:
            raise ConfigError(
                f"output={folder.address} holds scores with {name}={before[name]}, not {value}: "
                f"give a new folder, or that {name}."
            )
    return n_parts


def _deal(
    sources: Sequence[Path | S3Object], n_parts: int, shown: Sequence[str] = ()
) -> list[Part]:
    dealt: list[list[int]] = [[] for _ in range(n_parts)]
    for i, source in enumerate(sources):
        hashed = hashlib.sha256(os.fsencode(shown[i] if shown else str(source))).digest()
        dealt[int.from_bytes(hashed[:8], "big") % n_parts].append(i)
    parts = []
    for number, mine in enumerate(dealt):
        lines = [f"{sources[i]} {_version(sources[i])}" for i in mine]
        lines += [shown[i] for i in mine] if shown else []
        digest = hashlib.sha256(os.fsencode("\n".join(lines))).hexdigest()[:16]
        if mine:
            name = f"part-{number:05d}-{digest}.parquet"
            labels = tuple(shown[i] for i in mine) if shown else ()
            parts.append(Part(number, name, tuple(sources[i] for i in mine), labels))
    return parts


def _version(source: Path | S3Object) -> str:
    """Tell the content of a picture from what was there before, without reading it."""
    if isinstance(source, S3Object):
        return source.etag
    try:
        status = source.stat()
    except OSError:  # it went away after it was listed: its row will say so
        return "missing"
    return f"{status.st_size} {status.st_mtime_ns}"
