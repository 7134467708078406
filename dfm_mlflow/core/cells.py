"""Subspaces over cells: a row is one cell of a picture, and whole pictures are held out.

Rows are many and short, so count, mean and scatter of the cells of each fold are all that a fit
needs: they are summed up in one pass whose memory does not follow the number of pictures. The
subspace of all other folds comes from the sum of their moments, at one eigendecomposition a fold,
and is that of a fit to their cells.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from dfm_mlflow.core.crossfit import ONE_GROUP, fit_without
from dfm_mlflow.core.leading_coordinates import MOST_SPANNING, leading_by_fold
from dfm_mlflow.core.moments import Moments, as_numpy
from dfm_mlflow.core.solvers import fit_moments
from dfm_mlflow.core.subspace import Subspace, squared_norm
from dfm_mlflow.errors import FitError

# Cells of m pictures, of shape (m, P, D), in order: NumPy arrays, or torch tensors on a device.
Blocks = Iterable[Any]
_SIDE = 4  # cells a side of the parts of a single picture


@dataclass(frozen=True, eq=False)
class CellSubspaces:
    """Of all cells, and of those of all other folds."""

    final: Subspace  # of all cells, in float64
    without: Mapping[int, Subspace]  # by fold: of the cells that are not in it
    total: float  # variance of all cells, summed over features

    @classmethod
    def of(cls, parts: Mapping[int, Moments], n_components: float) -> "CellSubspaces":
        """Fit them to the moments of each fold.

        parts: By fold, in any grouping of the cells: what :func:`fold_moments` gives.
        n_components: Share of the variance that each subspace keeps, or its dimension.
        """
        if len(parts) < 2:
            raise FitError(ONE_GROUP)
        whole = reduce(Moments.merge, (parts[f] for f in sorted(parts)))

        def of_others(fold: int) -> Moments:
            return reduce(Moments.merge, (parts[f] for f in sorted(parts) if f != fold))

        without = {
            f: fit_without(whole, part, n_components, lambda f=f: of_others(f))  # type: ignore[misc]  # f is bound
            for f, part in parts.items()
        }
        final = fit_moments(whole, n_components)
        return cls(final, without, float(np.trace(whole.scatter)) / (whole.n - 1))


@dataclass(frozen=True, eq=False)
class HeldOutCells:
    """What the cells of held-out pictures look like."""

    maps: np.ndarray  # (n, P): FRE of each cell under the subspace that was fitted without its fold
    means: np.ndarray  # (n, D): mean of the cells of each picture
    # Pictures, of shape (m,), sums over their cells of squared coordinates, of shape (m, k), and
    # the variances of the subspace, of shape (k,).
    squares: list[tuple[np.ndarray, np.ndarray, np.ndarray]]
    # (m,) int): Pictures, and the fold that they, or parts of them, are in.
    places: list[tuple[np.ndarray, int]]

    def noise_variance(self, model: Subspace) -> float:
        """Variance outside the subspace of a `model` as held-out cells show it."""
        return noise_variance_of(float(self.maps.mean(dtype=np.float64)), model)

    def mahalanobis_above(self, floor: float) -> np.ndarray:
        """Squared Mahalanobis distance of each picture, the sum over its cells.

        Gives (n,) float64.
        """
        distance = np.zeros(len(self.maps))
        for pictures, squares, variances in self.squares:
            distance[pictures] += squares @ (1 / np.maximum(variances, floor))
        return distance

    def nll(self, model: Subspace) -> np.ndarray:
        """Held-out negative log-likelihood of each picture, the sum over its cells.

        model: Of all cells, with the noise variance that held-out cells show.

        Gives (n,) float64, in nats.
        """
        floor = model.noise_variance if model.n_components < model.n_features else 0.0
        fre = self.maps.sum(axis=1, dtype=np.float64)
        distance = self.mahalanobis_above(floor)
        nll: np.ndarray = model.nll_from(distance, fre, self.maps.shape[1])
        return nll

    def leading_coordinates(self, subspaces: CellSubspaces) -> np.ndarray:
        """Leading coordinates of the mean cell of each picture, found without its fold.

        Gives (n, l) float64.
        """
        parts = [(pictures, _first(subspaces.without[fold])) for pictures, fold in self.places]
        return leading_by_fold(self.means, parts, subspaces.final)


def noise_variance_of(fre: float, model: Subspace) -> float:
    """Variance of each direction outside a subspace, from the mean FRE of held-out cells."""
    rest = max(1, model.n_features - model.n_components)
    return max(fre / rest, 1e-12 * float(model.variances[0]) / rest)


def fold_moments(x: Any, folds: np.ndarray) -> dict[int, Moments]:
    """Moments of the cells of a few pictures, by fold; those of a fold merge.

    Shapes: x (m, P, D); folds (m,) or (m, P) int.
    """
    of_cells = _of_cells(folds, x.shape[1])
    rows = x.reshape(-1, x.shape[-1])
    found = {}
    for f in np.unique(of_cells):
        mine = np.flatnonzero(of_cells == f)
        found[int(f)] = Moments.of(_taken(rows, mine), limit=None)
    return found


def total_moments(blocks: Blocks, folds: np.ndarray) -> dict[int, Moments]:
    """Moments of the cells of each fold, in one pass.

    Shapes: blocks (m, P, D); folds (n,) or (n, P) int.
    """
    total: dict[int, Moments] = {}
    start = 0
    for x in blocks:
        total = merged(total, fold_moments(x, folds[start : start + len(x)]))
        start += len(x)
    if not total:
        raise FitError("There are no cells to fit to: give at least one picture.")
    return total


def merged(a: dict[int, Moments], b: dict[int, Moments]) -> dict[int, Moments]:
    """Moments by fold of the cells of `a` and `b` together."""
    return {f: a[f].merge(b[f]) if f in a and f in b else a.get(f) or b[f] for f in a | b}


def held_out_block(x: Any, folds: np.ndarray, without: Mapping[int, Subspace]) -> HeldOutCells:
    """Look at the cells of a few pictures under the subspaces of other folds.

    without: By fold, from :attr:`CellSubspaces.without`, of the kind and in the dtype of `x`.

    Shapes: x (m, P, D); folds (m,) or (m, P) int.
    """
    xp = array_namespace(x)
    of_cells = _of_cells(folds, x.shape[1])
    maps = np.empty(x.shape[:2], str(x.dtype).removeprefix("torch."))
    squares, places = [], []
    for f in np.unique(of_cells):
        mine, model = of_cells == f, without[int(f)]
        pictures = np.flatnonzero(mine.any(axis=1))
        mine = mine[pictures]
        coordinates, residual = model.split(_taken(x, pictures).reshape(-1, x.shape[-1]))
        fre = as_numpy(squared_norm(residual)).reshape(mine.shape)
        maps[pictures] = np.where(mine, fre, maps[pictures])
        squared = (coordinates**2).reshape(*mine.shape, -1)
        if not mine.all():  # parts of a picture
            squared = squared * xp.asarray(mine[..., None], dtype=x.dtype, device=device(x))
        sums = as_numpy(xp.sum(squared, axis=1, dtype=xp.float64))
        squares.append((pictures, sums, as_numpy(model.variances).astype(np.float64)))
        places.append((pictures, int(f)))
    return HeldOutCells(maps, as_numpy(xp.mean(x, axis=1, dtype=xp.float64)), squares, places)


def crossfit_cells(
    blocks: Callable[[], Blocks],
    folds: np.ndarray,
    n_components: float,
    *,
    own: int | None = None,
) -> tuple[CellSubspaces, HeldOutCells]:
    """Fit a subspace to the cells of all pictures, and hold every picture out once.

    blocks: Gives the cells of all pictures in order, in blocks of shape (m, P, D); called twice.
    folds: (n,) or (n, P) int: Fold of each picture; or of each cell, where parts of a single
      picture are held out.
    n_components: Share of the variance that the subspaces keep, or their dimension.
    own: Pictures that are held out: the first ones. What follows them are altered copies of theirs,
      of the same fold, which are only fitted. All by default.
    """
    own = len(folds) if own is None else own
    found = CellSubspaces.of(total_moments(blocks(), folds), n_components)
    subspaces = replace(found, final=replace(found.final, n_samples=own))
    parts, models = [], dict[int, Subspace]()
    start = 0
    for x in _first_pictures(blocks(), own):
        models = models or {f: s.like(x) for f, s in found.without.items()}
        part = held_out_block(x, folds[start : start + len(x)], models)
        parts.append(_shifted(part, start))
        start += len(x)
    return subspaces, joined(parts)


def joined(parts: list[HeldOutCells]) -> HeldOutCells:
    """Put the pictures of several blocks together, in order."""
    return HeldOutCells(
        np.concatenate([p.maps for p in parts]),
        np.concatenate([p.means for p in parts]),
        [one for p in parts for one in p.squares],
        [one for p in parts for one in p.places],
    )


def folds_of_parts(shape: tuple[int, int], n_folds: int = 4) -> np.ndarray:
    """Deal the parts of a single picture to folds: squares of a few cells, which see each other.

    Gives (1, h * w) int, of at least two folds where there are two cells.
    """
    side = max(1, min(_SIDE, *(s // 2 for s in shape)))
    rows, columns = (np.arange(s) // side for s in shape)
    folds: np.ndarray = (2 * (rows[:, None] % 2) + columns[None, :] % 2) % n_folds
    return folds.reshape(1, -1)


def _first(subspace: Subspace) -> Subspace:
    return replace(subspace, basis=subspace.basis[:, :MOST_SPANNING])


def _of_cells(folds: np.ndarray, n_cells: int) -> np.ndarray:
    wide = folds if folds.ndim == 2 else folds[:, None]
    return np.broadcast_to(wide, (len(folds), n_cells))


def _taken(x: Any, places: np.ndarray) -> Any:
    """Give some rows; all of them as they are."""
    if len(places) == len(x):
        return x
    xp = array_namespace(x)
    return xp.take(x, xp.asarray(places, device=device(x)), axis=0)


def _first_pictures(blocks: Blocks, n: int) -> Iterator[Any]:
    for x in blocks:
        if n <= 0:
            return
        yield x[:n]
        n -= len(x)


def _shifted(part: HeldOutCells, start: int) -> HeldOutCells:
    squares = [(pictures + start, *rest) for pictures, *rest in part.squares]
    return replace(
        part,
        squares=squares,  # type: ignore[arg-type]  # a tuple of three, as before
        places=[(pictures + start, fold) for pictures, fold in part.places],
    )
