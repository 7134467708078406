"""What a threshold does: how likely its false alarms are, and what its mistakes cost.

A good picture is flagged by a calibration of n held-out images at the rate ``a`` when its score is
above the k-th largest of theirs, ``k = floor(a (n + 1))``. Where it is exchangeable with them, the
share of good pictures that this threshold flags is beta(k, n + 1 - k), so that the number flagged
among m new ones is beta-binomial (Vovk, Conditional validity of inductive conformal predictors,
arXiv 1209.2673, section 3; Marques, arXiv 2303.02770).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dfm_mlflow.core.calibration import Calibration

RATES = (0.01, 0.02, 0.05, 0.1)  # of which tables and metrics say what they would find
UNLIKELY = 0.01  # a promise is called broken where chance alone breaks it more rarely
_ROUNDING = 1e-9  # makes good what rounding takes from a rate that is met exactly


@dataclass(frozen=True)
class Promise:
    """How many good pictures a threshold may flag."""

    # Place of the threshold among the held-out scores, from the top; a fraction where a fitted tail
    # lies beyond all of them.
    k: float
    n: int  # held-out images, or groups, of the calibration

    @classmethod
    def of(cls, calibration: Calibration, fpr: float) -> "Promise":
        """Give the promise of a `calibration` at the rate `fpr`.

        What a declared share of dirt left out is taken for good pictures that score highest: they
        are among the n, and above the threshold.
        """
        rate = calibration.effective_fpr(fpr)
        place = rate * (calibration.n_groups + 1)
        k = math.floor(place + _ROUNDING) or place
        return cls(k + calibration.n_left_out, calibration.n_groups + calibration.n_left_out)


def false_alarm_chance(flagged: int, parts: Sequence[tuple[int, Promise]]) -> float:
    """How likely at least so many of new good pictures are flagged while every promise holds.

    parts: Good pictures of each category, and what its calibration promises.
    """
    if flagged <= 0:
        return 1.0
    chances = np.ones(1)
    for m, promise in parts:
        rest = promise.n + 1 - promise.k
        all_above = np.r_[np.zeros(m), 1.0]  # at a rate at which every picture is
        part = _beta_binomial(m, promise.k, rest) if m and rest > 0 else all_above
        chances = np.convolve(chances, part)
    return float(np.clip(chances[flagged:].sum(), 0, 1))


def exact_interval(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Give the exact interval of a share (Clopper & Pearson, Biometrika 26, 1934)."""
    from scipy.special import betaincinv  # late: a server that starts asks for no interval

    tail = (1 - confidence) / 2
    low = betaincinv(k, n - k + 1, tail) if k > 0 else 0.0
    high = betaincinv(k + 1, n - k, 1 - tail) if k < n else 1.0
    return float(low), float(high)


def _beta_binomial(m: int, a: float, b: float) -> np.ndarray:
    """Give the chances of 0 to m; SciPy's ``betabinom.pmf`` without 50 MB and 1 s of imports."""
    from scipy.special import betaln

    k = np.arange(m + 1)
    ways = -np.log(m + 1) - betaln(m - k + 1, k + 1)
    chances: np.ndarray = np.exp(ways + betaln(k + a, m - k + b) - betaln(a, b))
    return chances


@dataclass(frozen=True)
class Costs:
    """What mistakes cost."""

    escape: float  # of a defective piece that passes, in any unit
    overkill: float  # of a good piece that is flagged, in the same
    defect_rate: float  # share of pieces that are defective, in (0, 1)

    def expected(self, recall: float, false_positive_rate: float) -> float:
        """Cost of a piece, on average."""
        escapes = self.defect_rate * (1 - recall) * self.escape
        return escapes + (1 - self.defect_rate) * false_positive_rate * self.overkill
