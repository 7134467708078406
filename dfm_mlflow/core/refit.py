"""How much lower held-out rows would score if the final model, of all rows, had not seen them."""

from collections.abc import Callable

import numpy as np

_ENOUGH = 300  # rows that are held out with a second fold, too: their mean is steady then
_FEWEST_FOLDS = 4  # of which pairs leave at least half of the rows
# Of the estimate this share is taken: all of it is right on average, and chance would then break
# the promise of every other data set. benchmarks/refit.py: with 0.7 the mean of them keeps it.
_TAKEN = 0.7


def refit_ratio(
    fre: np.ndarray, folds: np.ndarray, fre_without: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Estimate the FRE under the final model, relative to that under the model of other folds.

    A model of fewer rows leaves a larger residual: to first order the logarithm of the FRE is
    ``l + c / s`` where the share `s` of all rows is fitted to. Rows that are held out together with
    a second fold give `c`, and ``exp(-c (1 / a - 1))`` extrapolates from the share `a` that held
    out one fold to all rows. With folds of equal size and shares ``a > b`` that is
    ``exp(mean(log h_a - log h_b) (1 / a - 1) / (1 / b - 1 / a))``: an exponent of 0.9 for 20 folds.
    Of the exponent 0.7 is taken, so that chance errs on the side of the promise.

    fre_without: Takes the numbers of rows, of shape (m,), and gives their FRE, of shape (m,), under
      the subspace of all other rows.

    Shapes: fre (n,) float64; folds (n,) int; gives (n,) float64.
    """
    n, sizes = len(fre), np.bincount(folds)
    numbers = np.flatnonzero(sizes)
    without_one = 1 / (1 - sizes[folds] / n)
    rises, steps = np.zeros(0), np.zeros(0)
    for pair in zip(numbers[::2], numbers[1::2], strict=False):
        if len(numbers) < _FEWEST_FOLDS or len(rises) >= _ENOUGH:
            break
        out = np.flatnonzero(np.isin(folds, pair))
        if len(out) > n / 2:
            continue
        before, after = fre[out], fre_without(out)
        some = (before > 0) & (after > 0)
        rises = np.append(rises, np.log(after[some] / before[some]))
        steps = np.append(steps, (1 / (1 - len(out) / n) - without_one[out])[some])
    slope = rises.sum() / steps.sum() if len(rises) else 0.0
    ratio: np.ndarray = np.exp(-_TAKEN * slope * (without_one - 1))
    return ratio
