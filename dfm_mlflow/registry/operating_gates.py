"""Whether a version decides well at its own threshold: what it finds, and what it flags in vain."""

import pandas as pd

from dfm_mlflow.config import PromoteOptions
from dfm_mlflow.core.operating_point import UNLIKELY
from dfm_mlflow.registry.candidate import Candidate
from dfm_mlflow.registry.gates import Gate
from dfm_mlflow.scores.operating_points import chance_of_alarms, operating_points
from dfm_mlflow.scores.verdict import BROKEN_REMEDY, percent, said_rate, would_find


def recall_gate(candidate: Candidate, options: PromoteOptions, scored: pd.DataFrame) -> Gate:
    """Hold the share of labelled defects that is found at the threshold against the least."""
    bad = scored[scored["defective"].astype(bool)]
    if bad.empty:
        return Gate("recall", True, "No labelled defects, so what it finds of them is not known.")
    recalls = bad.groupby("category")["is_anomaly"].mean().astype(float)
    recall, found = float(recalls.mean()), int(bad["is_anomaly"].astype(bool).sum())
    passed = recall >= options.min_recall
    sentence = (
        f"Recall {recall:.2f}: {candidate.name} finds {found} of {len(bad)} defective pictures at "
        f"its threshold, which {'reaches' if passed else 'is below'} "
        f"min_recall={options.min_recall:g}"
    )
    if len(recalls) > 1:
        sentence += f" (least of {recalls.idxmin()}, {recalls.min():.2f})"
    if not passed:
        points = operating_points(candidate.detector, scored)
        now = next(p for p in points if p.current)
        sentence += f": {would_find(now, points)}, so train with another fpr or more good pictures"
    return Gate("recall", passed, sentence + ".", {"recall": recall, "n_found": found})


def false_alarm_gate(candidate: Candidate, scored: pd.DataFrame) -> Gate:
    """Refuse a version that flags more good test pictures than its promise and chance explain."""
    good = scored[~scored["defective"].astype(bool)]
    if good.empty:
        return Gate("false_alarms", True, "No good test pictures to compare the promise with.")
    flagged, promised = (
        int(good["is_anomaly"].astype(bool).sum()),
        candidate.detector.promised_fpr(),
    )
    chance = chance_of_alarms(candidate.detector, good)
    passed = chance >= UNLIKELY
    sentence = (
        f"{candidate.name.capitalize()} flags {flagged} of {len(good)} good test pictures where "
        f"{said_rate(candidate.detector)} is expected; chance gives so many in {percent(chance)} "
        "of cases"
    )
    if not passed:
        sentence += f", and {percent(UNLIKELY)} is the least: {BROKEN_REMEDY}"
    figures = {
        "false_positive_rate": flagged / len(good),
        "promised_fpr": promised,
        "false_alarm_chance": chance,
    }
    return Gate("false_alarms", passed, sentence + ".", figures)
