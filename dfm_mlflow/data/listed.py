"""Files in which somebody names pictures, by path or content: to leave out, or to group."""

import csv
import io
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from dfm_mlflow.data.item import Item
from dfm_mlflow.errors import DataError
from dfm_mlflow.storage import store

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True)
class Line:
    """One line of a list of pictures."""

    number: int  # in the file, from 1
    path: str
    sha256: str
    cells: dict[str, str]  # further columns of a CSV

    @property
    def name(self) -> str:
        """What it says, for a message."""
        return self.path or self.sha256


def read_list(address: str, option: str) -> list[Line]:
    """Read a text file of paths or digests, one a line, or a CSV with a column of them."""
    text = store.read_text(address, f"{option}={address}")
    if not address.lower().endswith(".csv"):
        stripped = ((i, line.strip()) for i, line in enumerate(text.splitlines(), 1))
        named = [(i, line) for i, line in stripped if line and not line.startswith("#")]
        return [
            Line(i, "", line.lower(), {}) if _SHA256.fullmatch(line) else Line(i, line, "", {})
            for i, line in named
        ]
    reader = csv.DictReader(io.StringIO(text, newline=""))
    columns = [c.strip() for c in reader.fieldnames or ()]
    if not {"path", "sha256"} & set(columns):
        raise DataError(
            f"{option}={address} has no column path and no sha256: its first line must name one of "
            "them."
        )
    reader.fieldnames = columns
    lines = []
    for values in reader:
        cells = {c: (values.get(c) or "").strip() for c in columns}
        line = Line(reader.line_num, cells.pop("path", ""), cells.pop("sha256", ""), cells)
        if line.name:
            lines.append(line)
    return lines


class Finder:
    """Finds the pictures that lines name."""

    def __init__(self, items: Iterable[Item], digests: dict[str, str] | None = None):
        self._by_path: dict[str, list[Item]] = {}
        self._by_name: dict[str, list[Item]] = {}
        self._by_digest: dict[str, list[Item]] = {}
        for item in items:
            path = str(item.path)
            self._by_path.setdefault(_whole(path), []).append(item)
            self._by_name.setdefault(PurePosixPath(path.replace("\\", "/")).name, []).append(item)
            if digests is not None and path in digests:
                self._by_digest.setdefault(digests[path].lower(), []).append(item)

    def find(self, line: Line) -> list[Item]:
        """Give the pictures of a `line`: by its path, by the end of their paths, or by content.

        A path may be written out or be the last parts of one, such as ``good/017.png``. Of several
        pictures with that end the line names none; see :meth:`ambiguous`.
        """
        if line.path:
            exact = self._by_path.get(_whole(line.path), [])
            found = exact or self._ending(line.path)
            if len(found) == 1 or exact:
                return found
        return self._by_digest.get(line.sha256.lower(), []) if line.sha256 else []

    def ambiguous(self, line: Line) -> list[Item]:
        """Give the several pictures whose paths end as the `line` says; empty for one or none."""
        found = self._ending(line.path) if line.path else []
        return found if len(found) > 1 else []

    def _ending(self, path: str) -> list[Item]:
        parts = [p for p in path.replace("\\", "/").split("/") if p not in ("", ".")]
        if not parts:
            return []
        found = self._by_name.get(parts[-1], [])
        end = "/" + "/".join(parts)
        return [i for i in found if ("/" + str(i.path).replace("\\", "/")).endswith(end)]


def _whole(path: str) -> str:
    """Give a path as it is compared: absolute on this machine, an address as it is."""
    return path if path.startswith(store.SCHEME) else os.path.abspath(os.path.expanduser(path))


def nothing_found(
    option: str, address: str, line: Line, finder: Finder, kind: str = "training picture"
) -> DataError:
    """Say that a `line` names no picture, or several."""
    several = finder.ambiguous(line)
    if several:
        kinds = kind.replace("picture", "pictures", 1)
        return DataError(
            f"{option}={address}, line {line.number}: {len(several)} {kinds} end in "
            f"{line.path}, such as {several[0].path} and {several[1].path}: write more of the path."
        )
    return DataError(
        f"{option}={address}, line {line.number}: {line.name} is not a {kind}: correct or "
        "remove the line."
    )
