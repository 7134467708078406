"""What people said of pictures: good, bad or unsure, one line of a CSV each."""

import csv
import fcntl
import io
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

from dfm_mlflow.data.names import may_be_either, means_good
from dfm_mlflow.errors import DataError
from dfm_mlflow.storage import store
from dfm_mlflow.storage.whole_file import whole_file

VERDICTS = ("good", "bad", "unsure")
DEFECT = "defective"  # label of a bad picture whose defect nobody named
_SHA256 = re.compile(r"[0-9a-f]{64}")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PictureVerdict:
    """What somebody said of one picture."""

    sha256: str  # of its file, hexadecimal
    verdict: str
    path: str = ""  # where it was
    defect: str = ""  # name of the defect of a bad one; empty where nobody named it
    category: str = ""  # of the picture, where a model knows several; empty where nobody named it
    who: str = ""
    when: str = ""
    model: str = ""

    @property
    def label(self) -> str:
        """Label that it gives its picture in a list of pictures."""
        return (self.defect or DEFECT) if self.verdict == "bad" else "good"

    @property
    def name(self) -> str:
        """The picture in a message."""
        return self.path or self.sha256


COLUMNS = tuple(field.name for field in fields(PictureVerdict))


def read_verdicts(address: str) -> list[PictureVerdict]:
    """Read the verdicts of a file, the last one of each picture."""
    text = store.read_text(address, f"verdicts={address}")
    known = [_checked(address, line, cells) for line, cells in _lines(address, text)]
    if not known:
        raise DataError(f"{address} holds no verdict: judge some pictures with `review` first.")
    last: dict[str, PictureVerdict] = {}
    conflicts = []
    for verdict in known:
        before = last.pop(verdict.sha256, None)  # it goes to the end
        if before is not None and _differ(before, verdict):
            conflicts.append((before, verdict))
        last[verdict.sha256] = verdict
    if conflicts:
        before, now = conflicts[0]
        _logger.warning(
            "%s says different things of %d pictures, and the last verdict counts: %s is %s, then "
            "%s.",
            address,
            len({now.sha256 for _, now in conflicts}),
            now.name,
            _said(before),
            _said(now),
        )
    return list(last.values())


def append_verdict(path: Path, verdict: PictureVerdict) -> None:
    """Add a verdict to a file; it is there as a whole or not at all, whenever the process dies."""
    with _alone(path):
        text = store.read_text(str(path), f"verdicts={path}") if path.exists() else ""
        rows = [cells for _, cells in _lines(str(path), text)] if text.strip() else []
        new = {name: getattr(verdict, name) for name in COLUMNS}
        columns = list(dict.fromkeys([*(rows[0] if rows else ()), *COLUMNS]))
        with whole_file(path) as draft, open(draft, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows([*rows, new])
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let one process after another add to a file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(path.with_name(f".{path.name}.lock"), "a")  # noqa: SIM115  # closed below
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror}): check its folder.") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _lines(address: str, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows as they are, with the numbers of their lines; empty ones are left out."""
    reader = csv.DictReader(io.StringIO(text, newline=""))
    columns = [c.strip() for c in reader.fieldnames or ()]
    missing = [c for c in ("sha256", "verdict") if c not in columns]
    if missing:
        raise DataError(
            f"verdicts={address} lacks the column {', '.join(missing)}: its first line must name "
            f"sha256 and verdict, and may name {', '.join(COLUMNS[2:])}."
        )
    reader.fieldnames = columns
    for values in reader:
        cells = {c: (values.get(c) or "").strip() for c in columns}
        if any(cells.values()):
            yield reader.line_num, cells


def _checked(address: str, line: int, cells: dict[str, str]) -> PictureVerdict:
    given = {name: cells.get(name, "") for name in COLUMNS}
    given["sha256"], given["verdict"] = given["sha256"].lower(), given["verdict"].lower()
    verdict = PictureVerdict(**given)
    wrong = None
    if not _SHA256.fullmatch(verdict.sha256):
        wrong = f"sha256={cells['sha256'][:80]} is not a SHA-256: give 64 hexadecimal digits"
    elif verdict.verdict not in VERDICTS:
        wrong = f"verdict={cells['verdict'][:80]}: give {', '.join(VERDICTS)}"
    elif verdict.defect and verdict.verdict != "bad":
        wrong = (
            f"a picture that is {verdict.verdict} has the defect {verdict.defect}: leave one of "
            "them out"
        )
    elif means_good(verdict.defect) or may_be_either(verdict.defect):
        wrong = f"the defect {verdict.defect} may mean good: call it by another name"
    if wrong:
        raise DataError(f"verdicts={address}, line {line}: {wrong}.")
    return verdict


def _differ(before: PictureVerdict, now: PictureVerdict) -> bool:
    """Whether a later verdict says something else, and not only more."""
    defects = {before.defect, now.defect} - {""}
    return before.verdict != now.verdict or len(defects) > 1


def _said(verdict: PictureVerdict) -> str:
    defect = f" ({verdict.defect})" if verdict.defect else ""
    return f"{verdict.verdict}{defect}" + (f" by {verdict.who}" if verdict.who else "")


def who_said(verdicts: Sequence[PictureVerdict]) -> str:
    """Name those who gave `verdicts`, each once, or ``unknown``."""
    return ", ".join(dict.fromkeys(v.who for v in verdicts if v.who)) or "unknown"
