"""A list of pictures as CSV: ``path,split,label`` and, where wanted, ``mask,class,group,part``.

The ``training.csv`` of a run is such a list, too.
"""

import csv
import io
import logging
import os
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dfm_mlflow.data.item import GOOD, Item, Mask
from dfm_mlflow.data.names import Named, label_of, may_be_either
from dfm_mlflow.errors import DataError
from dfm_mlflow.storage import store
from dfm_mlflow.storage.paths import local_path
from dfm_mlflow.storage.store import S3Object

REQUIRED = ("path", "split", "label")
OPTIONAL = ("mask", "class", "group", "part", "excluded")
BETWEEN = "|"  # several masks of one picture
_SAME = {"category": "class"}  # another name of the same column
_PASSED_OVER = ("sha256",)  # in a run's training.csv, for people and other programs

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Row:
    line: int
    cells: dict[str, str]
    category: str


def read_manifest(
    address: str,
    categories: tuple[str, ...],
    good: Named | None = None,
    bad: Named | None = None,
) -> list[Item]:
    """Read the rows of the asked categories."""
    rows = _labelled(address, list(_rows(address, categories)), good, bad)
    wanted = [r for r in rows if r.category in categories]
    for category in categories:
        if not any(r.category == category for r in wanted):
            classes = ", ".join(sorted({r.category for r in rows})) or "no rows at all"
            raise DataError(f"{address} has no rows of the class {category}: it has {classes}.")
    places = [(r, _places(address, r, "path"), _places(address, r, "mask")) for r in wanted]
    _refuse_repetition(address, [(row, path[0]) for row, path, _ in places])
    found = _found(address, [(row, [*path, *masks]) for row, path, masks in places])
    return [
        Item(
            path=found[path[0]],
            category=row.category,
            split=row.cells["split"],
            label=row.cells["label"],
            mask=Mask(tuple(found[mask] for mask in masks)) if masks else None,
            group=row.cells["group"] or None,
            part=row.cells["part"] or None,
            excluded=row.cells["excluded"] or None,
        )
        for row, path, masks in places
    ]


def read_list(address: str) -> list[tuple[Path | S3Object, str | None]]:
    """Read the pictures of a manifest that are to be scored; only the column ``path`` is needed."""
    rows = [(r, _places(address, r, "path")) for r in _rows(address, ("",), required=("path",))]
    _refuse_repetition(address, [(row, path[0]) for row, path in rows])
    found = _found(address, rows)
    return [(found[path[0]], row.cells["part"] or None) for row, path in rows]


def categories_of(address: str) -> list[str]:
    """Classes that a manifest names, in the order of its rows."""
    found = dict.fromkeys(row.cells["class"] for row in _rows(address, ("",)))
    return [name for name in found if name]


def _found(address: str, rows: Sequence[tuple[_Row, Sequence[str]]]) -> dict[str, Path | S3Object]:
    """Look up every place that the rows name."""
    remote = {p for _, places in rows for p in places if p.startswith(store.SCHEME)}
    found: dict[str, Path | S3Object] = {}
    there = store.find_all(sorted(remote))
    for row, places in rows:
        for place in places:
            thing = there.get(place, Path(place))
            if isinstance(thing, DataError):
                raise DataError(f"{address}, line {row.line}: {thing}")
            if not thing.is_file():
                why = f"the file {place} does not exist"
                raise _wrong(address, row.line, why, "correct the path")
            found[place] = thing
    return found


def _labelled(address: str, rows: list[_Row], good: Named | None, bad: Named | None) -> list[_Row]:
    """Write every label that means good as one, and refuse what may mean either."""
    labels = {row.cells["label"] for row in rows}
    for row in rows:
        label = row.cells["label"]
        if good and label in good:
            row.cells["label"] = GOOD
        elif not (bad and label in bad):
            if may_be_either(label, labels):
                raise _wrong(
                    address,
                    row.line,
                    f"the label {label} may mean good or defective",
                    f"give good={label} or bad={label}",
                )
            row.cells["label"] = label_of(label, labels)
        if row.cells["split"] == "train" and row.cells["label"] != GOOD:
            raise _wrong(
                address,
                row.line,
                f"a picture labelled {label} is to be trained on",
                f"the model is fitted on pictures labelled {GOOD} alone; if {label} means so, give "
                f"good={label}, and else split=test",
            )
    return rows


