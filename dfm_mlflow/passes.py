"""Fitting a class whose features are in many places, in passes over them.

The places are this process or Spark's executors: :class:`Passes` is all that is known of them. What
comes back is a sum whose size does not follow the number of pictures, or a few numbers a picture.

=======================================  ======================================================
n pictures, D features of a row          subspaces from
=======================================  ======================================================
n up to D and up to 4,096                the rows themselves, which are less than a D x D matrix
D up to 4,096                            merged moments, and those of each fold
both above 4,096                         seeded subspace iteration
=======================================  ======================================================

The choice is that of :mod:`dfm_mlflow.core.solvers`, and so are the results up to rounding. Where
the iteration gives way to an exact solver, that one works on the rows, at most as many as features,
or on moments.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from dfm_mlflow.class_model import (
    CALM,
    ClassModel,
    Grid,
    LayerModel,
    check_rest,
    first_coordinates,
    n_leading,
    score_maps,
    sorted_columns,
    to_store,
)
from dfm_mlflow.config import Options
from dfm_mlflow.core.calibration import Calibration
from dfm_mlflow.core.crossfit import ONE_GROUP, HeldOut, crossfit, fit_without
from dfm_mlflow.core.moments import MAX_FEATURES, Moments
from dfm_mlflow.core.quantiles import lower_counts, quantile_of_counts, upper_counts
from dfm_mlflow.core.solvers import LARGE, fit_moments, fit_subspace
from dfm_mlflow.core.streaming import (
    SubspaceIteration,
    Summary,
    TooManyComponents,
    contribution,
)
from dfm_mlflow.core.subspace import Subspace, squared_norm
from dfm_mlflow.errors import FitError
from dfm_mlflow.network.maps import usual_of

BUDGET = 128 << 20  # bytes of sums that one pass brings back, or of one matrix
MOST_EXACT = 8192  # features whose scatter matrix, 512 MiB, still moves as one piece
MOST_ROWS = 1 << 30  # bytes of rows that the exact solver gets where the iteration gives way

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Block:
    """Features of a few pictures of one class.

    Attributes
    ----------
    index : ndarray of shape (m,), int
        Place of each picture in the list of the class.
    features : list of ndarray of shape (m, C, h, w), float32
        One for each layer.
    """

    index: np.ndarray
    features: list[np.ndarray]


@dataclass(frozen=True, eq=False)
class HeldOutBlock:
    """What the pictures of a block look like under the subspaces of other folds, in each layer.

    Attributes
    ----------
    index : ndarray of shape (m,), int
    maps : list of ndarray of shape (m, h, w), float32
    fre, mahalanobis : list of ndarray of shape (m,), float64
    """

    index: np.ndarray
    maps: list[np.ndarray]
    fre: list[np.ndarray]
    mahalanobis: list[np.ndarray]


class Passes(Protocol):
    """Blocks that stay where they are; functions go there."""

    def total(self, work: Callable[[Any], T], merge: Callable[[T, T], T]) -> T:
        """Merge what a function gives for every block; any order and grouping."""

    def each(self, work: Callable[[Any], T], *, large: bool = False) -> Iterable[T]:
        """What a function gives for every block; `large` where all together are."""

    def derive(self, work: Callable[[Any], Any]) -> "Passes":
        """What a function gives for every block, kept where the blocks are."""

    def join(self, other: "Passes", merge: Callable[[Any, Any], Any]) -> "Passes":
        """Merge block by block with what was derived from the same blocks."""

    def drop(self) -> None:
        """Give back the space of what was derived."""


@dataclass(frozen=True, eq=False)
class LocalPasses:
    """Blocks in this process."""

    blocks: Sequence[Any]

    def total(self, work: Callable[[Any], T], merge: Callable[[T, T], T]) -> T:
        """Merge what a function gives for every block."""
        return reduce(merge, map(work, self.blocks))

    def each(self, work: Callable[[Any], T], *, large: bool = False) -> Iterable[T]:
        """What a function gives for every block."""
        return map(work, self.blocks)

    def derive(self, work: Callable[[Any], Any]) -> "LocalPasses":
        """What a function gives for every block."""
        return LocalPasses([work(b) for b in self.blocks])

    def join(self, other: "LocalPasses", merge: Callable[[Any, Any], Any]) -> "LocalPasses":
        """Merge block by block."""
        return LocalPasses([merge(a, b) for a, b in zip(self.blocks, other.blocks, strict=True)])

    def drop(self) -> None:
        """Nothing is kept elsewhere."""


def fit_class_in_passes(
    name: str, passes: Passes, folds: np.ndarray, grids: Sequence[Grid], options: Options
) -> ClassModel:
    """Fit and calibrate a class, as :func:`dfm_mlflow.class_model.fit_class` does up to rounding.

    Parameters
    ----------
    name : str
    passes : Passes
        Over blocks of features.
    folds : ndarray of shape (n_listed,), int
        Fold of each picture in the list of the class; -1 for one that could not be read.
    grids : sequence of Grid
    options : Options
        Resolved.

    Raises
    ------
    FitError
        As ``fit_class``, and for subspaces too large for any of the ways above.
    """
    folds = folds.astype(np.int16)
    if len(np.unique(folds[folds >= 0])) < 2:
        raise FitError(ONE_GROUP)
    parts = [_fit_layer(passes, folds, j, grid, options) for j, grid in enumerate(grids)]
    held = parts[0][1]
    for _, other in parts[1:]:
        held = held.join(other, _beside)
    sums = _sums(held, folds)
    subspaces = [
        to_store(subspace, _noise_variance(sums, j, subspace))
        for j, (subspace, _) in enumerate(parts)
    ]
    check_rest(subspaces, options)
    divisors = [_usual(sums, j, options.normalize) for j in range(len(grids))]
    usual = [others for _, others in divisors]
    layers = [
        LayerModel(subspace, whole.numpy(), leading)
        for subspace, (whole, _), leading in zip(
            subspaces, divisors, _leading(passes, subspaces, grids), strict=True
        )
    ]

    def scored(block: HeldOutBlock) -> tuple[Tensor, Tensor]:
        maps = [torch.from_numpy(m) for m in block.maps]
        nothing = torch.zeros(len(block.index), dtype=torch.float64)
        mine = folds[block.index]
        return score_maps(maps, [u[mine] for u in usual], nothing, grids, options)

    scores = _nll(held, subspaces) if options.score == "nll" else np.concatenate(
        list(held.each(lambda block: scored(block)[0].numpy()))
    )  # fmt: skip
    calibration = Calibration.of(scores, len(np.unique(folds[folds >= 0])), options.tail)

    def inside(block: HeldOutBlock) -> np.ndarray:
        combined = scored(block)[1]
        return combined[combined > 0].numpy()

    scale = quantile_of_counts(
        CALM,
        held.total(lambda block: upper_counts(inside(block)), np.add),
        lambda upper: held.total(lambda block: lower_counts(inside(block), upper), np.add),
    )
    for _, part in parts:
        part.drop()
    return ClassModel(name, tuple(layers), calibration, scale)


# -- one layer -------------------------------------------------------------------------------------


def _fit_layer(
    passes: Passes, folds: np.ndarray, j: int, grid: Grid, options: Options
) -> tuple[Subspace, Passes]:
    """Give the final subspace, and the pictures of each fold under the subspace of the others."""
    layer = _Layer(passes, _Rows(folds, j, grid), float(options.pca_level))
    n, dimension = int((folds >= 0).sum()), grid.n_features
    if n <= min(dimension, LARGE):
        subspace, held = layer.by_rows()
    elif dimension <= MAX_FEATURES:
        subspace, held = layer.by_moments()
    else:
        try:
            subspace, held = layer.by_iteration()
        except TooManyComponents as error:
            if n <= dimension and n * dimension * 4 <= MOST_ROWS:
                subspace, held = layer.by_rows()
            elif dimension <= MOST_EXACT:
                subspace, held = layer.by_moments()
            else:
                raise FitError(
                    f"A layer of {dimension} features needs a subspace of more than half of them, "
                    f"and {MOST_EXACT} are the limit for one: give a smaller pca_level or more "
                    "pooling."
                ) from error
    return subspace, held


@dataclass(frozen=True, eq=False)
class _Rows:
    """How a block becomes rows of one layer; goes to where the blocks are."""

    folds: np.ndarray
    j: int
    grid: Grid

    def of(self, block: Block) -> np.ndarray:
        """Features of a block as rows of shape (m, D)."""
        return self.grid.rows(torch.from_numpy(block.features[self.j])).numpy()

    def of_fold(self, block: Block, fold: int) -> np.ndarray:
        """Rows of the pictures of one fold."""
        return self.of(block)[self.folds[block.index] == fold]


@dataclass(frozen=True, eq=False)
class _Layer:
    """The three ways to the subspaces of a layer."""

    passes: Passes
    rows: _Rows
    level: float

    @property
    def fold_numbers(self) -> list[int]:
        return [int(f) for f in np.unique(self.rows.folds[self.rows.folds >= 0])]

    def by_moments(self) -> tuple[Subspace, Passes]:
        """Subspaces from the moments of all rows, less those of a fold."""
        rows = self.rows
        whole = self.passes.total(lambda b: Moments.of(rows.of(b), limit=None), Moments.merge)
        subspace = fit_moments(whole, self.level)
        at_once = max(1, BUDGET // (8 * rows.grid.n_features**2))
        held = None
        for group in _groups(self.fold_numbers, at_once):
            apart = self.passes.total(
                lambda b, group=group: {
                    f: Moments.of(rows.of_fold(b, f), limit=None) for f in group
                },
                _by_key,
            )
            models = {f: fit_without(whole, part, self.level) for f, part in apart.items()}
            del apart
            held = self.hold_out(models, held)
        return subspace, held

    def by_rows(self) -> tuple[Subspace, Passes]:
        """All rows in this process, at most as many as features: the one-machine code itself."""
        rows = self.rows
        found = list(self.passes.each(lambda b: (b.index, rows.of(b)), large=True))
        index = np.concatenate([i for i, _ in found])
        order = np.argsort(index)
        x = np.concatenate([part for _, part in found])[order]
        del found
        held_out = crossfit(x, rows.folds[index[order]], self.level)
        subspace = fit_subspace(x, self.level)
        maps = rows.grid.fre_map(torch.from_numpy(held_out.residual())).numpy()
        place = np.zeros(len(rows.folds), dtype=np.int64)
        place[index[order]] = np.arange(len(index))
        fre, mahalanobis = held_out.fre, held_out.mahalanobis

        def look_up(block: Block) -> HeldOutBlock:
            at = place[block.index]
            return HeldOutBlock(block.index, [maps[at]], [fre[at]], [mahalanobis[at]])

        return subspace, self.passes.derive(look_up)

    def by_iteration(self) -> tuple[Subspace, Passes]:
        """Subspaces of all rows and of those without each fold, iterated side by side."""
        rows, numbers = self.rows, self.fold_numbers
        apart = self.passes.total(
            lambda b: {f: Summary.of(x) for f in numbers
                       if len(x := rows.of_fold(b, f))},
            _by_key,
        )  # fmt: skip
        without = {
            f: reduce(Summary.merge, [part for other, part in apart.items() if other != f])
            for f in [None, *apart]
        }
        models = self.iterate({f: SubspaceIteration(s, self.level) for f, s in without.items()})
        subspace = models.pop(None)
        at_once = max(1, BUDGET // (8 * subspace.basis.size))
        held = None
        for group in _groups(list(models), at_once):
            held = self.hold_out({f: models[f] for f in group}, held)
        return subspace, held

    def iterate(
        self, iterations: dict[int | None, SubspaceIteration]
    ) -> dict[int | None, Subspace]:
        """Drive the iterations of the whole (None) and of each fold's rest until all settle."""
        rows, active = self.rows, dict(iterations)
        while active:
            group = _within_budget(active)
            sent = {f: (i.summary.mean, i.block) for f, i in group.items()}

            def shares(block: Block, sent: dict = sent) -> dict[int | None, np.ndarray]:
                x, folds = rows.of(block), rows.folds[block.index]
                return {f: contribution(x if f is None else x[folds != f], mean, directions)
                        for f, (mean, directions) in sent.items()}  # fmt: skip

            products = self.passes.total(shares, lambda a, b: {f: a[f] + b[f] for f in a})
            for f, iteration in group.items():
                if iteration.advance(products[f]):
                    del active[f]
        return {f: i.subspace() for f, i in iterations.items()}

    def hold_out(self, models: dict[int, Subspace], before: Passes | None) -> Passes:
        """Look at the rows of each fold under the subspace of the others."""
        rows = self.rows

        def look(block: Block) -> HeldOutBlock:
            x, folds = rows.of(block), rows.folds[block.index]
            kept = np.flatnonzero(np.isin(folds, list(models)))
            residual, mahalanobis = np.empty_like(x), np.zeros(len(x))
            for f in np.unique(folds[kept]):
                out = folds == f
                coordinates, residual[out] = models[int(f)].split(x[out])
                mahalanobis[out] = models[int(f)].mahalanobis(coordinates)
            residual = residual[kept]
            maps = np.zeros((0, *rows.grid.shape[1:]), np.float32)
            if len(kept):
                maps = rows.grid.fre_map(torch.from_numpy(residual)).numpy()
            fre = squared_norm(residual.astype(np.float64))
            return HeldOutBlock(block.index[kept], [maps], [fre], [mahalanobis[kept]])

        held = self.passes.derive(look)
        return held if before is None else before.join(held, _below)


