"""Two detectors on the same pictures: a paired bootstrap of the difference in AUROC or recall."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dfm_mlflow.errors import DataError

NOT_WORSE, WORSE, UNDECIDED = "not worse", "worse", "undecided"
_CELLS = 4_000_000  # numbers in memory at once


@dataclass(frozen=True)
class Comparison:
    """AUROC, or recall, of a challenger and a champion, and what is known about the difference."""

    challenger: float
    champion: float
    lower: float
    upper: float
    n_good: int
    n_defective: int
    confidence: float  # one-sided
    n_resamples: int  # resamples behind the bounds

    @property
    def difference(self) -> float:
        """Of the challenger less that of the champion."""
        return self.challenger - self.champion

    def verdict(self, margin: float, least: int = 1) -> str:
        """Decide whether the challenger is inferior by more than a margin.

        least: Good, and defective, pictures that a decision needs. Resampling cannot know what few
          pictures do not show: on one good and one defective that both detectors tell apart, the
          interval has no width at all.
        """
        if min(self.n_good, self.n_defective) < least:
            return UNDECIDED
        if self.lower >= -margin:
            return NOT_WORSE
        return WORSE if self.upper < -margin else UNDECIDED


def compare_auroc(
    defective: np.ndarray,
    challenger: np.ndarray,
    champion: np.ndarray,
    *,
    strata: Sequence[str] | None = None,
    n_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Compare two scorings of the same pictures.

    Good and defective pictures of each stratum are resampled apart, so that every resample has as
    many of each as the test set, and both scorings see the same resample: what the detectors have
    in common cancels. The bounds are percentiles (Efron & Tibshirani, An Introduction to the
    Bootstrap, 1993, chapter 13).

    challenger, champion: (n,): Scores; higher is more anomalous. Only their order within a scoring
      and stratum counts.
    strata: Category of each picture. AUROC is the mean over the categories that have both kinds,
      and pictures of the others are left out.

    Shapes: defective (n,) bool.

    Examples
    --------
    >>> import numpy as np
    >>> defective = np.array([False, False, True, True])
    >>> compare_auroc(defective, np.array([1, 2, 3, 4]), np.array([1, 3, 2, 4])).difference
    0.25
    """
    defective = np.asarray(defective, dtype=bool)
    scorings = [np.asarray(s, dtype=np.float64) for s in (challenger, champion)]
    for scores in scorings:
        if scores.shape != defective.shape or not np.isfinite(scores).all():
            raise DataError(
                f"Scores of shape {scores.shape} for {len(defective)} pictures, "
                f"{int((~np.isfinite(scores)).sum())} of them not finite: give one finite score "
                "a picture."
            )
    names = np.zeros(len(defective)) if strata is None else np.asarray(strata)
    parts = [
        _Stratum(defective[names == name], *(s[names == name] for s in scorings))
        for name in np.unique(names)
    ]
    parts = [part for part in parts if part.n_good and part.n_defective]
    if not parts:
        n_defective = int(defective.sum())
        raise DataError(
            f"{len(defective) - n_defective} good and {n_defective} defective pictures"
            f"{'' if strata is None else ', none of both in one category,'} give no AUROC: "
            "give a test set with both."
        )
    rng = np.random.default_rng(seed)
    areas = np.mean([part.areas() for part in parts], axis=0)
    differences = np.mean([part.differences(rng, n_resamples) for part in parts], axis=0)
    return Comparison(
        challenger=float(areas[0]),
        champion=float(areas[1]),
        # of the values that occur, the ones further out: few pictures give few different values
        lower=float(np.quantile(differences, 1 - confidence, method="lower")),
        upper=float(np.quantile(differences, confidence, method="higher")),
        n_good=sum(part.n_good for part in parts),
        n_defective=sum(part.n_defective for part in parts),
        confidence=confidence,
        n_resamples=n_resamples,
    )


