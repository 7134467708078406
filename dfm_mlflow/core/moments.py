"""Mean and scatter of rows that come in batches, from any number of places.

Two sets of moments merge exactly (Chan, Golub & LeVeque, Am. Stat. 37, 1983), so that batches,
processes and machines may see the rows in any order and grouping.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace, to_device

from dfm_mlflow.core.checks import NO_ROWS
from dfm_mlflow.errors import FitError

MAX_FEATURES = 4096  # a scatter matrix of 128 MiB; subspace iteration needs none
_DIGITS = 1e-6  # of 1e-16: share of the variance that must be left after taking rows away


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and scatter matrix of rows; merging gives a new one."""

    n: int  # rows
    mean: np.ndarray  # (D,) float64
    scatter: np.ndarray  # (D, D) float64: ``sum (x - mean) (x - mean)^T``

    @classmethod
    def of(cls, x: Any, *, limit: int | None = MAX_FEATURES) -> "Moments":
        """Moments of the rows of a NumPy array, or of a torch tensor: on its device.

        Shapes: x (n, D).
        """
        _check_width(x.shape[1], limit)
        if not len(x):
            return cls(0, np.zeros(x.shape[1]), np.zeros((x.shape[1], x.shape[1])))
        xp = array_namespace(x)
        mean = xp.mean(x, axis=0, dtype=xp.float64)
        centred = x - mean
        return cls(len(x), as_numpy(mean), as_numpy(centred.T @ centred))

    @property
    def n_features(self) -> int:
        """Dimension D of a row."""
        return len(self.mean)

    def merge(self, other: "Moments") -> "Moments":
        """Moments of these and `other` rows; associative and commutative up to rounding."""
        if other.n_features != self.n_features:
            raise FitError(
                f"Moments of {self.n_features} and of {other.n_features} features do not merge: "
                "take both from the same layers, image size and pooling."
            )
        if not self.n or not other.n:
            return self if self.n else other
        n = self.n + other.n
        difference = other.mean - self.mean
        mean = self.mean + difference * (other.n / n)
        scatter = self.scatter + other.scatter
        scatter += np.outer(difference * (self.n * other.n / n), difference)
        return Moments(n, mean, scatter)

    def without(self, part: "Moments") -> "Moments":
        """Moments of the rows that are not in a `part` of them; undoes :meth:`merge`.

        The digits that the part has taken from the sums do not come back: see
        :meth:`is_rounding_of`.
        """
        n = self.n - part.n
        if n < 1:
            raise FitError(f"Of {self.n} rows {part.n} are taken away and none is left.")
        difference = part.mean - self.mean
        scatter = self.scatter - part.scatter
        scatter -= np.outer(difference * (part.n * self.n / n), difference)
        return Moments(n, self.mean - difference * (part.n / n), scatter)

    def is_rounding_of(self, whole: "Moments") -> bool:
        """Whether these, from :meth:`without`, hold so little of a `whole` that it is rounding.

        So it is where the part that was taken away held all but a millionth of the variance, such
        as a single huge row: compute the moments of the other rows from the rows then.
        """
        return bool(np.trace(self.scatter) < _DIGITS * np.trace(whole.scatter))

    def update(self, x: Any) -> "Moments":
        """Moments with further rows `x`, of shape (m, D)."""
        return self.merge(Moments.of(x))


def as_numpy(x: Any) -> np.ndarray:
    """Bring an array of any kind and device to NumPy."""
    return np.asarray(to_device(x, "cpu"))


def moments_of(batches: Iterable[Any]) -> Moments:
    """Moments of the rows of all `batches`, each of shape (m, D)."""
    moments = None
    for batch in batches:
        moments = moments.update(batch) if moments else Moments.of(batch)
    if moments is None:
        raise FitError(NO_ROWS)
    return moments


def _check_width(n_features: int, limit: int | None) -> None:
    if limit is not None and n_features > limit:
        raise FitError(
            f"Moments of {n_features} features need a matrix of {n_features**2 * 8 / 2**30:.1f} "
            f"GiB, and {limit} features are the limit: use DFM.fit_batches, or pool more."
        )
