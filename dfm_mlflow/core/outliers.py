"""What one image does to a threshold, and when its held-out score stands apart from the others."""

import math
from dataclasses import dataclass

import numpy as np

from dfm_mlflow.core.calibration import Calibration

# A gap that chance leaves more seldom than this is warned of. Measured: 1 in 26 clean splits of the
# development sets, where the upper half of the logarithms is a little lighter than exponential.
RARE = 0.1


def held_out_p_values(scores: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
    """P-value of each held-out score among the others.

    Shapes: scores (n,); groups (n,) int; gives (n,) float64.
    """
    scores = np.asarray(scores, dtype=np.float64)
    labels = np.arange(len(scores))
    if groups is not None:
        labels = np.unique(groups, return_inverse=True)[1].reshape(-1)
    sizes = np.bincount(labels)
    everywhere = _at_least(scores, np.zeros(len(scores), dtype=int), 1 / sizes[labels])
    in_own_group = _at_least(scores, labels, 1 / sizes[labels])
    p_values: np.ndarray = (1 + everywhere - in_own_group) / len(sizes)
    return p_values


def _at_least(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weight of the images with the same label whose score is at least that of each image."""
    order = np.lexsort((-scores, labels))
    label, score = labels[order], scores[order]
    total = np.cumsum(weights[order])
    ends = np.flatnonzero(np.r_[(np.diff(label) != 0) | (np.diff(score) != 0), True])
    last_equal = ends[np.searchsorted(ends, np.arange(len(order)))]
    first = np.searchsorted(label, label)
    weight = np.empty(len(order))
    weight[order] = total[last_equal] - np.r_[0, total][first]
    return weight


@dataclass(frozen=True)
class Setter:
    """The image with the largest held-out score of a class, and what hangs on it."""

    index: int  # its place
    threshold: float  # of the calibration with it
    without: float  # of the calibration without it, or without its group
    chance: (
        float  # probability that good pictures alone leave so large a gap below the largest score
    )
    apart: bool  # whether it alone sets the threshold, and stands apart: to be looked at


def find_setter(
    scores: np.ndarray,
    groups: np.ndarray | None,
    fpr: float,
    *,
    method: str = "empirical",
    contamination: float = 0.0,
) -> Setter | None:
    """Look at the image with the largest held-out score of a class.

    method, contamination: Of the calibration, as
      :meth:`~dfm_mlflow.core.calibration.Calibration.of` takes them.

    Shapes: scores (n,); groups (n,) int, or None.
    """
    scores = np.asarray(scores, dtype=np.float64)
    labels = np.arange(len(scores)) if groups is None else np.asarray(groups)
    names = np.unique(labels)
    if len(names) < 4:
        return None
    index = int(scores.argmax())
    rest = labels != labels[index]

    def threshold(mine: np.ndarray) -> float:
        known = Calibration.of(scores[mine], 0, method, labels[mine], contamination)
        return known.threshold(fpr)

    with_it, without = threshold(np.ones(len(scores), dtype=bool)), threshold(rest)
    largest = np.full(len(names), -np.inf)
    np.maximum.at(largest, np.searchsorted(names, labels), scores)
    chance = gap_by_chance(largest)
    sets_it = with_it >= scores[index] > without
    return Setter(index, with_it, without, chance, bool(sets_it and chance <= RARE))


def gap_by_chance(scores: np.ndarray) -> float:
    """How likely the largest of exchangeable scores is so far above the next one.

    Held against the distance of the next one from the median: r is the ratio of the two. The
    i-th spacing of the upper half of an exponential distribution is exponential with mean 1/i, and
    all are independent (Renyi, 1953); so with m spacings down to the median ``P(ratio > r) =
    prod_{i=2..m} i / (i + r)``. Logarithms of scores have such a tail where the scores have a power
    law (Hill, 1975), and a lighter one elsewhere.

    Shapes: scores (n,).
    """
    ordered = np.sort(np.asarray(scores, dtype=np.float64))[::-1]
    if ordered[-1] > 0:
        ordered = np.log(ordered)
    m = len(ordered) // 2
    gap, rest = float(ordered[0] - ordered[1]), float(ordered[1] - ordered[m])
    if rest <= 0:
        return 0.0 if gap > 0 else 1.0
    r = gap / rest
    return math.exp(math.lgamma(m + 1) + math.lgamma(2 + r) - math.lgamma(m + 1 + r))