# -- all layers ------------------------------------------------------------------------------------


def _leading(
    passes: Passes, subspaces: Sequence[Subspace], grids: Sequence[Grid]
) -> list[np.ndarray]:
    first = [replace(s, basis=s.basis[:, : n_leading(s)]) for s in subspaces]

    def coordinates(block: Block) -> list[Tensor]:
        return [
            first_coordinates(s, grid.rows(torch.from_numpy(f)).numpy())
            for s, grid, f in zip(first, grids, block.features, strict=True)
        ]

    return [sorted_columns(parts) for parts in zip(*passes.each(coordinates), strict=True)]


@dataclass(frozen=True, eq=False)
class _Sums:
    """Sums over the held-out pictures of one fold."""

    n: int
    fre: np.ndarray  # of each layer
    maps: list[np.ndarray]  # of each layer, of shape (h, w)

    def merge(self, other: "_Sums") -> "_Sums":
        maps = [a + b for a, b in zip(self.maps, other.maps, strict=True)]
        return _Sums(self.n + other.n, self.fre + other.fre, maps)


def _sums(held: Passes, folds: np.ndarray) -> dict[int, _Sums]:
    def sums(block: HeldOutBlock) -> dict[int, _Sums]:
        mine = folds[block.index]
        return {
            int(f): _Sums(
                int((mine == f).sum()),
                np.array([fre[mine == f].sum() for fre in block.fre]),
                [m[mine == f].sum(0, dtype=np.float64) for m in block.maps],
            )
            for f in np.unique(mine)
        }

    return held.total(sums, _by_key)


