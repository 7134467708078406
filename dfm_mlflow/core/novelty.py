"""Whether pictures can be new to a model, by how low they score: fitted ones score far too low.

A picture that a model was fitted to scores below nearly all held-out ones, so that its p-value is
near 1, where new good ones have any p-value alike. The largest amount by which the share of
p-values up to u stays below u, ``D = max(u - F(u))``, is therefore about the share of fitted
pictures, also where new ones are among them.
"""

import math

import numpy as np

UNLIKELY = 1e-3  # new pictures score so low more rarely
# New pictures score a little lower than held-out ones, which a model of fewer pictures judged: by
# up to this, however many there are.
LEAST = 0.25


def seems_fitted(p_values: np.ndarray, n: int) -> float | None:
    """Say what share of some pictures seems to have been fitted.

    The bound is that of the one-sided two-sample Kolmogorov-Smirnov test (Hodges, Arkiv for
    Matematik 3, 1958): ``P(D >= d) <= exp(-2 d^2 m n / (m + n))`` for m new pictures.

    p_values: (m,): Of the pictures, under a calibration that they have no part in.
    """
    p = np.sort(np.asarray(p_values, dtype=np.float64))
    m = len(p)
    if not m:
        return None
    below = np.searchsorted(p, p, side="left") / m  # just under each value
    largest = float(np.max(p - below))
    bound = math.sqrt(-math.log(UNLIKELY) / 2 * (m + n) / (m * n))
    return largest if largest > max(LEAST, bound) else None
