"""From the scores of pictures to rows of an answer, and what is seen beside them."""

import base64
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dfm_mlflow.columns import COLUMNS, DECISION
from dfm_mlflow.detector.class_model import ClassModel, ClassScores
from dfm_mlflow.detector.decision import calibration_ranks_of, rank_of_light
from dfm_mlflow.detector.maps import smooth_map, to_level, to_png
from dfm_mlflow.network.extraction import Extraction


@dataclass(frozen=True, eq=False)
class Observation:
    """What is seen of one picture beside its row."""

    # (h, w): Anomaly map on the feature grid; :meth:`AnomalyDetector.full_map` brings it to `size`.
    map: torch.Tensor
    size: tuple[int, int]  # height and width of the picture in pixels
    # (l,): Rank of each leading coordinate, of all layers, among those of the calibration's good
    # pictures, in (0, 1]: uniform where nothing changed; NaN where a class has fewer of them.
    calibration_ranks: np.ndarray
    # The same of its mean level; NaN where that is not known of the calibration.
    light: float = math.nan
    # SHA-256 of the file that it was read from; None for bytes and arrays.
    digest: str | None = None
    # (layers, s) float32, or None: Of its features: what near-duplicates are found by.
    sketch: np.ndarray | None = None


OnImage = Callable[[int, Observation], None]


def empty_rows(extraction: Extraction, n: int) -> list[dict[str, Any]]:
    """One row a picture that holds nothing but why it could not be read."""
    nothing = dict.fromkeys((*COLUMNS, *DECISION))
    return [nothing | {"error": extraction.errors.get(i)} for i in range(n)]


def encoded_map(
    values: torch.Tensor, size: tuple[int, int], filled: tuple[float, float], scale: float
) -> str:
    """Draw an anomaly map at the `size` of its picture, as base64 PNG.

    Shapes: values (h, w).
    """
    level = to_level(smooth_map(values, size, filled), scale)
    return base64.b64encode(to_png(level)).decode("ascii")


def observations(
    extraction: Extraction,
    scored: Sequence[ClassScores],
    best: Sequence[int] | np.ndarray,
    classes: Sequence[ClassModel],
    sketches: np.ndarray,
) -> list[Observation]:
    """What is seen of each picture that could be read, under the class that it fits best.

    Shapes: best (n,) int; sketches (n, layers, s).
    """
    found = []
    for row, (i, j) in enumerate(zip(extraction.kept, best, strict=True)):
        of_row = [z[row] for z in scored[j].leading_coordinates]
        found.append(
            Observation(
                scored[j].maps[row],
                extraction.sizes[row],
                calibration_ranks_of(classes[j], of_row),
                rank_of_light(classes[j], extraction.light[row]),
                extraction.digests.get(i),
                sketches[row],
            )
        )
    return found
