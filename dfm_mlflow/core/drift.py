"""Whether a batch of new pictures looks like the good ones of the calibration.

P-values show what the subspace does not explain. A lamp that fades moves pictures within it, as
good ones vary in brightness, too; that shows in the leading coordinates, where a whole day of
pictures sits on one side. Both are compared with the calibration by ranks alone, so that nothing is
assumed of the distributions, and the calibration counts as the sample of n that it is:

- p-values by the one-sided two-sample Kolmogorov-Smirnov distance, "too small": held-out scores of
  the calibration are a little higher than those of new pictures, and smaller scores are no harm;
- leading coordinates by the Wilcoxon-Mann-Whitney test of their ranks among the held-out ones of
  the calibration, two-sided: the largest difference, and all together by Hotelling's T^2 of the
  ranks, as a lamp moves many a little.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

_KEPT = 0.95  # of the variance of the ranks: the rest, of what nearly repeats, would be noise


@dataclass(frozen=True)
class Drift:
    """How far new pictures are from the good ones of the calibration."""

    flagged: float  # share of the images that are flagged; good ones keep the promised rate
    # How far the share of p-values up to some u exceeds u at most, in [0, 1]: the one-sided
    # Kolmogorov-Smirnov distance, the largest of all categories.
    statistic: float
    # How far apart the leading coordinates are: the largest ``|2 P(new > calibration) - 1|``, in
    # [0, 1].
    appearance: float
    # The same of the mean level of the images, in [-1, 1], negative where new ones are darker; 0
    # where it is not known.
    light: float
    # Probability of differences as unlikely as the most unlikely of these, for good pictures.
    significance: float


def measure_drift(
    p_values: np.ndarray,
    flagged: np.ndarray,
    ranks: np.ndarray,
    n_calibration: int | np.ndarray,
    categories: np.ndarray | None = None,
    correlations: Mapping[Any, np.ndarray] | None = None,
    light: np.ndarray | None = None,
) -> Drift:
    """Compare new, unlabelled pictures with the good ones of the calibration.

    Images are taken to be independent of each other: several of one part (bursts) count as more
    evidence than they are. What only widens the spread of a coordinate is not looked for.

    ranks: (m, l): `calibration_ranks` in each layer, under its category; NaN where there is none.
    n_calibration: (m,) int: Good pictures of the calibration that each is ranked among (groups,
      where p-values count them): the fewer, the larger a difference may be by chance.
    categories: (m,): Category of each picture; one for all by default. Each is compared with its
      own calibration.
    correlations: `rank_correlation` of the calibration of each of `categories` (of 0 where these
      are not given). Without it, coordinates are looked at one by one alone.
    light: (m,): Rank of each picture's mean level, as `ranks`, larger for darker ones; NaN where it
      is not known. A lamp that fades shows there first.

    Shapes: p_values (m,); flagged (m,) bool.
    """
    sizes = np.broadcast_to(n_calibration, p_values.shape)
    labels = np.zeros(len(p_values), int) if categories is None else np.asarray(categories)
    distances, effects, lights, significances = [0.0], [0.0], [0.0], []
    for label in np.unique(labels):
        mine = labels == label
        n, known = int(sizes[mine][0]), ranks[mine]
        distance, p = _too_small(p_values[mine], n)
        distances.append(distance)
        significances.append(p)
        known = known[:, ~np.isnan(known).all(axis=0)]
        if known.shape[1]:
            effect, several = _moved(known, n, (correlations or {}).get(label))
            effects.append(effect)
            significances += several
        levels = None if light is None else light[mine][~np.isnan(light[mine])]
        if levels is not None and len(levels):
            lights.append(-float(2 * levels.mean() - 1) * (n + 1) / n)
            significances += _moved(levels[:, None], n, None)[1]
    return Drift(
        flagged=float(np.mean(flagged)),
        statistic=max(distances),
        appearance=max(effects),
        light=max(lights, key=abs),
        significance=min(1.0, len(significances) * min(significances)),  # Bonferroni
    )


def _too_small(p_values: np.ndarray, n: int) -> tuple[float, float]:
    """One-sided Kolmogorov-Smirnov distance of m p-values among n, and its significance.

    The bound is Smirnov's limit ``exp(-2 d^2 m n / (m + n))``; the exact probability is smaller.
    """
    m = len(p_values)
    share = np.arange(1, m + 1) / m
    in_calibration = (np.sort(p_values) * (n + 1) - 1) / n
    distance = max(0.0, float((share - in_calibration).max()))
    return distance, math.exp(-2 * distance**2 * m * n / (m + n))


def _moved(ranks: np.ndarray, n: int, correlation: np.ndarray | None) -> tuple[float, list[float]]:
    """Largest Wilcoxon-Mann-Whitney effect of m ranks among n, and significances.

    Of the largest alone, two-sided and by Bonferroni; and of all together by Hotelling's T^2, in
    the principal components of the ranks.
    """
    from scipy.special import fdtrc

    m, many = ranks.shape
    off = (ranks.mean(axis=0) - 0.5) * (n + 1)  # how many more of the n lie above than half
    z = off / math.sqrt(n * (n + m + 1) / (12 * m))
    largest = float(np.abs(z).max())
    found = [min(1.0, many * math.erfc(largest / math.sqrt(2)))]
    if correlation is not None:
        values, vectors = np.linalg.eigh(correlation)
        values, vectors = values[::-1], vectors[:, ::-1]
        # scales of one layer say nearly the same
        kept = 1 + int(np.searchsorted(np.cumsum(values), _KEPT * many))
        if n > kept + 1:
            t2 = float(((z @ vectors[:, :kept]) ** 2 / values[:kept]).sum())
            found.append(float(fdtrc(kept, n - kept, t2 * (n - kept) / (kept * (n - 1)))))
    return float(np.abs(2 * off / n).max()), found