def compare_recall(
    defective: np.ndarray,
    challenger: np.ndarray,
    champion: np.ndarray,
    *,
    strata: Sequence[str] | None = None,
    n_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Compare the decisions of two detectors on the same defective pictures, each at its threshold.

    The defective pictures of each stratum are resampled, and both detectors see the same resample.

    strata: Category of each image. Recall is the mean over the categories with defective pictures.

    Shapes: defective (n,) bool; challenger, champion (n,) bool.
    """
    defective = np.asarray(defective, dtype=bool)
    flags = [np.asarray(f, dtype=bool) for f in (challenger, champion)]
    if not defective.any():
        raise DataError("There is no defective picture, and so no recall: give some.")
    names = np.zeros(len(defective)) if strata is None else np.asarray(strata)
    rng = np.random.default_rng(seed)
    recalls, differences = [], []
    for name in np.unique(names[defective]):
        mine = defective & (names == name)
        new, old = (f[mine] for f in flags)
        n = len(new)
        # found by the new one alone, by the old one alone, and the rest
        shares = np.array([(new & ~old).sum(), (old & ~new).sum(), (new == old).sum()]) / n
        drawn = rng.multinomial(n, shares, n_resamples)
        recalls.append((new.mean(), old.mean()))
        differences.append((drawn[:, 0] - drawn[:, 1]) / n)
    means, spread = np.mean(recalls, axis=0), np.mean(differences, axis=0)
    return Comparison(
        challenger=float(means[0]),
        champion=float(means[1]),
        lower=float(np.quantile(spread, 1 - confidence, method="lower")),
        upper=float(np.quantile(spread, confidence, method="higher")),
        n_good=int((~defective).sum()),
        n_defective=int(defective.sum()),
        confidence=confidence,
        n_resamples=n_resamples,
    )


class _Stratum:
    """Two scorings of the pictures of one category."""

    def __init__(self, defective: np.ndarray, challenger: np.ndarray, champion: np.ndarray):
        self.n_defective = int(defective.sum())
        self.n_good = len(defective) - self.n_defective
        self._kernels = [_Ranking(s[~defective], s[defective]) for s in (challenger, champion)]

    def areas(self) -> list[float]:
        """AUROC of both."""
        whole = np.ones((1, self.n_good), np.int64), np.ones((1, self.n_defective), np.int64)
        return [float(kernel.areas(*whole)[0]) for kernel in self._kernels]

    def differences(self, rng: np.random.Generator, n_resamples: int) -> np.ndarray:
        """Difference of the AUROCs in each resample."""
        chunk = max(1, _CELLS // (self.n_good + self.n_defective))
        found = []
        for start in range(0, n_resamples, chunk):
            size = min(chunk, n_resamples - start)
            weights = [_multiplicities(rng, n, size) for n in (self.n_good, self.n_defective)]
            first, second = (kernel.areas(*weights) for kernel in self._kernels)
            found.append(first - second)
        return np.concatenate(found)


class _Ranking:
    """One scoring, sorted once, so that a resample costs its pictures and not their pairs."""

    def __init__(self, good: np.ndarray, bad: np.ndarray):
        self._order = np.argsort(good)
        self._left = np.searchsorted(good[self._order], bad, side="left")
        self._right = np.searchsorted(good[self._order], bad, side="right")

    def areas(self, good: np.ndarray, bad: np.ndarray) -> np.ndarray:
        """AUROC of resamples, given how often each picture is in each: (b, n_good), (b, n_bad)."""
        below = np.zeros((len(good), good.shape[1] + 1), np.int64)
        np.cumsum(good[:, self._order], axis=1, out=below[:, 1:])
        # twice the pairs in order, and once the ties; whole numbers, so equal orders give equal
        # areas to the last bit
        pairs = ((below[:, self._left] + below[:, self._right]) * bad).sum(axis=1)
        areas: np.ndarray = pairs / (2 * good.sum(axis=1) * bad.sum(axis=1))
        return areas


def _multiplicities(rng: np.random.Generator, n: int, size: int) -> np.ndarray:
    """How often each of n pictures is drawn in each of so many resamples, shape (size, n)."""
    drawn = rng.integers(0, n, (size, n)) + n * np.arange(size)[:, None]
    return np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
