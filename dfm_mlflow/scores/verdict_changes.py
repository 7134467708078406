"""What two models say of the pictures that people judged, and what each verdict changed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dfm_mlflow.core.calibration import is_anomaly
from dfm_mlflow.data.learned import TRAIN, Change
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector

COLUMNS = ("anomaly_score", "p_value", "is_anomaly", "held_out")


@dataclass(frozen=True)
class Said:
    """What a model says of one picture."""

    anomaly_score: float
    p_value: float
    is_anomaly: bool
    held_out: bool = True  # whether that is of a model that was not fitted to the picture


def said_of_scored(table: pd.DataFrame, fitted: frozenset[str] = frozenset()) -> dict[str, Said]:
    """Take scores of a table by path; those of pictures with an error are left out."""
    read = table[table["error"].isna()] if len(table) else table
    return {
        str(row["path"]): Said(
            float(row["anomaly_score"]),
            float(row["p_value"]),
            bool(row["is_anomaly"]),
            row["path"] not in fitted,
        )
        for row in read.to_dict("records")
    }


def said_while_held_out(
    detector: AnomalyDetector, scores: pd.DataFrame, by: str = "path"
) -> dict[str, Said]:
    """Take held-out scores of training pictures."""
    fpr = detector.options.fpr
    promise = {c.name: c.calibration.effective_fpr(fpr) for c in detector.classes}
    found = {}
    for row in scores[scores["used"].astype(bool)].to_dict("records"):
        p, category = float(row["p_value"]), row["category"]
        if category in promise:
            flagged = bool(is_anomaly(np.array([p]), promise[category])[0])
            found[str(row[by])] = Said(float(row["held_out_score"]), p, flagged)
    return found


def change_table(
    changes: Sequence[Change], before: Mapping[str, Said], now: Mapping[str, Said]
) -> pd.DataFrame:
    """Put the pictures that were judged or removed beside what both models say of them."""
    rows = []
    for change in changes:
        said = change.verdict
        row: dict[str, object] = {
            "path": change.path,
            "sha256": change.sha256,
            "category": change.category,
            "verdict": said.verdict if said else "removed",
            "defect": said.defect if said else "",
            "who": said.who if said else "",
            "when": said.when if said else "",
            "was": change.before,
            "is": change.after,
        }
        for end, of in (("before", before), ("now", now)):
            found = of.get(change.sha256)
            row |= {f"{c}_{end}": None if found is None else getattr(found, c) for c in COLUMNS}
        rows.append(row)
    return pd.DataFrame(rows)


def changes_sentence(table: pd.DataFrame) -> str:
    """Say what became of the pictures that were judged, in a sentence."""
    parts = []
    for verdict in ("good", "bad"):
        mine = table[table["verdict"] == verdict] if len(table) else table
        both = mine.dropna(subset=["is_anomaly_before", "is_anomaly_now"]) if len(mine) else mine
        if len(both):
            was, now = (int(both[f"is_anomaly_{end}"].astype(bool).sum()) for end in _ENDS)
            parts.append(
                f"of {len(both)} pictures that were called {verdict}, {was} were flagged before "
                f"and {now} are now"
            )
    if not parts:
        return ""
    text = "; ".join(parts)
    inside = int((table["held_out_before"] == False).sum())  # noqa: E712
    if inside:
        text += (
            f" (the model before was fitted to {inside} of them, and scores those lower than new "
            "ones)"
        )
    return text[0].upper() + text[1:] + "."


def hard_ones_sentence(table: pd.DataFrame, n_calibrated: int) -> str:
    """Say so where the pictures that join are less typical than pictures as they come.

    Notes
    -----
    The mean p-value of n pictures among m calibrated ones is a Mann-Whitney statistic: its standard
    deviation is ``sqrt((n + m + 1) / (12 n m))`` where both are of one distribution (Mann & Whitney
    1947), and three of them are asked for.
    """
    if not len(table):
        return ""
    is_new = table["was"].ne(TRAIN) & table["held_out_before"].eq(True)
    new = table["verdict"].eq("good") & is_new
    p_values = table.loc[new, "p_value_before"].astype(float)
    n, mean = len(p_values), float(p_values.mean())
    if not n or mean > _HARD:
        return ""
    if 0.5 - mean < 3 * math.sqrt((n + n_calibrated + 1) / (12 * n * n_calibrated)):
        return ""
    return (
        f"The {n} good pictures that join had p-values of {mean:.2f} on average under the model "
        "before, where pictures as they come have 0.5: a set that grows by its hardest pictures "
        "gets too high a threshold, and finds fewer defects. Judge those that pass, too: serve "
        "with keep=all for a while, or review what `score` wrote."
    )


_ENDS = ("before", "now")
_HARD = 0.4  # mean p-value; where those in a retest band up to 0.8 join, and no others, it is this
