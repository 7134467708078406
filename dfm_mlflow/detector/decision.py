"""What scores under each class come to: p-values, the class, the decision, and the promise."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dfm_mlflow.core.calibration import combine_classes, images_needed, is_anomaly
from dfm_mlflow.detector.class_model import MOST_LEADING, ClassModel, ClassScores


def decide(
    classes: Sequence[ClassModel], scored: Sequence[ClassScores], fpr: float, retest: float | None
) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Turn the scores of n pictures under each class into rows, without map.

    Parameters
    ----------
    classes : sequence of ClassModel
    scored : sequence of ClassScores
        One for each class.
    fpr : float
        False-positive rate of the decision, in (0, 1).
    retest : float or None
        Second, larger rate, up to which pictures are to be looked at again.

    Returns
    -------
    rows : list of dict
        One for each picture, with all of :data:`~dfm_mlflow.columns.COLUMNS` and ``decision``.
    best : ndarray of shape (n,), int
        Index of the class that each fits best.
    """
    columns = [torch.stack([s.score, s.fre, s.nll]) for s in scored]
    score, fre, nll = torch.stack(columns, dim=2).double().cpu().numpy()
    p_values = np.stack([c.calibration.p_value(score[:, j]) for j, c in enumerate(classes)], axis=1)
    best = combine_classes(p_values, -nll)
    promise = np.array([c.calibration.effective_fpr(fpr) for c in classes])
    rows = []
    for i, j in enumerate(best):
        p = float(p_values[i, j])
        flagged = bool(is_anomaly(p_values[i, j], promise[j]))
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


def places_of(model: ClassModel, leading: Sequence[torch.Tensor]) -> np.ndarray:
    """Give the place of a picture's leading coordinates among those of the calibration.

    Parameters
    ----------
    model : ClassModel
        Of the class that the picture fits best.
    leading : sequence of Tensor of shape (l,)
        First coordinates in each layer.

    Returns
    -------
    ndarray
        Of shape (layers * MOST_LEADING,), in (0, 1]: uniform where nothing changed;
        NaN where a class has fewer coordinates.
    """
    places = []
    for layer, values in zip(model.layers, leading, strict=True):
        known = layer.leading
        above = len(known) - np.array(
            [np.searchsorted(known[:, k], v) for k, v in enumerate(values.cpu().numpy())]
        )
        # classes of few pictures have fewer coordinates; all give rows of one length
        padded = np.full(MOST_LEADING, np.nan)
        padded[: len(above)] = (1 + above) / (len(known) + 1)
        places.append(padded)
    return np.concatenate(places)


def calibration_sentence(classes: Sequence[ClassModel], fpr: float, retest: float | None) -> str:
    """Say in one sentence where the thresholds come from and what they promise.

    Parameters
    ----------
    classes : sequence of ClassModel
    fpr : float
        False-positive rate that was asked for, in (0, 1).
    retest : float or None
        Second, larger rate, up to which pictures are to be looked at again.

    Returns
    -------
    str
    """
    effective = max(c.calibration.effective_fpr(fpr) for c in classes)
    smallest = min(classes, key=lambda c: len(c.calibration.scores)).calibration
    thresholds = [(c.name, c.calibration.threshold(fpr)) for c in classes]
    several = len(classes) > 1
    if several:
        subject = "The thresholds " + ", ".join(f"{name} {t:.4g}" for name, t in thresholds)
    else:
        subject = f"The threshold {thresholds[0][1]:.4g}"
    kind = "p-values with a generalised Pareto tail" if smallest.tail else "empirical p-values"
    sentence = (
        f"{subject} promise{'' if several else 's'} a false-positive rate of at most "
        f"{effective:.3g}, by {kind} from {len(smallest.scores)}"
        f"{'' if smallest.n_folds else ' new'} good images"
        f"{' of the smallest class' if several else ''}"
        f"{f' held out in {smallest.n_folds} folds' if smallest.n_folds else ''}"
    )
    if effective > fpr:
        enough = images_needed(fpr, smallest.tail)
        sentence += f"; {enough} would do for the {fpr:.3g} that was asked for"
    if retest is not None:
        sentence += f"; pictures with p-values up to {retest:.3g} are to be looked at again"
    return sentence + "."
