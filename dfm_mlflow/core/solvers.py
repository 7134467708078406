"""From rows, or their moments, to a subspace: the solver follows the shape.

==============  ==========================  ==========================================
solver          chosen for                  works on
==============  ==========================  ==========================================
``gram``        n <= D                      eigenvectors of the n x n Gram matrix
``covariance``  D < n                       eigenvectors of the D x D scatter matrix
``randomized``  n and D above 4,096         seeded subspace iteration over blocks of rows
==============  ==========================  ==========================================

The first two give the subspace of a singular value decomposition at a fraction of its cost. The
third needs no square matrix; it gives way to the exact ones where the wanted subspace has more than
half of all dimensions. Rows are centred in float64: a constant shift ``s`` costs digits only
where ``s^2`` times 2e-16 nears the variance of the features, since the rows themselves are then
stored with that error.
"""

from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np

from dfm_mlflow.core.checks import EQUAL_ROWS, NOT_FINITE, TOO_LARGE, check_n_components, too_few
from dfm_mlflow.core.moments import Moments
from dfm_mlflow.core.streaming import TooManyComponents, fit_stream
from dfm_mlflow.core.subspace import Subspace, fixed_signs, squared_norm
from dfm_mlflow.core.threads import single_threaded
from dfm_mlflow.errors import FitError

SOLVERS = ("auto", "gram", "covariance", "randomized")
LARGE = 4096  # n and D above it: square matrices take longer than passes over the rows
SMALL = 1000  # rows and columns of a square matrix that one thread decomposes best
BLOCK = 1 << 21  # values in a block of rows: 16 MiB


def fit_subspace(
    x: np.ndarray, n_components: float = 0.97, *, solver: str = "auto", seed: int = 42
) -> Subspace:
    """Fit the subspace that keeps a share of the variance.

    n_components: A share of the variance in (0, 1], which the smallest sufficient number of
      directions keeps; or that number itself, an integer of at least 1.

    Shapes: x (n, D) float32 or float64.
    """
    check_features(x)
    n, dimension = x.shape
    if solver not in SOLVERS:
        raise FitError(f"solver={solver!r} is not known: give one of {', '.join(SOLVERS)}.")
    if solver == "auto":
        exact = "gram" if n <= dimension else "covariance"
        solver = "randomized" if min(n, dimension) > LARGE else exact
    if solver == "randomized":
        try:
            return fit_stream(lambda: row_blocks(x), n_components, seed=seed)
        except TooManyComponents:
            solver = "gram" if n <= dimension else "covariance"
    if solver == "covariance":
        return fit_moments(Moments.of(x, limit=None), n_components)
    mean = x.mean(axis=0, dtype=np.float64)
    centred = x - mean
    spectrum, vectors = symmetric_spectrum(centred @ centred.T)
    k = choose_k(spectrum, n_components, min(n - 1, dimension))
    basis = centred.T @ (vectors[:, :k] / np.sqrt(spectrum[:k]))
    del centred  # a copy of the rows less while the basis is copied
    return _subspace(mean, _orthonormal(basis), spectrum, n)


def fit_moments(moments: Moments, n_components: float = 0.97, *, strict: bool = True) -> Subspace:
    """Fit the subspace from count, mean and scatter alone.

    strict: Refuse a number of components that the rows do not have, or take the largest they have.
    """
    if moments.n < 2:
        raise FitError(too_few(moments.n))
    if not np.isfinite(moments.scatter).all():
        raise FitError(TOO_LARGE if np.isfinite(moments.mean).all() else NOT_FINITE)
    spectrum, vectors = symmetric_spectrum(moments.scatter)
    k = choose_k(spectrum, n_components, min(moments.n - 1, moments.n_features), strict=strict)
    return _subspace(moments.mean, vectors[:, :k], spectrum, moments.n)


def choose_k(spectrum: np.ndarray, n_components: float, most: int, *, strict: bool = True) -> int:
    """Number of directions that an ``n_components`` asks for, at least 1."""
    if not spectrum[0] > 0:
        raise FitError(EQUAL_ROWS)
    check_n_components(n_components)
    most = max(1, min(most, int(np.count_nonzero(spectrum > spectrum[0] * 1e-12))))
    if isinstance(n_components, int | np.integer):
        if n_components > most and strict:
            raise FitError(
                f"n_components={n_components} is requested and the rows vary in {most} directions: "
                "give at most that, or a share of the variance such as 0.97."
            )
        return min(int(n_components), most)
    cumulated = np.cumsum(spectrum)
    reached = np.searchsorted(cumulated, n_components * cumulated[-1] * (1 - 1e-12)) + 1
    return int(min(reached, most))


