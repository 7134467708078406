"""What the process that writes the log must know of a model, and of the pictures it scored."""

from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

import numpy as np

from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.serving.engine import Engine
from dfm_mlflow.serving.monitor.alarm import Watched


def watched_of(detector: AnomalyDetector) -> dict[str, Watched]:
    """Give what a test needs to know of each class of a `detector`."""
    fpr = detector.options.fpr
    return {c.name: Watched.of(c.calibration, fpr) for c in detector.classes}


def model_message(engine: Engine) -> dict[str, Any]:
    """Tell the writer what an `engine` serves."""
    version = engine.version
    return {
        "kind": "model",
        "digest": version.digest,
        "version": version.number or None,
        "name": version.name or None,
        "classes": {name: astuple(w) for name, w in watched_of(engine.detector).items()},
    }


def cautious_p_values(
    detector: AnomalyDetector, scores: np.ndarray, classes: Sequence[str | None]
) -> list[tuple[str | None, float]]:
    """Class and p-value of each picture as tests over many pictures need them.

    Shapes: scores (n,).
    """
    p_values = np.ones(len(scores))
    for c in detector.classes:
        mine = np.array([name == c.name for name in classes], bool)
        if mine.any():
            p_values[mine] = c.calibration.cautious_p_value(scores[mine])
    return list(zip(classes, p_values.tolist(), strict=True))