def _rows(
    address: str, categories: tuple[str, ...], required: tuple[str, ...] = REQUIRED
) -> Iterator[_Row]:
    text = store.read_text(address, f"The manifest {address}")
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = [_SAME.get(c.strip(), c.strip()) for c in reader.fieldnames or ()]
        _check_columns(address, columns, required)
        reader.fieldnames = columns
        for values in reader:
            cells = {c: (values.get(c) or "").strip() for c in REQUIRED + OPTIONAL}
            if None in values or None in values.values():
                raise _wrong(
                    address,
                    reader.line_num,
                    "the number of cells is not that of the header",
                    "quote cells that hold a comma",
                )
            _check_cells(address, reader.line_num, cells, required)
            category = cells["class"]
            if not category:
                if len(categories) > 1:
                    raise _wrong(
                        address,
                        reader.line_num,
                        "the class is empty and several categories are requested",
                        "name one of them",
                    )
                category = categories[0]
            yield _Row(reader.line_num, cells, category)
    except csv.Error as error:
        line = min(reader.line_num + 1, len(text.splitlines()))  # the one it could not read
        raise _wrong(address, line, str(error), "save the table as CSV") from None


def _check_columns(address: str, columns: list[str], required: tuple[str, ...]) -> None:
    missing = [c for c in required if c not in columns]
    if missing:
        raise DataError(
            f"The manifest {address} lacks the column {', '.join(missing)}: its first line must "
            f"name {', '.join(required)} and may name {', '.join(OPTIONAL)}, separated by commas."
        )
    if len(set(columns)) < len(columns):
        raise DataError(f"The manifest {address} names a column twice: name each once.")
    others = [c for c in columns if c not in REQUIRED + OPTIONAL + _PASSED_OVER]
    if others:
        _logger.warning(
            "The manifest %s has further columns, which are not used: %s.",
            address,
            ", ".join(others),
        )


def _check_cells(address: str, line: int, cells: dict[str, str], required: tuple[str, ...]) -> None:
    empty = [c for c in required if not cells[c]]
    if empty:
        raise _wrong(address, line, f"{', '.join(empty)} is empty", "fill it in")
    if "split" in required and cells["split"] not in ("train", "test"):
        raise _wrong(address, line, f"split={cells['split']}", "give train or test")


def _places(address: str, row: _Row, column: str) -> list[str]:
    """Resolve a cell, of several places where it is a mask's."""
    cells = row.cells[column].split(BETWEEN) if column == "mask" else [row.cells[column]]
    return [_place(address, row, cell.strip()) for cell in cells if cell.strip()]


def _place(address: str, row: _Row, cell: str) -> str:
    """Resolve a cell against the manifest's own folder, be it on disk or in S3."""
    if cell.startswith(store.SCHEME):
        return cell
    if address.startswith(store.SCHEME) and not cell.startswith("/"):
        bucket, key = store.split_uri(address)
        # normpath of an absolute path cannot climb out of the bucket
        inside = posixpath.normpath(f"/{posixpath.dirname(key)}/{cell}").lstrip("/")
        return f"{store.SCHEME}{bucket}/{inside}"
    try:
        folder = "" if cell.startswith("~") else local_path(address).parent
        return str(local_path(os.path.join(folder, cell)))
    except DataError as error:
        raise DataError(f"{address}, line {row.line}: {error}") from None


def _refuse_repetition(address: str, places: list[tuple[_Row, str]]) -> None:
    """A picture in two rows could be fitted on and tested on."""
    seen: dict[str, int] = {}
    for row, path in places:
        place = posixpath.normpath(path)
        if place in seen:
            raise _wrong(
                address,
                row.line,
                f"{path} is already in line {seen[place]}",
                "list each picture once",
            )
        seen[place] = row.line


def _wrong(address: str, line: int, what: str, remedy: str) -> DataError:
    return DataError(f"{address}, line {line}: {what}: {remedy}.")
