"""How good pictures score under a model that was fitted without them.

Every row is held out once. With n rows and D >= n features one n x n Gram matrix serves all folds:
the residual of row i under the subspace of the other folds is ``x_i - sum_j W_ij x_j``, so all
residuals together are ``X - W X``, one matrix product for any number of folds. With D < n the
scatter matrix of the other folds is the whole one less that of the fold.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from dfm_mlflow.core.gram_rows import RowsByGram, for_each_fold
from dfm_mlflow.core.groups import group_rows
from dfm_mlflow.core.leading_coordinates import (
    MOST_SPANNING,
    GramPart,
    leading_by_fold,
    leading_by_gram,
    not_kept,
)
from dfm_mlflow.core.moments import Moments
from dfm_mlflow.core.refit import refit_ratio
from dfm_mlflow.core.solvers import (
    BLOCK,
    LARGE,
    bulk_mean,
    check_features,
    fit_moments,
    inner_products,
    row_blocks,
)
from dfm_mlflow.core.streaming import TooManyComponents, fit_stream
from dfm_mlflow.core.subspace import Subspace, squared_norm
from dfm_mlflow.errors import FitError

# The final model sees all n rows and that of a fold n (1 - 1/K): held-out scores are a little too
# high and the false-positive rate stays below its promise. Measured at a promise of 0.1 and 300
# rows: 5 folds gave 0.054, 20 gave 0.091 (core/refit.py estimates the rest). Above 1,500 rows 20
# decompositions take minutes.
N_FOLDS, N_FOLDS_MANY, MANY = 20, 10, 1500
MOST_REFIT = LARGE  # rows: of more the decompositions take minutes, and make hardly a difference
LARGE_FOLD = 0.2  # share of all rows: a fold above it is said to be too large

# rows of a fold, their squared coordinates (m, k), and the variances of the others (k,)
Squares = tuple[np.ndarray, np.ndarray, np.ndarray]

ONE_GROUP = "All pictures are in one group: group_by must tell captures apart."


@dataclass(frozen=True, eq=False)
class HeldOut:
    """What held-out rows look like."""

    # (n,) float64: FRE of each row under the subspace that was fitted without its fold: the squared
    # norm of its residual, never a difference of norms.
    fre: np.ndarray
    # (n,) float64: ``sum z_i^2 / lambda_i`` of each row under that subspace, with no variance below
    # the noise.
    mahalanobis: np.ndarray
    # Gives the residuals, of shape (n, D) and in the dtype of the rows.
    residual: Callable[[], np.ndarray]
    # Takes the final model, and gives the leading coordinates of each row, of shape (n, l), along
    # `leading_directions` that were found without its fold.
    leading_coordinates: Callable[[Subspace], np.ndarray] = not_kept
    # Estimates what the FRE of each row is to be multiplied by, of shape (n,), to become that under
    # a subspace of all rows that has not seen it; see :func:`dfm_mlflow.core.refit.refit_ratio`.
    refit_ratio: Callable[[], np.ndarray] | None = None
    # Takes a noise variance, and gives `mahalanobis` with no variance below that. None where the
    # coordinates were not kept.
    mahalanobis_above: Callable[[float], np.ndarray] | None = None

    def noise_variance(self, model: Subspace) -> float:
        """Variance outside the subspace of a `model` as held-out rows show it: mean FRE / (D - k).

        In-sample residuals are several times too small where n < D.
        """
        rest = max(1, model.n_features - model.n_components)
        return max(float(self.fre.mean()) / rest, 1e-12 * float(model.variances[0]) / rest)

    def nll(self, model: Subspace) -> np.ndarray:
        """Held-out negative log-likelihoods, with the spectrum and noise of the final model.

        Gives (n,) float64, in nats.
        """
        distance = self.mahalanobis
        if self.mahalanobis_above and model.n_components < model.n_features:
            # The noise that held-out rows show is above that of the fold, and above many a variance
            # of a flat spectrum: without it held-out rows would lie much further out than new ones.
            distance = self.mahalanobis_above(model.noise_variance)
        nll: np.ndarray = model.nll_from(distance, self.fre)
        return nll


def assign_folds(
    n: int,
    n_folds: int | None = None,
    *,
    groups: Sequence[str] | None = None,
    keys: Sequence[str] | None = None,
    seed: int = 42,
) -> np.ndarray:
    """Deal n rows to folds of nearly equal size, the largest groups first.

    n_folds: At most this many folds, 20 by default and 10 above 1,500 rows; fewer where there are
      fewer rows or groups.
    groups: Rows with the same group (near-duplicates) go to the same fold.
    keys: Digest of what each row was computed from. Rows with equal keys go to the same fold, and
      folds follow a hash of the keys, so that other names or another order of the same rows change
      nothing. Without keys they follow the order of the rows.

    Gives (n,) int: fold of each row.
    """
    n_folds = n_folds or n_folds_of(n)
    if keys is not None:
        labels = group_rows(keys, groups, seed=seed)
        order = np.arange(int(labels.max()) + 1)
    else:
        labels = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
        order = np.random.default_rng(seed).permutation(int(labels.max()) + 1)
    sizes = np.bincount(labels)
    folds, load = np.empty(len(order), dtype=int), np.zeros(min(n_folds, len(order)))
    for group in sorted(order, key=lambda g: -sizes[g]):  # stable: equal sizes stay shuffled
        folds[group] = load.argmin()
        load[folds[group]] += sizes[group]
    of_rows: np.ndarray = folds[labels]
    return of_rows


def n_folds_of(n: int) -> int:
    """Folds for `n` rows to fit, copies included: 20, and 10 above 1,500."""
    return N_FOLDS if n <= MANY else N_FOLDS_MANY


def unequal_folds(folds: np.ndarray) -> str | None:
    """Warn of a fold so large that the model without it knows much less than the final one.

    Shapes: folds (n,) int.
    """
    sizes = np.bincount(folds)
    sizes = sizes[sizes > 0]
    largest, total = int(sizes.max()), int(sizes.sum())
    if largest <= LARGE_FOLD * total or largest <= 2 * total / len(sizes):
        return None
    return (
        f"The folds are of very unequal size: one group fills a fold of {largest} of {total} "
        f"pictures, the smallest holds {int(sizes.min())}. The {largest} are scored by a model of "
        f"the other {total - largest}, higher than by the final one, and thresholds become too "
        "cautious: let group_by tell captures apart more finely, or leave some of that group out."
    )


def crossfit(
    x: np.ndarray, folds: np.ndarray, n_components: float, *, own: int | None = None
) -> HeldOut:
    """Hold every row out once.

    n_components: Share of the variance that each fold's subspace keeps, or its dimension.
    own: Rows that are held out: the first ones. What follows them are altered copies of theirs, of
      the same fold, which are only fitted. All rows by default.

    Shapes: x (n, D) float32 or float64; folds (n,) int.
    """
    check_features(x)
    if len(np.unique(folds)) < 2:
        raise FitError(ONE_GROUP)
    own = len(x) if own is None else own
    if min(x.shape) > LARGE:
        try:
            return _fold_by_fold(x, folds, own, _streamed(x, n_components))
        except TooManyComponents:
            pass
    if x.shape[0] <= x.shape[1]:
        return _by_gram(x, folds, own, n_components)
    whole = Moments.of(x, limit=None)

    def downdated(out: np.ndarray) -> Subspace:
        def others() -> Moments:
            return Moments.of(np.delete(x, out, axis=0), limit=None)

        return fit_without(whole, Moments.of(x[out], limit=None), n_components, others)

    return _fold_by_fold(x, folds, own, downdated)


def explained_share(fre: float, total: float) -> float:
    """Share of the variance of good rows that their subspace explains of held-out ones.

    total: Variance of the rows (n - 1 in the denominator), summed over features.
    """
    return min(1.0, max(0.0, 1 - fre / total)) if total > 0 else 0.0


def fit_without(
    whole: Moments,
    part: Moments,
    n_components: float,
    others: Callable[[], Moments] | None = None,
) -> Subspace:
    """Fit the subspace of rows without a part of them, a point where the rest are equal.

    n_components: Share of the variance, or number of directions; as many as there are where it is
      larger.
    others: Computes the moments of the other rows from the rows. It is called where taking away
      would leave rounding: where the part holds nearly all of the variance, such as one huge row.
    """
    rest = whole.without(part)
    if others is not None and rest.is_rounding_of(whole):
        rest = others()
    if not rest.scatter.any():
        return _point(rest.mean, rest.n)
    return fit_moments(rest, n_components, strict=False)


def _by_gram(x: np.ndarray, folds: np.ndarray, own: int, n_components: float) -> HeldOut:
    n, dimension = x.shape
    # a common shift changes no residual, and saves digits
    rows = x - bulk_mean(x).astype(x.dtype)
    gram = inner_products(rows, rows)
    mean = gram.mean(axis=0)  # of the rows, multiplied with each
    weights, mahalanobis = np.zeros((own, n)), np.zeros(own)
    squares: dict[int, Squares] = {}

    def hold_out(fold: int) -> GramPart:
        out, rest = np.flatnonzero(folds[:own] == fold), np.flatnonzero(folds != fold)
        known, cross = RowsByGram(gram[np.ix_(rest, rest)], dimension), gram[np.ix_(out, rest)]
        weights[np.ix_(out, rest)], mahalanobis[out] = known.project(cross, n_components)
        squares[fold] = (out, *known.squares(cross, n_components))
        first = known.directions(n_components)[:, :MOST_SPANNING]
        return GramPart(out, rest, first, (cross - mean[rest]) @ first)

    parts = for_each_fold(hold_out, folds)
    fre = _leave_residuals(rows, weights.astype(x.dtype))
    residual = rows if own == n else rows[:own].copy()

    def fre_without(out: np.ndarray) -> np.ndarray:  # whole folds, whose copies go with them
        rest, others = np.flatnonzero(~np.isin(folds, folds[out])), np.zeros((len(out), n))
        known = RowsByGram(gram[np.ix_(rest, rest)], dimension)
        others[:, rest] = known.project(gram[np.ix_(out, rest)], n_components)[0]
        return _fre_by_gram(gram, out, others)

    return HeldOut(
        fre,
        mahalanobis,
        lambda: residual,
        lambda model: leading_by_gram(x, parts, model)[:own],
        (lambda: refit_ratio(fre, folds[:own], fre_without)) if n <= MOST_REFIT else None,
        partial(_above, own, list(squares.values())),
    )


def _leave_residuals(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Turn the first rows into ``x_i - sum_j W_ij x_j`` in place, by blocks of columns.

    Gives their FRE. The Gram matrix alone would give FRE too, as a difference of norms: of float32
    rows beside a direction of thousandfold spread it would leave no digit of it.
    """
    fre, step = np.zeros(len(weights)), max(1, BLOCK // len(rows))
    for start in range(0, rows.shape[1], step):
        part = rows[:, start : start + step]
        own = part[: len(weights)]
        own -= weights @ part
        fre += np.square(own, dtype=np.float64).sum(axis=1)
    return fre


def _fre_by_gram(gram: np.ndarray, rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Give ``|x_i - sum_j W_ij x_j|^2`` of some rows i from the Gram matrix, for means of many."""
    reached = np.einsum("ij,ij->i", weights, weights @ gram - 2 * gram[rows])
    fre: np.ndarray = np.maximum(np.diag(gram)[rows] + reached, 0)
    return fre


def _fold_by_fold(
    x: np.ndarray, folds: np.ndarray, own: int, fit_without: Callable[[np.ndarray], Subspace]
) -> HeldOut:
    residual, mahalanobis = np.empty((own, x.shape[1]), x.dtype), np.zeros(own)
    parts, squares = [], []
    for fold in np.unique(folds):
        out = np.flatnonzero(folds[:own] == fold)
        model = fit_without(np.flatnonzero(folds == fold))
        coordinates, residual[out] = model.split(x[out])
        mahalanobis[out] = model.mahalanobis(coordinates)
        squares.append((out, coordinates.astype(x.dtype) ** 2, model.variances))
        parts.append((out, replace(model, basis=model.basis[:, :MOST_SPANNING].copy())))

    fre = np.concatenate([squared_norm(block.astype(np.float64)) for block in row_blocks(residual)])
    return HeldOut(
        fre,
        mahalanobis,
        lambda: residual,
        partial(leading_by_fold, x[:own], parts),
        mahalanobis_above=partial(_above, own, squares),
    )


def _above(n: int, parts: Sequence[Squares], noise: float) -> np.ndarray:
    """Give the Mahalanobis distances of all rows, with no variance below the noise."""
    found = np.zeros(n)
    for out, squares, variances in parts:
        found[out] = squares @ (1 / np.maximum(variances, noise))
    return found


def _streamed(x: np.ndarray, n_components: float) -> Callable[[np.ndarray], Subspace]:
    def fit(out: np.ndarray) -> Subspace:
        rest = np.setdiff1d(np.arange(len(x)), out)
        return fit_stream(lambda: row_blocks(x, rest), n_components)

    return fit


def _point(mean: np.ndarray, n: int) -> Subspace:
    """Give the subspace of equal rows, which has no direction."""
    return Subspace(mean, np.zeros((len(mean), 0)), np.zeros(0), 1.0, n)
