"""What a version must pass before an alias points to it: that it is whole, and ranks well."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from dfm_mlflow.config import PromoteOptions
from dfm_mlflow.core.metrics import auroc
from dfm_mlflow.errors import DfmError, PromotionError
from dfm_mlflow.mlflow_plugin.golden import deviation, load_golden
from dfm_mlflow.registry.candidate import Candidate


@dataclass(frozen=True)
class Gate:
    """What one gate found."""

    name: str
    passed: bool
    sentence: str  # why, for people
    figures: dict[str, float] = field(default_factory=dict)  # why, for scripts
    may_be_forced: bool = True  # A model that is broken or unsafe is not promoted for any reason


def golden_gate(candidate: Candidate) -> Gate:
    """Check that golden pictures score under a `candidate` here as they did in training.

    A run without golden pictures does not pass either.
    """
    run_id = candidate.version.run_id
    try:
        if not run_id:
            raise PromotionError(
                f"{candidate.name.capitalize()} names no run, so it has no golden pictures: "
                "register a model that was trained with this version of dfm-mlflow."
            )
        golden = load_golden(run_id)
        largest, tolerance = deviation(candidate.detector, golden)
    except DfmError as error:
        return Gate("golden", False, str(error), may_be_forced=False)
    figures = {"golden_deviation": largest, "golden_tolerance": tolerance, "n_golden": len(golden)}
    if largest <= tolerance:
        sentence = f"{len(golden)} golden pictures score as in training, to {largest:.1g}."
    else:
        sentence = (
            f"Golden pictures score otherwise than in training, by up to {largest:.2g} of the "
            f"score where {tolerance:.0e} is accepted: the model or this environment is not what "
            "it was; compare the versions in the model's requirements with those installed."
        )
    return Gate("golden", largest <= tolerance, sentence, figures, may_be_forced=False)


def metrics_gate(
    candidate: Candidate, options: PromoteOptions, scored: pd.DataFrame | None, source: str
) -> Gate:
    """Hold the AUROC against the minimum; without test pictures the promise on good ones."""
    area = None if scored is None else _area(scored)
    if area is None:
        area, source = candidate.metrics.get("image_auroc"), "its own test pictures"
    if area is not None:
        passed = area >= options.min_auroc
        sentence = (
            f"AUROC {area:.3f} on {source} {'reaches' if passed else 'is below'} "
            f"min_auroc={options.min_auroc:g}"
            f"{'' if passed else ': train a better model, or accept a lower one'}."
        )
        return Gate("metrics", passed, sentence, {"image_auroc": float(area)})
    if "threshold" not in candidate.metrics:
        return Gate(
            "metrics",
            False,
            f"The run of {candidate.name} has no metrics: train the model with "
            "dfm-mlflow, or give data=<folder with test pictures>.",
        )
    promised = candidate.detector.effective_fpr()
    passed = promised <= options.max_fpr
    n = min(len(c.calibration.scores) for c in candidate.detector.classes)
    sentence = (
        f"No test pictures; {n} held-out good ones promise a false-positive rate of at most "
        f"{promised:.3g}, {'within' if passed else 'above'} max_fpr={options.max_fpr:g}"
        f"{'' if passed else ': train on more good pictures, or with a smaller fpr'}."
    )
    return Gate("metrics", passed, sentence, {"effective_fpr": promised})


def _area(scored: pd.DataFrame) -> float | None:
    """Mean over categories of the AUROC; None where none has good and defective pictures."""
    areas = [
        auroc(rows["defective"].to_numpy(bool), rows["anomaly_score"].to_numpy(float))
        for _, rows in scored.groupby("category")
    ]
    known = [area for area in areas if area is not None]
    return float(np.mean(known)) if known else None
