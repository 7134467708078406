"""Pictures that stand in a run more than once: the same bytes, or nearly the same features."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from dfm_mlflow.core.duplicates import Likeness
from dfm_mlflow.data.catalog import Catalog
from dfm_mlflow.data.item import Item
from dfm_mlflow.detector.held_out import HeldOutScores
from dfm_mlflow.scores.evaluation import Evaluation

_NOTHING = hashlib.sha256(b"").hexdigest()  # of what could not be read
_NAMED = 3  # pictures in a sentence


@dataclass(frozen=True)
class Copies:
    """Which pictures of a run have the bytes of another."""

    # The first picture with the same bytes, training ones before test ones, by path.
    of: dict[str, str] = field(default_factory=dict)
    # Why a test picture says nothing: it was fitted to, or stands under another label, too.
    left_out: dict[str, str] = field(default_factory=dict)


def find_copies(catalog: Catalog) -> Copies:
    """Compare the contents of all pictures but those that are excluded."""
    contents = catalog.contents
    first: dict[str, Item] = {}
    of: dict[str, str] = {}
    for item in [*catalog.train, *catalog.test]:
        digest = contents[str(item.path)]
        if digest == _NOTHING:
            continue
        if first.setdefault(digest, item) is not item:
            of[str(item.path)] = str(first[digest].path)
    fitted = {contents[str(i.path)]: str(i.path) for i in reversed(catalog.train)}
    labels: dict[str, dict[str, str]] = {}
    for item in catalog.test:
        labels.setdefault(contents[str(item.path)], {}).setdefault(item.label, str(item.path))
    left_out = {}
    for item in catalog.test:
        digest = contents[str(item.path)]
        if digest == _NOTHING:
            continue
        others = {label: path for label, path in labels[digest].items() if label != item.label}
        if digest in fitted:
            left_out[str(item.path)] = f"the model was fitted to it as {fitted[digest]}"
        elif others:
            label, path = next(iter(others.items()))
            left_out[str(item.path)] = f"it is labelled {label} as {path}, too"
    return Copies(of, left_out)


@dataclass(frozen=True)
class NearCopies:
    """Pictures that nearly equal others, though their bytes differ."""

    # Of training pictures: the most alike other training picture, by path.
    of: dict[str, str] = field(default_factory=dict)
    # Of those pictures: the same number for all that belong together.
    groups: dict[str, int] = field(default_factory=dict)
    # Of test pictures: the training picture that it nearly equals.
    in_test: dict[str, str] = field(default_factory=dict)


def find_near_copies(
    items: Sequence[Item],
    held_out: HeldOutScores,
    evaluation: Evaluation,
    contents: dict[str, str],
    groups: Sequence[str] | None,
) -> NearCopies:
    """Compare the features of training pictures with each other and with those of test pictures."""
    found = NearCopies()
    if held_out.sketches is None:
        return found
    for category in dict.fromkeys(item.category for item in items):
        mine = np.array([i for i, item in enumerate(items) if item.category == category])
        paths = [str(items[i].path) for i in mine]
        digests = [contents[path] for path in paths]
        # copies are compared once, else they would hide what is usual
        _, unique = np.unique(digests, return_index=True)
        likeness = Likeness(held_out.sketches[mine[unique]])
        near = likeness.within()
        for place in near.found:
            a, b = unique[place], unique[near.of[place]]
            if groups is None or groups[mine[a]] != groups[mine[b]]:
                found.of[paths[a]] = paths[b]
                found.groups[paths[a]] = int(near.groups[place]) + len(items) * int(mine[0])
        table = evaluation.table
        rows = [
            i
            for i, seen in evaluation.seen.items()
            if seen.sketch is not None and table["category"][i] == category
        ]
        if not rows:
            continue
        sketches = [s for i in rows if (s := evaluation.seen[i].sketch) is not None]
        of, _ = likeness.between(np.stack(sketches))
        for row, place in zip(rows, of, strict=True):
            path = table["path"][row]
            if place >= 0 and contents[path] not in digests:
                found.in_test[path] = paths[unique[place]]
    return found


def copies_sentences(
    copies: Copies, near: NearCopies, counted: bool, expression: str | None
) -> str:
    """Say in a few sentences what was found, and what to do."""
    parts = []
    if copies.left_out:
        path, why = next(iter(copies.left_out.items()))
        done = "are counted in the metrics" if counted else "are left out of the metrics"
        n = len(copies.left_out)
        parts.append(f"{_number(n, 'test picture')} {done}, such as {path}: {why}.")
    if near.of:
        path, other = next(iter(near.of.items()))
        remedy = f"group_by='{expression}'" if expression else "group_by=groups.csv of this run"
        parts.append(
            f"{_number(len(near.of), 'training picture')} nearly equal others, such as {path} "
            f"{other}: if these are bursts or copies, {remedy} holds them out together, else the "
            "promise breaks."
        )
    if near.in_test:
        path, other = next(iter(near.in_test.items()))
        parts.append(
            f"{_number(len(near.in_test), 'test picture')} nearly equal training pictures, such as "
            f"{path} {other}: metrics on them are too good."
        )
    same = {p: o for p, o in copies.of.items() if p not in copies.left_out}
    if same:
        names = ", ".join(list(same)[:_NAMED]) + (" ..." if len(same) > _NAMED else "")
        parts.append(
            f"{_number(len(same), 'picture')} with the bytes of another: {names}; copies of a "
            "training picture count as one."
        )
    return " ".join(parts)


def _number(n: int, what: str) -> str:
    return f"{n} {what}" + ("" if n == 1 else "s")
