"""Exact quantiles of values that are in many places, from counts that add up.

The bit patterns of positive float32 numbers are ordered as the numbers are. Counts by the upper
half of the pattern find the bin of a rank, counts of that bin by the lower half the number itself:
two passes, half a megabyte each, and nothing approximate.
"""

from collections.abc import Callable

import numpy as np

HALF = 1 << 16


def upper_counts(values: np.ndarray) -> np.ndarray:
    """Counts of positive float32 values by the upper half of their bits.

    Parameters
    ----------
    values : ndarray, float32
        Of any shape.

    Returns
    -------
    ndarray of shape (65536,), int
    """
    return np.bincount(_bits(values) >> 16, minlength=HALF)


def lower_counts(values: np.ndarray, upper: int) -> np.ndarray:
    """Counts by the lower half of the bits, of the values with this upper half.

    Parameters
    ----------
    values : ndarray, float32
        Of any shape.
    upper : int
        In [0, 65536).

    Returns
    -------
    ndarray of shape (65536,), int
    """
    bits = _bits(values)
    return np.bincount(bits[bits >> 16 == upper] & (HALF - 1), minlength=HALF)


def quantile_of_counts(q: float, upper: np.ndarray, lower: Callable[[int], np.ndarray]) -> float:
    """Linearly interpolated quantile, as ``np.quantile`` gives it for all values together.

    Parameters
    ----------
    q : float
        In [0, 1].
    upper : ndarray of shape (65536,)
        Sum of :func:`upper_counts`.
    lower : callable
        Gives the sum of :func:`lower_counts` for an upper half.

    Returns
    -------
    float
        0 where there are no values.
    """
    n = int(upper.sum())
    if not n:
        return 0.0
    place = q * (n - 1)
    first = int(place)
    known: dict[int, np.ndarray] = {}

    def ranked(rank: int) -> float:
        high = int(np.searchsorted(np.cumsum(upper), rank, side="right"))
        if high not in known:
            known[high] = np.cumsum(lower(high))
        before = int(upper[:high].sum())
        low = int(np.searchsorted(known[high], rank - before, side="right"))
        return float(np.array([high << 16 | low], dtype=np.uint32).view(np.float32)[0])

    start = ranked(first)
    return start + (ranked(min(first + 1, n - 1)) - start) * (place - first)


def _bits(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, dtype=np.float32).view(np.uint32).ravel()