def _noise_variance(sums: dict[int, _Sums], j: int, subspace: Subspace) -> float:
    whole = reduce(_Sums.merge, sums.values())
    mean = HeldOut(whole.fre[j : j + 1] / whole.n, np.zeros(1), lambda: np.zeros((1, 0)))
    return mean.noise_variance(subspace)


def _usual(sums: dict[int, _Sums], j: int, how: str) -> tuple[Tensor, Tensor]:
    """What a layer's map is divided by, and what held-out ones are: of shape (n_folds, h, w)."""

    def divisor(parts: list[_Sums]) -> Tensor:
        whole = reduce(_Sums.merge, parts)
        return usual_of(torch.from_numpy((whole.maps[j] / whole.n).astype(np.float32))[None], how)

    others = [divisor([part for other, part in sums.items() if other != f])
              for f in range(max(sums) + 1)]  # fmt: skip
    return divisor(list(sums.values())), torch.stack(others)


def _nll(held: Passes, subspaces: Sequence[Subspace]) -> np.ndarray:
    """Held-out likelihoods: two numbers a picture and layer come to this process."""
    parts = list(held.each(lambda block: (block.mahalanobis, block.fre)))
    return sum(
        s.nll_from(*(np.concatenate([p[i][j] for p in parts]) for i in range(2)))
        for j, s in enumerate(subspaces)
    )


