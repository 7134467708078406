"""The pictures of a training run: tables of all, and those that a person should look at."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dfm_mlflow.config import Options
from dfm_mlflow.core.groups import group_rows
from dfm_mlflow.core.outliers import Setter, find_setter
from dfm_mlflow.data.catalog import Catalog
from dfm_mlflow.data.groups import expression_for
from dfm_mlflow.data.item import Item
from dfm_mlflow.detector.held_out import HeldOutScores
from dfm_mlflow.images.read import Look, depth_of
from dfm_mlflow.scores.copies import (
    Copies,
    NearCopies,
    copies_sentences,
    find_near_copies,
)
from dfm_mlflow.scores.evaluation import Evaluation, counted
from dfm_mlflow.scores.tables import picture_table, score_table

SHARE, MOST = 0.2, 12  # of the training pictures a person is shown
WORTH_A_LOOK = 0.05  # recall that a threshold without one picture would gain


@dataclass(frozen=True)
class Odd:
    """A training picture to look at."""

    place: int  # among the pictures that the detector was fitted to
    path: str
    category: str
    score: float
    p_value: float
    why: tuple[str, ...]  # what is unusual about it


@dataclass(frozen=True)
class Threshold:
    """The picture with the largest held-out score of a category, and what hangs on it."""

    category: str
    path: str
    setter: Setter
    recall: float | None = None
    recall_without: float | None = None

    def sentence(self, several: bool) -> str:
        """Say what it does to the threshold; `several` categories are named."""
        of = f" of {self.category}" if several else ""
        s = self.setter
        name = self.path.rpartition("/")[2]
        if s.without >= s.threshold:
            return (
                f"No picture alone sets the threshold{of} ({s.threshold:.4g}; without the most "
                f"unusual one, {name}, {s.without:.4g})."
            )
        recall, gain = "", 0.0
        if self.recall is not None and self.recall_without is not None:
            gain = self.recall_without - self.recall
            recall = f", and recall would be {self.recall_without:.2f} instead of {self.recall:.2f}"
        which = "alone sets" if s.apart else "sets"
        look = ": look at it" if s.apart or gain >= WORTH_A_LOOK else ""
        return (
            f"{name} {which} the threshold{of} ({s.threshold:.4g}; without it "
            f"{s.without:.4g}{recall}){look}."
        )


@dataclass(frozen=True, eq=False)
class TrainingLook:
    """What a run shows of its training pictures."""

    # One row a training picture: ``path``, ``sha256``, ``category``, ``group``, ``held_out_score``,
    # ``p_value``, ``used``.
    scores: pd.DataFrame
    # One row a picture of the run: ``path``, ``sha256``, ``split``, ``label``, ``mask``,
    # ``category``, ``group``, ``excluded``.
    pictures: pd.DataFrame
    thresholds: list[Threshold]  # one for each category with enough pictures
    odd: list[Odd]  # the most unusual first
    typical: list[Odd]  # from the middle of the held-out scores
    copies: Copies
    near: NearCopies
    warnings: list[str]  # at most two lines for the log

    @property
    def concerns(self) -> list[str]:
        """What stands apart and alone sets a threshold, in one sentence a category."""
        several = len(self.thresholds) > 1
        return [t.sentence(several) for t in self.thresholds if t.setter.apart]

    @property
    def groups(self) -> pd.DataFrame:
        """Near copies as ``path,group``, for ``group_by=groups.csv``."""
        ordered = sorted(self.near.groups.items(), key=lambda pair: pair[1])
        numbers = {g: i for i, g in enumerate(dict.fromkeys(g for _, g in ordered), 1)}
        rows = [(path, f"alike-{numbers[g]}") for path, g in ordered]
        return pd.DataFrame(rows, columns=["path", "group"])


def look_at_training(
    options: Options,
    catalog: Catalog,
    items: Sequence[Item],
    held_out: HeldOutScores,
    groups: Sequence[str] | None,
    evaluation: Evaluation,
    copies: Copies,
) -> TrainingLook:
    """Say what the training pictures are like, and which to look at."""
    contents, looks = catalog.contents, catalog.looks
    near = find_near_copies(items, held_out, evaluation, contents, groups)
    thresholds = _thresholds(options, items, held_out, groups, contents, evaluation)
    order = np.lexsort((-held_out.score, held_out.p_value))
    setters = [t.path for t in thresholds if t.setter.apart]
    first = [i for i in order if str(items[i].path) in setters]
    shown = [*first, *(i for i in order if i not in first)]
    shown = shown[: max(len(first), min(MOST, math.ceil(SHARE * len(items))))]
    sizes = _common_sizes(items, looks)

    middle = [int(i) for i in order[len(order) // 2 :][:3]]
    depths = {i: depth_of(items[i].path) for i in [*shown, *middle]}
    common = {depths[i] for i in middle}

    def odd(i: int) -> Odd:
        why = _why(items[i], float(held_out.p_value[i]), looks, sizes, copies, near)
        if len(common) == 1 and depths[i] not in common:
            why = (*why, f"{depths[i]}, others {', '.join(map(str, common))}")
        path, category = str(items[i].path), items[i].category
        return Odd(
            int(i), path, category, float(held_out.score[i]), float(held_out.p_value[i]), why
        )

    return TrainingLook(
        score_table(catalog, items, held_out, groups),
        picture_table(catalog, items, groups),
        thresholds,
        [odd(i) for i in shown],
        [odd(i) for i in middle],
        copies,
        near,
        _warnings(thresholds, copies, near, options),
    )


def _thresholds(
    options: Options,
    items: Sequence[Item],
    held_out: HeldOutScores,
    groups: Sequence[str] | None,
    contents: Mapping[str, str],
    evaluation: Evaluation,
) -> list[Threshold]:
    found = []
    for category in dict.fromkeys(item.category for item in items):
        mine = [i for i, item in enumerate(items) if item.category == category]
        keys = [contents[str(items[i].path)] for i in mine]
        own = None if groups is None else [groups[i] for i in mine]
        setter = find_setter(
            held_out.score[mine],
            group_rows(keys, own, seed=options.seed),
            options.fpr,
            method=options.tail,
            contamination=options.contamination,
        )
        if setter is not None:
            path = str(items[mine[setter.index]].path)
            recalls = _recalls(evaluation, category, setter.without)
            found.append(Threshold(category, path, setter, *recalls))
    return found


def _recalls(
    evaluation: Evaluation, category: str, without: float
) -> tuple[float | None, float | None]:
    """Recall as it is, and with the threshold of a category at another value."""
    table = counted(evaluation.table)
    table = table[table["defective"].astype(bool) & (table["category"] == category)]
    if table.empty:
        return None, None
    flagged = table["is_anomaly"].to_numpy(bool)
    judged = (table["predicted_class"] == category).to_numpy(bool)
    above = table["anomaly_score"].to_numpy(float) > without
    return float(flagged.mean()), float(np.where(judged, above, flagged).mean())


def _common_sizes(
    items: Sequence[Item], looks: Mapping[str, Look]
) -> dict[str, tuple[int, int] | None]:
    """The size that nine of ten pictures of a category have, or None."""
    common = {}
    for category in dict.fromkeys(item.category for item in items):
        sizes = Counter(looks[str(i.path)].size for i in items if i.category == category)
        size, n = sizes.most_common(1)[0]
        common[category] = size if n >= 0.9 * sizes.total() else None
    return common


def _why(
    item: Item,
    p_value: float,
    looks: Mapping[str, Look],
    sizes: Mapping[str, tuple[int, int] | None],
    copies: Copies,
    near: NearCopies,
) -> tuple[str, ...]:
    path, size, common = str(item.path), looks[str(item.path)].size, sizes[item.category]
    why = []
    if p_value <= SHARE:
        why.append(f"far from the rest: {p_value:.1%} of the good pictures score as high")
    if path in copies.of:
        why.append(f"duplicate of {copies.of[path]}")
    if path in near.of:
        why.append(f"near-duplicate of {near.of[path]}")
    if size and common and size != common:
        why.append(f"{size[1]} x {size[0]} pixels, the others {common[1]} x {common[0]}")
    return tuple(why)


def _warnings(
    thresholds: Sequence[Threshold], copies: Copies, near: NearCopies, options: Options
) -> list[str]:
    several = len(thresholds) > 1
    lines = [" ".join(t.sentence(several) for t in thresholds if t.setter.apart)]
    groups = sorted(near.groups.items())
    expression = expression_for([p for p, _ in groups], [g for _, g in groups]) if groups else None
    lines.append(copies_sentences(copies, near, options.test_copies == "count", expression))
    return [line for line in lines if line]
