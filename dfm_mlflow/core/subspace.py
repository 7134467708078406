"""One class: the affine subspace of its good features, and the density around it.

A row ``x`` splits into coordinates ``z = V^T (x - mean)`` and a residual
``e = (x - mean) - V z``. The feature reconstruction error is ``FRE = |e|^2`` (Ndiour et al.,
arXiv 2203.10422); the density is probabilistic PCA (Tipping & Bishop, J. R. Stat. Soc. B 61, 1999),
the full-space form of the Gaussian in the subspace of Ahuja et al. (arXiv 1909.11786).
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.linalg
from array_api_compat import array_namespace

from dfm_mlflow.errors import FitError


@dataclass(frozen=True)
class Subspace:
    """Mean, basis and spectrum of one class; NumPy arrays or torch tensors.

    Attributes
    ----------
    mean : array of shape (D,)
    basis : array of shape (D, k)
        Orthonormal columns.
    variances : array of shape (k,)
        Variance of the good features along each column (n - 1 in the denominator), descending.
    noise_variance : float
        Variance of each direction outside the subspace, from held-out rows where there are any.
    n_samples : int
        Rows it was fitted to.
    """

    mean: Any
    basis: Any
    variances: Any
    noise_variance: float
    n_samples: int

    @property
    def n_features(self) -> int:
        """Dimension D of the feature space."""
        return int(self.basis.shape[0])

    @property
    def n_components(self) -> int:
        """Dimension k of the subspace."""
        return int(self.basis.shape[1])

    def split(self, x: Any) -> tuple[Any, Any]:
        """Split rows into coordinates of shape (n, k) and residuals of shape (n, D).

        The residual is formed explicitly: a difference of norms would lose the digits of rows that
        lie near the subspace.
        """
        centred = x - self.mean
        coordinates = centred @ self.basis
        return coordinates, centred - coordinates @ self.basis.T

    def residual(self, x: Any) -> Any:
        """Residuals ``e`` of rows, of shape (n, D)."""
        return self.split(x)[1]

    def fre(self, x: Any) -> Any:
        """Feature reconstruction error ``sum(e^2)`` of rows, of shape (n,), never negative."""
        residual = self.residual(x)
        return array_namespace(residual).sum(residual**2, axis=1)

    def nll(self, x: Any) -> Any:
        """Negative log-likelihood of rows under probabilistic PCA, of shape (n,), in nats."""
        coordinates, residual = self.split(x)
        return self.nll_of(coordinates, array_namespace(residual).sum(residual**2, axis=1))

    def nll_of(self, coordinates: Any, fre: Any) -> Any:
        """Negative log-likelihood from coordinates (n, k) and FRE (n,)."""
        xp = array_namespace(coordinates)
        rest = self.n_features - self.n_components
        # Probabilistic PCA lets no kept direction vary less than the noise.
        variances = xp.clip(self.variances, self.noise_variance, None)
        constant = self.n_features * math.log(2 * math.pi) + rest * math.log(self.noise_variance)
        mahalanobis = xp.sum(coordinates**2 / variances, axis=1) + fre / self.noise_variance
        return 0.5 * (mahalanobis + (xp.sum(xp.log(variances)) + constant))

    def with_noise(self, noise_variance: float) -> "Subspace":
        """Return a copy with another noise variance."""
        return replace(self, noise_variance=noise_variance)


def count_components(variances: np.ndarray, level: float) -> int:
    """Smallest number of leading variances whose sum reaches a share of the total, at least 1."""
    cumulated = np.cumsum(variances)
    reached = np.searchsorted(cumulated, level * cumulated[-1] * (1 - 1e-12)) + 1
    return int(min(max(1, reached), np.count_nonzero(variances > variances[0] * 1e-12)))


def fit_subspace(x: np.ndarray, level: float) -> Subspace:
    """Fit the subspace that keeps a share of the variance.

    For n < D the basis comes from the n x n Gram matrix, otherwise from the D x D covariance: the
    same subspace as a singular value decomposition, at a fraction of its cost.

    Parameters
    ----------
    x : ndarray of shape (n, D), float32 or float64
        Good features; not changed.
    level : float
        Share of the variance in (0, 1].

    Returns
    -------
    Subspace
        In float64.

    Raises
    ------
    FitError
        For fewer than 2 rows, values that are not finite, or no variance at all.
    """
    check_features(x)
    n, dimension = x.shape
    mean = x.mean(axis=0, dtype=np.float64)
    centred = x - mean
    if n <= dimension:
        spectrum, vectors = symmetric_spectrum(centred @ centred.T)
        _check_variance(spectrum)
        k = count_components(spectrum, level)
        basis = centred.T @ (vectors[:, :k] / np.sqrt(spectrum[:k]))
        # The Gram matrix squares the condition number: one QR restores orthonormality.
        basis = scipy.linalg.qr(basis, mode="economic", check_finite=False)[0]
    else:
        spectrum, vectors = symmetric_spectrum(centred.T @ centred)
        _check_variance(spectrum)
        k = count_components(spectrum, level)
        basis = vectors[:, :k]
    rest = max(float(spectrum[k:].sum()) / (n - 1), 1e-12 * float(spectrum[0]))
    noise = rest / max(1, dimension - k)
    variances = spectrum[:k] / (n - 1)
    return Subspace(mean, _fixed_signs(basis), variances, noise, n)


def symmetric_spectrum(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, descending and not negative, and eigenvectors of a symmetric matrix."""
    values, vectors = scipy.linalg.eigh(matrix, check_finite=False)
    return np.maximum(values[::-1], 0), vectors[:, ::-1]


def check_features(x: np.ndarray) -> None:
    """Refuse features that no subspace can be fitted to."""
    if x.shape[0] < 2:
        raise FitError(f"There are {x.shape[0]} rows of features and at least 2 are needed.")
    if not np.isfinite(x).all():
        raise FitError(
            "The features hold NaN or infinite values: check the weights, or use precision=fp32."
        )


def _check_variance(spectrum: np.ndarray) -> None:
    if not spectrum[0] > 0:
        raise FitError("All rows of features are equal: give pictures that differ.")


def _fixed_signs(basis: np.ndarray) -> np.ndarray:
    """Make the largest entry of each column positive, so that equal data give equal bases."""
    largest = basis[np.abs(basis).argmax(axis=0), np.arange(basis.shape[1])]
    return basis * np.where(largest < 0, -1.0, 1.0)