def _below(a: HeldOutBlock, b: HeldOutBlock) -> HeldOutBlock:
    """Pictures of further folds of the same block."""
    both = zip((a.maps, a.fre, a.mahalanobis), (b.maps, b.fre, b.mahalanobis), strict=True)
    index = np.concatenate([a.index, b.index])
    order = np.argsort(index)
    return HeldOutBlock(index[order], *([np.concatenate([x[0], y[0]])[order]] for x, y in both))


def _beside(a: HeldOutBlock, b: HeldOutBlock) -> HeldOutBlock:
    """The same pictures in a further layer."""
    return HeldOutBlock(a.index, a.maps + b.maps, a.fre + b.fre, a.mahalanobis + b.mahalanobis)


def _by_key(a: dict[int, Any], b: dict[int, Any]) -> dict[int, Any]:
    """Merge what both have, and keep what one of them has."""
    return {f: a[f].merge(b[f]) if f in a and f in b else a.get(f) or b[f] for f in a | b}


def _groups(values: list[T], size: int) -> list[list[T]]:
    return [values[i : i + size] for i in range(0, len(values), size)]


def _within_budget(active: dict[Any, SubspaceIteration]) -> dict[Any, SubspaceIteration]:
    """As many iterations as one pass can carry, at least one."""
    group: dict[Any, SubspaceIteration] = {}
    size = 0
    for key, iteration in active.items():
        size += iteration.block.nbytes
        if group and size > BUDGET:
            break
        group[key] = iteration
    return group
