"""What verdicts and removals make of a list of pictures."""

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dfm_mlflow.data.item import GOOD, Item
from dfm_mlflow.data.listed import Finder, nothing_found, read_list
from dfm_mlflow.data.picture_list import Row, looks_at, named
from dfm_mlflow.data.verdicts import PictureVerdict
from dfm_mlflow.errors import DataError
from dfm_mlflow.storage.paths import local_path
from dfm_mlflow.storage.store import SCHEME, S3Object

NEW, REMOVED = "new", "removed"
TRAIN = "training"
_SAID = "a verdict"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Change:
    """What became of one picture."""

    sha256: str
    path: str
    category: str
    verdict: PictureVerdict | None  # none for one that was removed by a list
    before: str
    after: str

    @property
    def changed(self) -> bool:
        """Whether it is anything else now."""
        return self.before != self.after


@dataclass(frozen=True)
class Learned:
    """A list of pictures after verdicts and removals."""

    rows: list[Row]
    changes: list[Change]  # one for each picture with a verdict, good or bad, or a removal
    n_unsure: int = 0

    def count(self, *, before: str | None = None, after: str | None = None) -> int:
        """Count pictures that changed, by what they were `before` and are `after`."""
        return sum(
            c.changed
            and (before is None or c.before.startswith(before))
            and (after is None or c.after.startswith(after))
            for c in self.changes
        )

    @property
    def n_said(self) -> Counter[str]:
        """How many pictures were called good, and bad."""
        return Counter(c.verdict.verdict for c in self.changes if c.verdict)

    def sentence(self) -> str:
        """Say what changed, in numbers."""
        joined, left = self.count(after=TRAIN), self.count(before=TRAIN)
        tested, gone = self.count(after="test: "), self.count(after=REMOVED)
        lost = self.count(before="test: good", after=TRAIN)
        n_train = sum(row.fitted for row in self.rows)
        text = (
            f"{joined} pictures join the training set and {left} leave it, which has {n_train} "
            f"now; {tested} join the test set under their defects"
        )
        if lost:
            text += f", which {lost} good ones leave for the training set"
        text += f"; {gone} are removed" if gone else ""
        return text + (f"; {self.n_unsure} are judged unsure." if self.n_unsure else ".")


def place_of(row: Row) -> str:
    """Say what a `row` is for, as a :class:`Change` does."""
    if row.split != "train":
        return f"test: {row.label}"
    return "excluded" if row.excluded else TRAIN


def learn(
    rows: Sequence[Row],
    verdicts: Sequence[PictureVerdict],
    places: Mapping[str, str],
    removed: Collection[str],
    categories: Sequence[str],
) -> Learned:
    """Apply verdicts to a list: good pictures train, bad ones test, removed ones are gone."""
    of: dict[str, list[Row]] = {}
    for row in rows:
        of.setdefault(row.sha256, []).append(row)
    counted = [v for v in verdicts if v.verdict != "unsure" and v.sha256 not in removed]
    unknown = [v for v in counted if v.sha256 not in of and v.sha256 not in places]
    if unknown:
        raise DataError(
            f"{len(unknown)} of {len(counted)} verdicts are of pictures that are neither in the "
            f"model's list nor where the verdicts say, such as {named([v.name for v in unknown])}: "
            "give add=<folder> that holds them, or remove the lines."
        )
    changes = [
        Change(digest, mine[0].path, mine[0].category, None, place_of(mine[0]), REMOVED)
        for digest, mine in of.items()
        if digest in removed
    ]
    for verdict in counted:
        mine = of.get(verdict.sha256, [])
        before = place_of(mine[0]) if mine else NEW
        category = _category(verdict, mine, categories)
        old = mine or [Row(places[verdict.sha256], verdict.sha256, "", "")]
        of[verdict.sha256] = new = [_judged(row, verdict, category) for row in old]
        after = place_of(new[0])
        changes.append(Change(verdict.sha256, new[0].path, category, verdict, before, after))
    kept = [row for digest, mine in of.items() if digest not in removed for row in mine]
    _check(rows, kept, categories)
    n_unsure = sum(v.verdict == "unsure" for v in verdicts)
    return Learned(kept, changes, n_unsure)


def _judged(row: Row, verdict: PictureVerdict, category: str) -> Row:
    if verdict.verdict == "good":
        return replace(row, split="train", label=GOOD, mask="", excluded="", category=category)
    label = verdict.label
    if not verdict.defect and row.split == "test" and row.label != GOOD:
        label = row.label  # its defect has a name already
    return replace(row, split="test", label=label, excluded="", category=category)


def _category(verdict: PictureVerdict, mine: Sequence[Row], categories: Sequence[str]) -> str:
    known = verdict.category or (mine[0].category if mine else "")
    if not known and len(categories) == 1:
        return categories[0]
    if known not in categories:
        said = f"{known}, which it does not have" if known else "none of them"
        raise DataError(
            f"The model has the categories {', '.join(categories)}, and the verdict on "
            f"{verdict.name} names {said}: write one into the column category."
        )
    return known


def _check(before: Sequence[Row], after: Sequence[Row], categories: Sequence[str]) -> None:
    for category in categories:
        left = sum(row.fitted and row.category == category for row in after)
        if left < 2:
            n = sum(row.fitted and row.category == category for row in before)
            raise DataError(
                f"The update would leave {left} of {n} good pictures of {category} to fit on, and "
                "at least 2 are needed: add good ones, or take fewer away."
            )


def places_of_verdicts(
    verdicts: Sequence[PictureVerdict], known: Collection[str]
) -> dict[str, str]:
    """Say where pictures are that verdicts name, if what lies there has the contents they say."""
    wanted = {
        v.sha256: v.path if v.path.startswith(SCHEME) else str(local_path(v.path).absolute())
        for v in verdicts
        if v.path and v.sha256 not in known and v.verdict != "unsure"
    }
    looks = looks_at(list(wanted.values()))
    found = {d: p for d, p in wanted.items() if p in looks and looks[p].sha256 == d}
    changed = [p for d, p in wanted.items() if p in looks and looks[p].sha256 != d]
    if changed:
        _logger.warning(
            "%d pictures have other contents than when they were judged, and are not used: %s.",
            len(changed),
            named(changed),
        )
    return found


def digests_to_remove(rows: Sequence[Row], address: str) -> set[str]:
    """Find the pictures that a list names."""
    if address == "none":
        return set()
    items = [
        Item(
            S3Object(row.path, "", 0) if row.path.startswith(SCHEME) else Path(row.path),
            row.category,
            row.split,
            row.label,
        )
        for row in rows
    ]
    digests = {row.path: row.sha256 for row in rows}
    finder = Finder(items, digests)
    found: set[str] = set()
    for line in read_list(address, "remove"):
        mine = finder.find(line)
        if not mine:
            raise nothing_found("remove", address, line, finder, "picture of the model's list")
        found |= {digests[str(item.path)] for item in mine}
    return found
