"""One class: the affine subspace of its good features, and the density around it.

A row ``x`` splits into coordinates ``z = V^T (x - mean)`` and a residual
``e = (x - mean) - V z``. The feature reconstruction error is ``FRE = |e|^2`` (Ndiour et al.,
arXiv 2203.10422); the density is probabilistic PCA (Tipping & Bishop, J. R. Stat. Soc. B 61, 1999),
the full-space form of the Gaussian in the subspace of Ahuja et al. (arXiv 1909.11786).

Scoring is written once against the array API: NumPy arrays and torch tensors alike, on their own
device.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device


@dataclass(frozen=True)
class Subspace:
    """Mean, basis and spectrum of one class; NumPy arrays or torch tensors."""

    mean: Any  # (D,)
    basis: Any  # (D, k): orthonormal columns
    # (k,): Variance of the good features along each column (n - 1 in the denominator), descending.
    variances: Any
    # Variance of each direction outside the subspace, from held-out rows where there are any.
    noise_variance: float
    n_samples: int  # rows it was fitted to

    @property
    def n_features(self) -> int:
        """Dimension D of the feature space."""
        return int(self.basis.shape[0])

    @property
    def n_components(self) -> int:
        """Dimension k of the subspace."""
        return int(self.basis.shape[1])

    def split(self, x: Any) -> tuple[Any, Any]:
        """Split rows into coordinates and residuals.

        The residual is formed explicitly: a difference of norms would lose the digits of rows that
        lie near the subspace. Where k = D there is none, and it is exactly 0.

        Shapes: x (n, D); gives coordinates (n, k): ``z = V^T (x - mean)``; residual (n, D): ``e =
        (x - mean) - V z``.
        """
        centred = x - self.mean
        coordinates = centred @ self.basis
        if self.n_components == self.n_features:
            return coordinates, array_namespace(centred).zeros_like(centred)
        return coordinates, centred - coordinates @ self.basis.T

    def residual(self, x: Any) -> Any:
        """Residuals ``e`` of rows.

        Shapes: x (n, D); gives (n, D).
        """
        return self.split(x)[1]

    def fre(self, x: Any) -> Any:
        """Feature reconstruction error ``sum(e^2)`` of rows (Ndiour et al., arXiv 2203.10422).

        Shapes: x (n, D); gives (n,): never negative.
        """
        return squared_norm(self.residual(x))

    def nll(self, x: Any) -> Any:
        """Negative log-likelihood of rows under probabilistic PCA (Tipping & Bishop 1999).

        Shapes: x (n, D); gives (n,), in nats.
        """
        coordinates, residual = self.split(x)
        return self.nll_of(coordinates, squared_norm(residual))

    def nll_of(self, coordinates: Any, fre: Any) -> Any:
        """Negative log-likelihood from coordinates and FRE.

        Shapes: coordinates (n, k); fre (n,); gives (n,), in nats.
        """
        return self.nll_from(self.mahalanobis(coordinates), fre)

    def nll_from(self, mahalanobis: Any, fre: Any, n_rows: int = 1) -> Any:
        """Negative log-likelihood from Mahalanobis distances and FRE.

        ``1/2 [m + FRE / s + sum log max(lambda, s) + (D - k) log s + D log 2 pi]`` with the noise
        variance ``s``; where k = D nothing of ``s`` is in it.

        n_rows: Rows, such as the cells of a picture, that each of both is a sum over.

        Shapes: mahalanobis (n,); fre (n,); gives (n,), in nats.
        """
        rest = self.n_features - self.n_components
        constant = self.n_features * math.log(2 * math.pi)
        if rest:
            constant += rest * math.log(self.noise_variance)
            mahalanobis = mahalanobis + fre / self.noise_variance
        variances = self._floored_variances()
        xp = array_namespace(variances)
        return 0.5 * (mahalanobis + n_rows * (xp.sum(xp.log(variances)) + constant))

    def mahalanobis(self, coordinates: Any) -> Any:
        """Squared Mahalanobis distance within the subspace: ``sum z^2 / max(lambda, s)``.

        No variance counts for less than the noise variance ``s``; where k = D there is no noise.

        Shapes: coordinates (n, k); gives (n,).
        """
        xp = array_namespace(coordinates)
        return xp.sum(coordinates**2 / self._floored_variances(), axis=1)

    def subspace_nll_from(self, distance: Any) -> Any:
        """Negative log-likelihood of the coordinates alone, from their distances.

        Shapes: distance (n,); gives (n,), in nats.
        """
        xp = array_namespace(self.variances)
        constant = xp.sum(xp.log(self.variances)) + self.n_components * math.log(2 * math.pi)
        return 0.5 * (distance + constant)

    def with_noise(self, noise_variance: float) -> "Subspace":
        """Return a copy with another `noise_variance`."""
        return replace(self, noise_variance=noise_variance)

    def like(self, x: Any) -> "Subspace":
        """Return a copy whose arrays are of the kind, dtype and device of an array."""
        xp = array_namespace(x)

        def convert(array: Any) -> Any:
            whole = np.ascontiguousarray(array)  # torch takes no negative strides
            return xp.asarray(whole, dtype=x.dtype, device=device(x), copy=True)

        return replace(
            self,
            mean=convert(self.mean),
            # Column by column: few rows, as in scoring one picture, take a third of the time so.
            basis=convert(self.basis.T).T,
            variances=convert(self.variances),
        )

    def _floored_variances(self) -> Any:
        # Probabilistic PCA lets no kept direction vary less than the noise.
        if self.n_components == self.n_features:
            return self.variances
        return array_namespace(self.variances).clip(self.variances, self.noise_variance, None)


def squared_norm(rows: Any) -> Any:
    """Sum of squares of each row.

    Shapes: rows (n, D); gives (n,).
    """
    return array_namespace(rows).sum(rows**2, axis=1)


def fixed_signs(basis: np.ndarray) -> np.ndarray:
    """Make the largest entry of each column positive, so that equal data give equal bases.

    Shapes: basis (D, k); gives (D, k): the same array.
    """
    top, bottom = basis.max(axis=0), -basis.min(axis=0)  # many times faster than argmax of |basis|
    flipped = bottom > top
    for column in np.flatnonzero(bottom == top):  # both are there: the first counts
        values = basis[:, column]
        flipped[column] = values[np.abs(values).argmax()] < 0
    basis *= np.where(flipped, -1.0, 1.0)
    return basis