def check_features(x: np.ndarray) -> None:
    """Refuse features `x`, of shape (n, D), that no subspace can be fitted to."""
    if x.shape[0] < 2:
        raise FitError(too_few(x.shape[0]))
    # A sum is finite only if its terms are, and needs no array of n x D flags.
    if not np.isfinite(x.sum(dtype=np.float64)) and not np.isfinite(x).all():
        raise FitError(NOT_FINITE)


def row_blocks(x: np.ndarray, rows: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Give an array, or some of its rows, in blocks of rows.

    Shapes: x (n, D); gives (m, D).
    """
    step = max(1, BLOCK // x.shape[1])
    for start in range(0, len(x) if rows is None else len(rows), step):
        part = slice(start, start + step)
        yield x[part] if rows is None else x[rows[part]]


def bulk_mean(x: np.ndarray) -> np.ndarray:
    """Mean of the rows in the middle: a centre that no huge row moves.

    Inner products of rows keep their digits if the rows lie around the origin. The mean of all
    would not do: a row of 1e9 moves it far away from every other one.

    Shapes: x (n, D) float32 or float64; gives (D,) float64.
    """
    mean: np.ndarray = x.mean(axis=0, dtype=np.float64)
    for _ in range(3):
        far = np.concatenate([squared_norm(block - mean) for block in row_blocks(x)])
        mean = x[far <= np.median(far)].mean(axis=0, dtype=np.float64)
    return mean


def inner_products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Inner products of rows, in float64 whatever the rows are.

    They square the condition number: summed up in float32, one direction of hundredfold spread
    would leave three digits of all others.

    Shapes: a (n, D) float32 or float64; b (m, D) float32 or float64; gives (n, m) float64.
    """
    products, step = np.zeros((len(a), len(b))), max(1, BLOCK // max(1, len(a), len(b)))
    for start in range(0, a.shape[1], step):
        left = a[:, start : start + step].astype(np.float64, copy=False)
        right = left if b is a else b[:, start : start + step].astype(np.float64, copy=False)
        products += left @ right.T
    return products


def symmetric_spectrum(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and eigenvectors of a symmetric matrix without negative eigenvalues.

    Shapes: matrix (n, n) float64; gives values (n,): descending; what rounding made negative is 0;
    vectors (n, n): columns, in that order.
    """
    if not np.isfinite(matrix).all():
        raise FitError(TOO_LARGE)
    # NumPy's LAPACK throughout: threads of SciPy's own copy would compete with NumPy's. And one
    # thread for a small matrix, whose threads would mostly wait for each other.
    with single_threaded() if len(matrix) <= SMALL else nullcontext():
        values, vectors = np.linalg.eigh(matrix)
    return np.maximum(values[::-1], 0), vectors[:, ::-1]


def _subspace(mean: np.ndarray, basis: np.ndarray, spectrum: np.ndarray, n: int) -> Subspace:
    k, dimension = basis.shape[1], len(mean)
    rest = max(float(spectrum[k:].sum()) / (n - 1), 1e-12 * float(spectrum[0]) / (n - 1))
    noise = rest / max(1, dimension - k)
    return Subspace(mean, fixed_signs(basis), spectrum[:k] / (n - 1), noise, n)


def _orthonormal(basis: np.ndarray) -> np.ndarray:
    """Restore the digits that the Gram matrix, which squares the condition number, has cost.

    The columns are nearly orthonormal already, where a Cholesky factor of ``B^T B`` is as accurate
    as Householder's QR and several times faster (Yamamoto et al., ETNA 44, 2015).
    """
    product = basis.T @ basis
    lost = np.abs(product - np.eye(len(product))).max()
    if lost < 1e-12:  # few directions, or a flat spectrum: nothing to restore
        return basis
    if lost > 1e-4:
        return np.linalg.qr(basis)[0]
    return basis @ np.linalg.inv(np.linalg.cholesky(product)).T
