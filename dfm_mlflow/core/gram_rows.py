"""Subspaces of rows that are known by their Gram matrix alone."""

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from dfm_mlflow.core.solvers import SMALL, choose_k, symmetric_spectrum
from dfm_mlflow.core.threads import side_by_side, single_threaded

T = TypeVar("T")


class RowsByGram:
    """Subspaces of rows that are known by their Gram matrix alone.

    Shapes: gram (n, n) float64.
    """

    def __init__(self, gram: np.ndarray, dimension: int):
        self._n, self._dimension = len(gram), dimension
        self._row_means = gram.mean(axis=1)
        self._mean = self._row_means.mean()
        inner = gram - self._row_means[:, None] - self._row_means[None, :] + self._mean
        self._spectrum, self._vectors = symmetric_spectrum(inner)

    def n_components(self, level: float) -> int:
        """Dimension of the subspace; 0 for a single row, or equal ones: a point."""
        if not self._spectrum[0] > 0:
            return 0
        most = min(self._n - 1, self._dimension)
        return choose_k(self._spectrum, level, most, strict=False)

    def directions(self, level: float) -> np.ndarray:
        """Weights of the rows in the principal directions of their subspace.

        Gives (n, k) float64.
        """
        k = self.n_components(level)
        weights: np.ndarray = self._vectors[:, :k] / np.sqrt(self._spectrum[:k])
        return weights

    def project(self, cross: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
        """Weights of the rows in the projections of others, and their Mahalanobis distances.

        Shapes: cross (m, n) float64; gives weights (m, n) float64: the projection of the i-th is
        ``sum_j weights[i, j] x_j``; mahalanobis (m,) float64: squared, with no variance below the
        noise.
        """
        k = self.n_components(level)
        if not k:
            return np.full(cross.shape, 1 / self._n), np.zeros(len(cross))
        kept, spectrum = self._vectors[:, :k], self._spectrum[:k]
        projected = self._centred(cross) @ kept
        # mean coordinates vanish: columns of `kept` are orthogonal to the constant vector
        noise = self._spectrum[k:].sum() / max(1, self._dimension - k)
        variances = np.maximum(spectrum, noise) / max(1, self._n - 1)
        weights = 1 / self._n + (projected / spectrum) @ kept.T
        return weights, ((projected**2 / spectrum) / variances).sum(axis=1)

    def squares(self, cross: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
        """Squared coordinates of others in the subspace, and the variances of the rows in it.

        Shapes: cross (m, n) float64; gives squares (m, k) float64; variances (k,) float64.
        """
        k = self.n_components(level)
        spectrum = self._spectrum[:k]
        squares = (self._centred(cross) @ self._vectors[:, :k]) ** 2 / spectrum
        return squares, spectrum / max(1, self._n - 1)

    def _centred(self, cross: np.ndarray) -> np.ndarray:
        centred: np.ndarray = (
            cross - cross.mean(axis=1, keepdims=True) - self._row_means + self._mean
        )
        return centred


def for_each_fold(work: Callable[[int], T], folds: np.ndarray) -> list[T]:
    """Call with every fold; folds of few rows have a thread each, which shares nothing.

    The threads of one small eigendecomposition wait for each other, on a busy machine for seconds.

    Shapes: folds (n,) int.
    """
    numbers = list(np.unique(folds))
    if len(folds) > SMALL:
        return [work(fold) for fold in numbers]
    with single_threaded():  # on a single core, too
        return side_by_side(work, numbers, [len(folds)] * len(numbers))
