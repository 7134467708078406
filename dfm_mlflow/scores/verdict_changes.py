"""What two models say of the pictures that people judged, and what each verdict changed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dfm_mlflow.core.calibration import is_anomaly
from dfm_mlflow.data.learned import Change
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


_ENDS = ("before", "now")
