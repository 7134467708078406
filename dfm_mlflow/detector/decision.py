"""What scores under each class come to: p-values, the class, the decision, and the promise."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dfm_mlflow.core.calibration import (
    Calibration,
    combine_classes,
    images_needed,
    is_anomaly,
)
from dfm_mlflow.core.leading_coordinates import calibration_ranks
from dfm_mlflow.detector.class_model import ClassModel, ClassScores


def decide(
    classes: Sequence[ClassModel],
    scored: Sequence[ClassScores],
    fpr: float,
    retest: float | None,
    *,
    category: str = "auto",
    rule: int = 2,
) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Turn the scores of n pictures under each class into rows, without map.

    The class of a picture is the one under which the negative log-likelihood over the whole
    feature space is smallest, and its p-value is that of this class.

    Gives best (n,) int: index of the class that each fits best.
    """
    columns = [torch.stack([s.score, s.fre, s.nll]) for s in scored]
    score, fre, nll = torch.stack(columns, dim=2).double().cpu().numpy()
    if category != "auto":
        best = np.full(len(score), [c.name for c in classes].index(category))
    elif rule == 1:
        every = [c.calibration.p_value(score[:, j]) for j, c in enumerate(classes)]
        best = combine_classes(np.stack(every, axis=1), -nll)
    else:
        best = nll.argmin(axis=1)
    p_values = np.empty(len(score))
    for j in np.unique(best):  # of the class that was chosen alone
        p_values[best == j] = classes[j].calibration.p_value(score[best == j, j])
    promise = np.array([c.calibration.effective_fpr(fpr) for c in classes])
    rows = []
    for i, j in enumerate(best):
        p = float(p_values[i])
        flagged = bool(is_anomaly(p_values[i], promise[j]))
        again = retest is not None and p <= retest
        rows.append(
            {
                "anomaly_score": float(score[i, j]),
                "p_value": p,
                "is_anomaly": flagged,
                "predicted_class": classes[j].name,
                "fre": float(fre[i, j]),
                "nll": float(nll[i, j]),
                "anomaly_map": None,
                "error": None,
                "decision": "reject" if flagged else "retest" if again else "pass",
            }
        )
    return rows, best


def calibration_ranks_of(
    model: ClassModel, leading_coordinates: Sequence[torch.Tensor]
) -> np.ndarray:
    """Give the ranks of a picture's leading coordinates among those of the calibration.

    Shapes: leading_coordinates (l,).
    """
    found = [
        calibration_ranks(layer.leading_coordinates, values.cpu().numpy()[None])[0]
        for layer, values in zip(model.layers, leading_coordinates, strict=True)
    ]
    return np.concatenate(found)


def rank_of_light(model: ClassModel, light: float) -> float:
    """Give the rank of a picture's mean level among those of the calibration."""
    if model.light is None:
        return math.nan
    return float(calibration_ranks(model.light[:, None], np.array([[light]]))[0, 0])


def is_estimate(classes: Sequence[ClassModel], fpr: float) -> bool:
    """Whether the false-positive rate of some class is estimated, not bounded."""
    return any(c.calibration.is_estimate(fpr) for c in classes)


def calibration_sentence(
    classes: Sequence[ClassModel], fpr: float, retest: float | None, contamination: float = 0.0
) -> str:
    """Say in one sentence where the thresholds come from and what they promise."""
    effective = max(c.calibration.effective_fpr(fpr) for c in classes)
    promised = max(c.calibration.promised_fpr(fpr) for c in classes)
    smallest = min(classes, key=lambda c: c.calibration.n_groups).calibration
    thresholds = [(c.name, c.calibration.threshold(fpr)) for c in classes]
    several = len(classes) > 1
    if several:
        subject = "The thresholds " + ", ".join(f"{name} {t:.4g}" for name, t in thresholds)
    else:
        subject = f"The threshold {thresholds[0][1]:.4g}"
    if is_estimate(classes, fpr):
        says = f"give{'' if several else 's'} an estimated false-positive rate of"
    else:
        says = f"promise{'' if several else 's'} a false-positive rate of at most"
    sentence = f"{subject} {says} {promised:.3g}{_basis(smallest, several)}"
    if effective > fpr:
        kind = "pictures" if smallest.groups is None else "groups"
        enough = images_needed(fpr, smallest.tail, contamination)
        sentence += f"; the target false-positive rate {fpr:.3g} needs {enough} good {kind}"
    if retest is not None:
        sentence += f"; pictures with p-values up to {retest:.3g} are to be looked at again"
    return sentence + "."


def _basis(calibration: Calibration, several: bool) -> str:
    """Say what a promise rests on: how p-values come about, from how many pictures."""
    kind = "empirical p-values"
    if calibration.tail:
        kind = "p-values that a generalised Pareto tail estimates beyond the largest"
    groups = "" if calibration.groups is None else f" in {calibration.n_groups} groups"
    text = (
        f", by {kind}, from {len(calibration.scores)}{'' if calibration.n_folds else ' new'} good "
        f"pictures{groups}{' of the smallest category' if several else ''}"
    )
    if calibration.n_folds:
        text += f" held out in {calibration.n_folds} folds"
        if calibration.refit_ratio != 1:
            text += f" and multiplied by {calibration.refit_ratio:.3f}, as the final model sees all"
    if calibration.n_left_out:
        unit = "pictures" if calibration.groups is None else "groups"
        text += (
            f"; the {calibration.n_left_out} {unit} with the highest scores are left out as "
            "declared dirt, which the rate allows for"
        )
    return text
