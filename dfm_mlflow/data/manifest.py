"""A list of pictures as CSV: ``path,split,label`` and, where wanted, ``mask,class,group``."""

import csv
import io
import logging
import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dfm_mlflow.data.item import GOOD, Item
from dfm_mlflow.errors import DataError
from dfm_mlflow.storage import store
from dfm_mlflow.storage.paths import local_path
from dfm_mlflow.storage.store import S3Object

REQUIRED = ("path", "split", "label")
OPTIONAL = ("mask", "class", "group")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Row:
    line: int
    cells: dict[str, str]
    category: str


def read_manifest(address: str, categories: tuple[str, ...]) -> list[Item]:
    """Read the rows of the asked categories.

    Parameters
    ----------
    address : str
        Path or ``s3://`` address of the CSV file, in UTF-8. Relative paths in it start at the
        folder that holds it.
    categories : tuple of str
        Which classes; a row with an empty class belongs to the only category.

    Returns
    -------
    list of Item
        In the order of the rows.

    Raises
    ------
    DataError
        For a missing column, and for the first row that is wrong, by its line number.
    """
    rows = list(_rows(address, categories))
    wanted = [r for r in rows if r.category in categories]
    for category in categories:
        if not any(r.category == category for r in wanted):
            classes = ", ".join(sorted({r.category for r in rows})) or "no rows at all"
            raise DataError(f"{address} has no rows of the class {category}: it has {classes}.")
    places = [(r, _place(address, r, "path"), _place(address, r, "mask")) for r in wanted]
    _refuse_repetition(address, [(row, path) for row, path, _ in places])
    remote = {p for _, *both in places for p in both if p and p.startswith(store.SCHEME)}
    found = store.find_all(sorted(remote))

    def source(row: _Row, place: str) -> Path | S3Object:
        if place in found:
            thing = found[place]
            if isinstance(thing, DataError):
                raise DataError(f"{address}, line {row.line}: {thing}")
            return thing
        if not Path(place).is_file():
            raise _wrong(address, row.line, f"the file {place} does not exist", "correct the path")
        return Path(place)

    return [
        Item(
            path=source(row, path),
            category=row.category,
            split=row.cells["split"],
            label=row.cells["label"],
            mask=source(row, mask) if mask else None,
            group=row.cells["group"] or None,
        )
        for row, path, mask in places
    ]


def _rows(address: str, categories: tuple[str, ...]) -> Iterator[_Row]:
    text = _text(address)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = [c.strip() for c in reader.fieldnames or ()]
        _check_columns(address, columns)
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
            _check_cells(address, reader.line_num, cells)
            category = cells["class"]
            if not category:
                if len(categories) > 1:
                    raise _wrong(
                        address,
                        reader.line_num,
                        "the class is empty and several categories are asked for",
                        "name one of them",
                    )
                category = categories[0]
            yield _Row(reader.line_num, cells, category)
    except csv.Error as error:
        line = min(reader.line_num + 1, len(text.splitlines()))  # the one it could not read
        raise _wrong(address, line, str(error), "save the table as CSV") from None


def _text(address: str) -> str:
    try:
        remote = address.startswith(store.SCHEME)
        return store.read(address if remote else local_path(address)).decode("utf-8-sig")
    except OSError as error:
        raise DataError(
            f"The manifest {address} cannot be read ({error.strerror}): give a .csv that can."
        ) from None
    except UnicodeDecodeError:
        raise DataError(f"The manifest {address} is not UTF-8: save it as CSV UTF-8.") from None


def _check_columns(address: str, columns: list[str]) -> None:
    missing = [c for c in REQUIRED if c not in columns]
    if missing:
        raise DataError(
            f"The manifest {address} lacks the column {', '.join(missing)}: its first line must "
            f"name {', '.join(REQUIRED)} and may name {', '.join(OPTIONAL)}, separated by commas."
        )
    if len(set(columns)) < len(columns):
        raise DataError(f"The manifest {address} names a column twice: name each once.")
    others = [c for c in columns if c not in REQUIRED + OPTIONAL]
    if others:
        _logger.warning(
            "The manifest %s has further columns, which are not used: %s.",
            address,
            ", ".join(others),
        )


def _check_cells(address: str, line: int, cells: dict[str, str]) -> None:
    empty = [c for c in REQUIRED if not cells[c]]
    if empty:
        raise _wrong(address, line, f"{', '.join(empty)} is empty", "fill it in")
    if cells["split"] not in ("train", "test"):
        raise _wrong(address, line, f"split={cells['split']}", "give train or test")
    if cells["split"] == "train" and cells["label"] != GOOD:
        raise _wrong(
            address,
            line,
            f"a picture labelled {cells['label']} is to be trained on",
            f"the model is fitted on pictures labelled {GOOD} alone; give split=test",
        )


def _place(address: str, row: _Row, column: str) -> str:
    """Resolve a cell against the manifest's own folder, be it on disk or in S3."""
    cell = row.cells[column]
    if not cell or cell.startswith(store.SCHEME):
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
                f"{path} stands in line {seen[place]} already",
                "list each picture once",
            )
        seen[place] = row.line


def _wrong(address: str, line: int, what: str, remedy: str) -> DataError:
    return DataError(f"{address}, line {line}: {what}: {remedy}.")
