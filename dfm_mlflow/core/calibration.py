"""Thresholds from held-out good pictures alone: conformal p-values.

The p-value of a score is ``(1 + #{held-out good scores at least as large}) / (n + 1)``
(Vovk et al., Algorithmic Learning in a Random World, 2005; Bates et al., arXiv 2104.08279): for a
new good picture, exchangeable with the held-out ones, ``P(p <= a) <= a``.

Images of one capture, or copies, are not exchangeable with a new picture; their groups are with a
new group. Each group then counts as one image: ``(1 + sum over groups of the share of the group
that scores at least as high) / (G + 1)`` (Lee, Barber & Willett, Distribution-free inference with
hierarchical data, arXiv 2306.06342).
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from dfm_mlflow.core.tail import REACH, Tail, fewest, fit_tail, fit_tail_of_format_1

_ROUNDING = 1 + 1e-12  # makes good what rounding takes from a rate that is met exactly


@dataclass(frozen=True, eq=False)
class Calibration:
    """Held-out scores of the good pictures of one class."""

    scores: np.ndarray  # (n,) float64: ascending
    n_folds: int = 0  # of the cross-fitting that gave them; 0 for images that were never fitted
    method: str = "empirical"  # what lies beyond the largest of them
    # (n,) int, or None: Group of each score, numbered from 0; None where every picture is a group
    # by itself.
    groups: np.ndarray | None = None
    # Groups (images, where there are no groups) with the highest scores that a declared share of
    # dirt has left out of `scores`.
    n_left_out: int = 0
    # 1 for models of format 1, whose generalised Pareto tail replaces p-values that counting gives.
    rule: int = 2
    # Mean of what cross-fitted scores were multiplied by to become those of the final model, see
    # :func:`dfm_mlflow.core.refit.refit_ratio`; 1 where they were left as they are.
    refit_ratio: float = 1.0

    @classmethod
    def of(
        cls,
        scores: np.ndarray,
        n_folds: int = 0,
        method: str = "empirical",
        groups: np.ndarray | None = None,
        contamination: float = 0.0,
        refit_ratio: np.ndarray | None = None,
    ) -> "Calibration":
        """Calibrate on held-out scores in any order.

        n_folds: Of the cross-fitting that gave them; 0 for pictures that were never fitted.
        groups: (n,): Label of each score's group, which numbers or strings may be; see
          :func:`dfm_mlflow.core.groups.group_rows`.
        contamination: Declared share of dirt, in [0, 1): that share of the groups (images, without
          groups), rounded down, is left out: those whose highest score is highest.

        Shapes: scores (n,); refit_ratio (n,).
        """
        ratio = np.ones(len(scores)) if refit_ratio is None else np.asarray(refit_ratio)
        scores = np.asarray(scores, dtype=np.float64) * ratio
        labels = np.arange(len(scores))
        if groups is not None:
            labels = np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1)
        order = np.lexsort((labels, scores))
        scores, labels = scores[order], labels[order]
        n_groups = len(np.unique(labels))
        n_left_out = left_out(n_groups, contamination)
        if n_left_out:
            # the last place of a label in ascending order is that of its highest score
            last = np.zeros(n_groups, dtype=int)
            last[labels] = np.arange(len(labels))
            kept = ~np.isin(labels, np.argsort(last)[n_groups - n_left_out :])
            scores, labels = scores[kept], np.unique(labels[kept], return_inverse=True)[1]
        of_several = labels if len(np.unique(labels)) < len(labels) else None
        mean = float(ratio.mean()) if len(ratio) else 1.0
        return cls(scores, n_folds, method, of_several, n_left_out, refit_ratio=mean)

    @cached_property
    def n_groups(self) -> int:
        """What p-values count: groups, or images where there are no groups."""
        return len(self.scores) if self.groups is None else len(np.unique(self.groups))

    @cached_property
    def tail(self) -> Tail | None:
        """Fitted tail, or None where the method is empirical or the scores are too few."""
        if self.method != "gpd":
            return None
        if self.rule == 1:
            return fit_tail_of_format_1(self.scores)
        return fit_tail(self.scores, self.groups)

    @cached_property
    def counted(self) -> np.ndarray:
        """P-value of a score that 0, 1, ... n held-out scores equal or exceed, by counting.

        Gives (n + 1,) float64, ascending.
        """
        n = len(self.scores)
        above = np.arange(n + 1, dtype=np.float64)
        if self.groups is not None:
            sizes = np.bincount(self.groups)[self.groups][::-1]
            # whole numbers of each size are added up first, so that ten tenths are one
            above = sum(
                (np.r_[0, np.cumsum(sizes == size)] / size for size in np.unique(sizes)),
                start=np.zeros(n + 1),
            )
        p_values: np.ndarray = (1 + above) / (self.n_groups + 1)
        return p_values

    @property
    def smallest_p_value(self) -> float:
        """No score has a smaller one: ``1 / (G + 1)``, with a tail a tenth of it."""
        return 1 / (self.n_groups + 1) / (REACH if self.tail else 1)

    def p_value(self, scores: np.ndarray) -> np.ndarray:
        """Share of held-out good groups (images) that score at least as high, never 0.

        Shapes: scores (m,); gives (m,) float64, in ``[1 / (G + 1), 1]``; with a tail down to a
        tenth of that.
        """
        scores = np.asarray(scores)
        at_least = len(self.scores) - np.searchsorted(self.scores, scores, side="left")
        p_values: np.ndarray = self.beyond_counting(self.counted[at_least], scores)
        return p_values

    def beyond_counting(self, counted: Any, scores: Any) -> Any:
        """P-values of `scores` from what counting gives: the tail, and the smallest of all.

        Both are NumPy arrays or torch tensors.
        """
        if self.tail:
            xp = array_namespace(counted)
            counted = xp.where(scores > self.tail.start, self.tail.p_value(scores), counted)
        return counted.clip(min=self.smallest_p_value)

    def cautious_p_value(self, scores: np.ndarray) -> np.ndarray:
        """P-values by held-out scores as cross-fitting gave them: a little too large, no estimate.

        For tests over many pictures, such as those of drift: estimates let them alarm too often.

        Shapes: scores (m,); gives (m,) float64: :meth:`p_value` where no :attr:`refit_ratio` was
        given.
        """
        return self.p_value(np.asarray(scores) * self.refit_ratio)

    def effective_fpr(self, fpr: float) -> float:
        """The rate that p-values are compared with where `fpr` is asked for.

        ``max(fpr, 1 / (G + 1))``; with a tail the second is a tenth of that.
        """
        return max(fpr, self.smallest_p_value)

    def promised_fpr(self, fpr: float) -> float:
        """The share of good pictures that may be flagged where `fpr` is asked for.

        :meth:`effective_fpr`, unless a declared share of dirt left groups out of the calibration:
        if these were good ones, then ``P(p <= a) <= a + (1 - a) m / (G + m + 1)`` with m groups
        left out and G kept, since each adds at most 1 to the count. That is at most `a` plus the
        declared share.
        """
        a, m = self.effective_fpr(fpr), self.n_left_out
        return a + (1 - a) * m / (self.n_groups + m + 1)

    def is_estimate(self, fpr: float) -> bool:
        """Whether :meth:`promised_fpr` is an estimate, above which the true rate may lie a little.

        It is one where scores were multiplied by a :attr:`refit_ratio`, and where a tail answers.
        Counting alone promises "at most".

        The rate that is asked for is `fpr`.
        """
        by_tail = self.tail is not None and self.effective_fpr(fpr) < self.tail.share
        return self.refit_ratio != 1 or by_tail

    def threshold(self, fpr: float) -> float:
        """The score above which ``p_value <= effective_fpr(fpr)``, and at which it is not."""
        n, fpr = len(self.scores), self.effective_fpr(fpr)
        if self.tail and fpr < self.tail.share:
            return self.tail.score(fpr)
        most = int(np.searchsorted(self.counted, fpr * _ROUNDING, side="right")) - 1
        return float(self.scores[n - 1 - most]) if most < n else -math.inf


def left_out(n_groups: int, contamination: float) -> int:
    """How many of `n_groups` groups (images) a share `contamination` leaves out: rounded down."""
    return math.floor(contamination * n_groups * _ROUNDING)


def images_needed(fpr: float, tail: Tail | None = None, contamination: float = 0.0) -> int:
    """How many held-out images (or groups) promise a false-positive rate of `fpr`.

    ``ceil(1 / fpr) - 1``; with a `tail` a tenth of that, but no fewer than it takes to fit one.

    contamination: Declared share of them that is left out, in [0, 1): as many more are needed.
    """
    kept = fewest(fpr) if tail else math.ceil(1 / fpr / _ROUNDING) - 1
    n = max(kept, math.floor((kept - 1) / (1 - contamination)))
    while n - left_out(n, contamination) < kept:
        n += 1
    return n


def is_anomaly(p_value: np.ndarray, effective_fpr: np.ndarray | float) -> np.ndarray:
    """Decide, with the tolerance that :meth:`Calibration.threshold` has.

    Shapes: p_value (m,) or float; effective_fpr (m,) or float; gives (m,) bool.
    """
    return p_value <= effective_fpr * _ROUNDING


def combine_classes(p_values: Any, likelihoods: Any) -> Any:
    """Choose for each picture the class it fits best, from NumPy arrays or torch tensors.

    likelihoods: (m, n_classes): Log-likelihoods, comparable across classes; they decide between
      equal p-values.

    Shapes: p_values (m, n_classes); gives (m,) int: column of the class with the largest p-value.
    """
    xp = array_namespace(p_values)
    best = p_values == xp.max(p_values, axis=1, keepdims=True)
    return xp.argmax(xp.where(best, likelihoods, xp.full_like(likelihoods, -xp.inf)), axis=1)
