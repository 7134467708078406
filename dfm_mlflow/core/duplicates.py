"""Near-duplicates among images, by their features: re-encoded files, bursts of one capture.

How alike two images are is the share of their spread that their difference keeps,
``|y_i - y_j|^2 / (|y_i|^2 + |y_j|^2)``: 1 for unrelated images, 0 for copies. Here y are centred
features in which directions of large variance count less, ``y = V^T x / sqrt(lambda + typical
lambda)``; else all pictures of one brightness would be alike. Features come as sketches, random
projections that keep distances (Charikar, Chen & Farach-Colton, Finding frequent items in data
streams, 2004), so that an image costs 4 KB whatever its network.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

WIDTH = 1024  # numbers of a sketch, of all layers together: distances are off by 4 %
MOST = 20_000  # images whose distances are computed in seconds, and sketches kept in memory
FEWEST = 8  # images from which typical distances can be told
# A pair below WIDE may be near-duplicates. It is called so below a share of the distance to the
# nearest image that is no such candidate, as all but one in twenty have it: wafers of one brick
# look nearly the same, and are two images. What that finds: docs/training-images.md.
WIDE, NEAREST_QUANTILE, SHARE = 0.35, 0.05, 0.38
_LARGEST, _STEPS = 10, 20  # a direction counts as no more than so many typical ones
_ROWS = 1024  # of the distances that are in memory at once
_NEIGHBOURS = 32  # most candidates that are kept of an image


def sketch(x: Any, width: int, seed: int = 0) -> Any:
    """Project rows at random so that their inner products are kept on average.

    Each feature gets a random sign, and every `width`-th feature is added up.

    seed: Of the signs. Sketches are comparable for equal D, width and seed.

    Shapes: x (n, D); gives (n, width), of the same kind as `x`.
    """
    xp = array_namespace(x)
    n, dimension = x.shape
    signs = np.random.default_rng([seed, dimension]).integers(0, 2, dimension) * 2.0 - 1
    signed = x * xp.asarray(signs.astype(np.float32), device=device(x))
    whole = dimension // width * width
    total = xp.sum(xp.reshape(signed[:, :whole], (n, -1, width)), axis=1)
    rest = xp.zeros((n, width - (dimension - whole)), dtype=x.dtype, device=device(x))
    return total + xp.concat([signed[:, whole:], rest], axis=1)


@dataclass(frozen=True, eq=False)
class NearDuplicates:
    """Which of n images are near-duplicates of others."""

    of: np.ndarray  # (n,) int: the most alike image of each; -1 where it has no near-duplicate
    distance: np.ndarray  # (n,) float64: how far that one is, 0 to about 1; NaN where there is none
    # (n,) int: Equal for images that near-duplicates link, directly or by others.
    groups: np.ndarray

    @property
    def found(self) -> np.ndarray:
        """Places of the images that have a near-duplicate, ascending."""
        return np.flatnonzero(self.of >= 0)


class Likeness:
    """Typical distances among n images, and so which images are near-duplicates.

    Shapes: sketches (n, L, s) float32.
    """

    def __init__(self, sketches: np.ndarray):
        rows = np.asarray(sketches, dtype=np.float32)
        self._n = len(rows)
        self._mean = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
        spread = np.sqrt(((rows - self._mean).astype(np.float64) ** 2).sum(axis=2).mean(axis=0))
        self._scale = np.where(spread > 0, spread, 1).astype(np.float32)[:, None]
        variances, self._vectors = _principal(self._scaled(rows))
        typical = _typical(variances, max(1, min(self._n - 1, rows[0].size)))
        self._shrunk = np.sqrt(typical / (variances + typical)).astype(np.float32)
        self._rows = self._whitened(rows)
        self._candidates = self._pairs_within(WIDE)
        self.limit = self._limit()

    def within(self) -> NearDuplicates:
        """Near-duplicates among the images themselves."""
        n, (i, j, distance) = self._n, self._candidates
        close = distance < self.limit
        return _linked(n, i[close], j[close], distance[close])

    def between(self, sketches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Find for each of m other pictures the one among the n that it nearly equals.

        Shapes: sketches (m, L, s) float32; gives of (m,) int: place among the n; -1 where none is a
        near-duplicate; distance (m,) float64: how far that one is; NaN where there is none.
        """
        others = self._whitened(np.asarray(sketches, dtype=np.float32))
        of, nearest = np.full(len(others), -1), np.full(len(others), np.nan)
        for start, distances in _distances(others, self._rows):
            part = slice(start, start + len(distances))
            best = distances.argmin(axis=1)
            found = distances[np.arange(len(best)), best]
            close = found < self.limit
            of[part] = np.where(close, best, -1)
            nearest[part] = np.where(close, found, np.nan)
        return of, nearest

    def _scaled(self, rows: np.ndarray) -> np.ndarray:
        scaled: np.ndarray = ((rows - self._mean) / self._scale).reshape(len(rows), -1)
        return scaled

    def _whitened(self, rows: np.ndarray) -> np.ndarray:
        x = self._scaled(rows)
        along = x @ self._vectors
        whitened: np.ndarray = x + (along * (self._shrunk - 1)) @ self._vectors.T
        return whitened

    def _pairs_within(self, limit: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pairs below a `limit`, at most some of each picture: two places and the distance."""
        parts = []
        for start, distances in _distances(self._rows, self._rows):
            here = np.arange(len(distances))
            distances[here, start + here] = np.inf
            most = min(_NEIGHBOURS, self._n - 1)
            if self._n < FEWEST:
                break
            near = np.argpartition(distances, most - 1, axis=1)[:, :most]
            values = np.take_along_axis(distances, near, axis=1)
            row, column = np.nonzero(values < limit)
            parts.append((start + row, near[row, column], values[row, column].astype(np.float64)))
        if not parts:
            return np.empty(0, int), np.empty(0, int), np.empty(0)
        i, j, distance = (np.concatenate(column) for column in zip(*parts, strict=True))
        return i, j, distance

    def _limit(self) -> float:
        """A share of how far nearly all pictures are from the nearest that is no candidate."""
        if self._n < FEWEST:
            return 0.0
        groups = _linked(self._n, *self._candidates).groups
        nearest = np.empty(self._n)
        for start, distances in _distances(self._rows, self._rows):
            part = slice(start, start + len(distances))
            distances[groups[part, None] == groups[None, :]] = np.inf
            nearest[part] = distances.min(axis=1)
        to_others = nearest[np.isfinite(nearest)]  # none where all pictures are of one group
        return (
            min(WIDE, SHARE * float(np.quantile(to_others, NEAREST_QUANTILE)))
            if len(to_others)
            else WIDE
        )


def _principal(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Variances of centred rows of shape (n, d) along orthonormal columns of shape (d, r)."""
    n, dimension = x.shape
    few = n < dimension
    squares = (x @ x.T if few else x.T @ x).astype(np.float64)
    spectrum, vectors = np.linalg.eigh(squares)
    kept = spectrum > 1e-6 * spectrum[-1]
    spectrum, vectors = spectrum[kept], vectors[:, kept]
    if few:
        vectors = x.T @ (vectors / np.sqrt(spectrum))
    return spectrum / n, vectors.astype(np.float32)


def _typical(variances: np.ndarray, n_directions: int) -> float:
    """Mean variance of the directions that images span, of which no few may make most.

    Not the median: of images that are all there five times, four fifths of the variances are those
    of their noise.
    """
    mean = float(variances.sum()) / n_directions
    for _ in range(_STEPS):
        mean = float(np.minimum(variances, _LARGEST * mean).sum()) / n_directions
    return mean or 1.0


def _distances(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Share of the spread that differences keep, a few rows of `a` at a time against all of `b`."""
    lengths = np.einsum("ij,ij->i", b, b)
    for start in range(0, len(a), _ROWS):
        rows = a[start : start + _ROWS]
        both = np.einsum("ij,ij->i", rows, rows)[:, None] + lengths[None, :]
        # images without any features of their own, such as equal ones, are copies
        yield start, 1 - 2 * (rows @ b.T) / np.where(both > 0, both, 1) - (both <= 0)


def _linked(n: int, i: np.ndarray, j: np.ndarray, distance: np.ndarray) -> NearDuplicates:
    from scipy.sparse import coo_array  # late: a server looks for no copies
    from scipy.sparse.csgraph import connected_components

    of, nearest = np.full(n, -1), np.full(n, np.nan)
    order = np.argsort(-distance, kind="stable")  # the nearest is written last
    for a, b in ((i, j), (j, i)):
        better = np.full(n, np.inf)
        better[a[order]] = distance[order]
        place = np.full(n, -1)
        place[a[order]] = b[order]
        closer = better < np.where(np.isnan(nearest), np.inf, nearest)
        of, nearest = np.where(closer, place, of), np.where(closer, better, nearest)
    links = coo_array((np.ones(len(i), dtype=np.int8), (i, j)), shape=(n, n))
    groups = connected_components(links, directed=False)[1]
    return NearDuplicates(of, nearest, groups)
