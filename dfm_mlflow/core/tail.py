"""P-values beyond the largest held-out score: a generalised Pareto tail, which only estimates."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace

# Of n held-out scores the largest n / 5 describe the tail, of many 2 sqrt(n): the fewer, the closer
# they lie to it. But at least 10.
_SHARE, _ROOTS, _LEAST = 0.2, 2.0, 10
REACH = 10  # a tail extends p-values by this factor below what counting gives


@dataclass(frozen=True)
class Tail:
    """Pareto tail: ``P(score > start + y) = share (1 + shape y / scale)^(-1/shape)``."""

    start: float  # score at which it begins
    share: float  # P-value there
    scale: float
    shape: float

    def p_value(self, scores: Any) -> Any:
        """P-values of scores above :attr:`start`, NumPy arrays or torch tensors.

        Shapes: scores (m,); gives (m,) float64.
        """
        beyond = (scores - self.start).clip(min=0) / self.scale
        if self.shape == 0:
            return self.share * array_namespace(beyond).exp(-beyond)
        return self.share * (1 + self.shape * beyond) ** (-1 / self.shape)

    def score(self, p: float) -> float:
        """Score whose p-value is `p`, which is at most :attr:`share`."""
        ratio = self.share / p
        beyond = math.log(ratio) if self.shape == 0 else (ratio**self.shape - 1) / self.shape
        return self.start + self.scale * beyond


def fit_tail(ascending: np.ndarray, groups: np.ndarray | None = None) -> Tail | None:
    """Fit a tail that begins at the largest score, where counting ends.

    Scale and shape come from the m largest scores by probability-weighted moments (Hosking &
    Wallis, Technometrics 29, 1987; for few exceedances they are steadier than maximum likelihood).
    The shape is raised by ``1 / sqrt(m)``, about its standard error, and the scale at the largest
    score follows the raised one: from so few scores a heavy tail cannot be told from a light one.

    groups: (n,) int: Group of each score: each group counts as one score, and m counts groups.

    Shapes: ascending (n,).
    """
    weights = np.ones(len(ascending))
    if groups is not None:
        weights = 1 / np.bincount(groups)[groups]
    total = len(ascending) if groups is None else len(np.unique(groups))
    if total < 2 * _LEAST:
        return None
    wanted = max(_LEAST, int(min(_SHARE * total, _ROOTS * math.sqrt(total))))
    from_top = np.cumsum(weights[::-1])
    n_beyond = min(len(ascending) - 1, int(np.searchsorted(from_top, wanted * (1 - 1e-12))) + 1)
    start = float(ascending[-n_beyond - 1])
    fitted = _moments(ascending[-n_beyond:] - start, weights[-n_beyond:])
    if fitted is None:
        return None
    scale, shape = fitted
    m = n_beyond if groups is None else len(np.unique(groups[-n_beyond:]))
    shape = max(shape, 0.0) + 1 / math.sqrt(m)
    largest = float(ascending[-1])
    return Tail(largest, 1 / (total + 1), scale + shape * (largest - start), shape)


def fit_tail_of_format_1(ascending: np.ndarray) -> Tail | None:
    """Fit the tail of models of format 1, which replaces p-values over the whole top fifth.

    Shapes: ascending (n,).
    """
    n = len(ascending)
    m = max(_LEAST, int(0.2 * n))
    if n < 2 * m:
        return None
    start = float(ascending[n - m - 1])
    fitted = _moments(ascending[n - m :] - start, np.ones(m))
    return None if fitted is None else Tail(start, (m + 1) / (n + 1), fitted[0], max(fitted[1], 0))


def fewest(fpr: float) -> int:
    """How many held-out scores (or groups) it takes that a tail reaches a rate of `fpr`."""
    return max(2 * _LEAST, math.ceil(1 / fpr / REACH * (1 - 1e-12)) - 1)


def _moments(beyond: np.ndarray, weights: np.ndarray) -> tuple[float, float] | None:
    """Scale and shape of ascending exceedances; the scale is that of shape 0 where it is less."""
    mean = float(np.average(beyond, weights=weights))
    if not mean > 0:
        return None
    # (j - 0.35) / m for the j-th of m of weight 1, and the same on average for copies that share it
    rank = (np.cumsum(weights) - weights / 2 + 0.15) / weights.sum()
    weighted = float(np.average((1 - rank) * beyond, weights=weights))
    shape = 2 - mean / (mean - 2 * weighted) if mean > 2 * weighted else -1.0
    scale = 2 * mean * weighted / (mean - 2 * weighted) if shape > 0 else mean
    return scale, shape
