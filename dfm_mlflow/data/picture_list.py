"""The list of pictures of a run, ``training.csv``: read, found again on disk, and kept."""

import csv
import hashlib
import io
import logging
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dfm_mlflow.data.find import find_pictures
from dfm_mlflow.data.item import Item
from dfm_mlflow.data.manifest import BETWEEN
from dfm_mlflow.errors import DataError, DfmError
from dfm_mlflow.images.read import Look, look_at
from dfm_mlflow.storage import store
from dfm_mlflow.storage.paths import local_path
from dfm_mlflow.storage.store import SCHEME, S3Folder, S3Object, map_in_threads
from dfm_mlflow.storage.whole_file import whole_file

COLUMNS = ("path", "sha256", "split", "label", "mask", "category", "group", "excluded", "part")
NOTHING = hashlib.sha256(b"").hexdigest()  # of what could not be read
_NAMED = 3  # pictures in a sentence

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """One picture of a list: the columns of ``training.csv``."""

    path: str
    sha256: str
    split: str
    label: str
    mask: str = ""
    category: str = ""
    group: str = ""
    excluded: str = ""
    part: str = ""

    @property
    def fitted(self) -> bool:
        """Whether a model is fitted to it."""
        return self.split == "train" and not self.excluded


def read_rows(address: str) -> list[Row]:
    """Read a list that a run wrote; its pictures need not be there."""
    text = store.read_text(address, f"The list {address}")
    reader = csv.DictReader(io.StringIO(text, newline=""))
    missing = {"path", "sha256", "split", "label"} - set(reader.fieldnames or ())
    if missing:
        raise DataError(f"The list {address} lacks the column {', '.join(sorted(missing))}.")
    folder = "" if "://" in address or ":/" in address else str(local_path(address).parent)
    rows = []
    for given in reader:
        cells = {column: given.get(column) or "" for column in COLUMNS}
        cells["category"] = cells["category"] or given.get("class") or ""
        places = [_from(folder, m.strip()) for m in cells["mask"].split(BETWEEN) if m.strip()]
        cells |= {"path": _from(folder, cells["path"]), "mask": BETWEEN.join(places)}
        rows.append(Row(**cells))
    return rows


def _from(folder: str, path: str) -> str:
    return path if path.startswith(SCHEME) else os.path.abspath(os.path.join(folder, path))


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Write `rows` as a list at `path`, which :func:`read_rows` and a training run read."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([getattr(row, column) for column in COLUMNS] for row in rows)


def rows_of(items: Sequence[Item], contents: dict[str, str]) -> list[Row]:
    """Write pictures as rows."""
    return [
        Row(
            path=_from("", str(i.path)),
            sha256=contents[str(i.path)],
            split=i.split,
            label=i.label,
            mask=BETWEEN.join(_from("", str(f)) for f in i.mask.files) if i.mask else "",
            category=i.category,
            group=i.group or "",
            excluded=i.excluded or "",
            part=i.part or "",
        )
        for i in items
    ]


def looks_at(paths: Sequence[str]) -> dict[str, Look]:
    """Read pictures for their digests."""
    remote = store.find_all(sorted({p for p in paths if p.startswith(SCHEME)}))
    there: dict[str, Path | S3Object] = {}
    for path in paths:
        thing = remote[path] if path.startswith(SCHEME) else Path(path)
        if not isinstance(thing, DfmError) and thing.is_file():
            there[path] = thing
    looks = map_in_threads(look_at, list(there.values()))
    return {p: look for p, look in zip(there, looks, strict=True) if look.sha256 != NOTHING}


def places_in(address: str) -> dict[str, str]:
    """Say where contents are below a folder, a prefix or a pattern."""
    sources = find_pictures(address).sources
    looks = map_in_threads(look_at, sources)
    pairs = zip(sources, looks, strict=True)
    found = {look.sha256: _from("", str(source)) for source, look in reversed(list(pairs))}
    found.pop(NOTHING, None)
    return found


def found_again(
    rows: Sequence[Row], places: dict[str, str], but: Collection[str] = ()
) -> tuple[list[Row], dict[str, Look]]:
    """Look whether every picture is where the list says, with the contents that it says."""
    looks = looks_at([row.path for row in rows])
    kept, moved, gone = [], [], []
    for row in rows:
        there = looks.get(row.path)
        if there is not None and row.sha256 in ("", there.sha256):
            kept.append(replace(row, sha256=there.sha256))
        elif row.sha256 in places:
            kept.append(replace(row, path=places[row.sha256]))
            moved.append(row)
        elif row.sha256 in but:
            kept.append(row)
        else:
            gone.append(row)
    if gone:
        raise DataError(
            f"{len(gone)} of {len(rows)} pictures of the model's list are gone or have other "
            f"contents, such as {named([r.path for r in gone])}: give add=<folder> that holds "
            "them under any name, or leave them out by remove=<list>."
        )
    if moved:
        _logger.warning(
            "%d pictures moved and were found again by their contents, such as %s.",
            len(moved),
            named([row.path for row in moved]),
        )
        looks |= looks_at([places[row.sha256] for row in moved])
    return [_with_masks(row) for row in kept], looks


def _with_masks(row: Row) -> Row:
    """Leave out a mask that is gone, and say so."""
    if not row.mask or looks_there(row.mask.split(BETWEEN)):
        return row
    _logger.warning("The mask %s is gone: %s has none now.", row.mask, row.path)
    return replace(row, mask="")


def looks_there(paths: Sequence[str]) -> bool:
    """Whether all `paths` and addresses are files."""
    remote = store.find_all([p for p in paths if p.startswith(SCHEME)])
    return all(
        not isinstance(remote.get(p), DfmError) if p.startswith(SCHEME) else Path(p).is_file()
        for p in paths
    )


def named(paths: Sequence[str]) -> str:
    """Write out the first few of `paths` for a sentence."""
    more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
    return ", ".join(paths[:_NAMED]) + more


def keep_copies(rows: Sequence[Row], address: str) -> list[Row]:
    """Copy every picture and mask of a list into a folder, by its contents."""
    root = (
        address.rstrip("/") if address.startswith(SCHEME) else str(local_path(address).absolute())
    )
    there: set[str] = set()
    if root.startswith(SCHEME):
        there = {str(thing) for thing in S3Folder(root).walk()}
    kept = []
    for row in rows:
        data = _content(row.path)
        if hashlib.sha256(data).hexdigest() != row.sha256:
            raise DataError(f"{row.path} was changed while it was copied: run the command again.")
        masks = [_keep(root, m, _content(m), there) for m in row.mask.split(BETWEEN) if m]
        kept.append(replace(row, path=_keep(root, row.path, data, there), mask=BETWEEN.join(masks)))
    return kept


def _content(path: str) -> bytes:
    try:
        return store.read(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): check it.") from None


def _keep(root: str, source: str, data: bytes, there: set[str]) -> str:
    digest = hashlib.sha256(data).hexdigest()
    place = f"{root}/{digest[:2]}/{digest}{Path(source).suffix.lower()}"
    if root.startswith(SCHEME):
        if place not in there:
            store.upload(place, data)
    elif not (Path(place).is_file() and Path(place).stat().st_size == len(data)):
        with whole_file(Path(place)) as draft:
            draft.write_bytes(data)
    return place
