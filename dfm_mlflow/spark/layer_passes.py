"""One layer: the ways to its subspaces, of all pictures and without each fold."""

from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, TypeVar

import numpy as np
import torch

from dfm_mlflow.config import Options
from dfm_mlflow.core.cells import (
    CellSubspaces,
    HeldOutCells,
    fold_moments,
    held_out_block,
    merged,
    noise_variance_of,
)
from dfm_mlflow.core.crossfit import crossfit, fit_without
from dfm_mlflow.core.leading_coordinates import MOST_SPANNING, leading_directions, n_leading
from dfm_mlflow.core.moments import MAX_FEATURES, Moments
from dfm_mlflow.core.solvers import LARGE, fit_moments, fit_subspace, row_blocks
from dfm_mlflow.core.streaming import (
    SubspaceIteration,
    Summary,
    TooManyComponents,
    contribution,
)
from dfm_mlflow.core.subspace import Subspace, squared_norm
from dfm_mlflow.detector.grid import Grid
from dfm_mlflow.errors import FitError
from dfm_mlflow.network.copies import copies_of
from dfm_mlflow.spark.blocks import Block, HeldOutBlock, Passes

BUDGET = 128 << 20  # bytes of sums that one pass brings back, or of one matrix
MOST_EXACT = 8192  # features whose scatter matrix, 512 MiB, still moves as one piece
MOST_ROWS = 1 << 30  # bytes of rows that the exact solver gets where the iteration gives way

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class LayerFit:
    """A fitted layer, and what held-out pictures look like in it."""

    subspace: Subspace  # of all pictures
    held: Passes  # the pictures of each fold under the subspace of the others
    total: float  # variance of all rows
    refit_ratio: np.ndarray | None = None  # (n,) float64, or None where it is 1


def fit_layer(
    passes: Passes, listed: Passes, folds: np.ndarray, j: int, grid: Grid, options: Options
) -> LayerFit:
    """Fit a layer in the way that its number of rows and features allows.

    `listed` are the blocks without their features: what is known here needs no others to go to.

    Shapes: folds (n_listed,) int.
    """
    layer = _Layer(passes, listed, _Rows(folds, j, grid), options.levels_of(j + 1)[j])
    n, dimension = int((folds >= 0).sum()) * len(copies_of(options.augment)), grid.n_features
    if grid.of_cells:
        return layer.by_cells()
    if n <= min(dimension, LARGE):
        return layer.by_rows()
    if dimension <= MAX_FEATURES:
        return layer.by_moments()
    try:
        return layer.by_iteration()
    except TooManyComponents as error:
        if n <= dimension and n * dimension * 4 <= MOST_ROWS:
            return layer.by_rows()
        if dimension <= MOST_EXACT:
            return layer.by_moments()
        raise FitError(
            f"A layer of {dimension} features needs a subspace of more than half of them, and "
            f"{MOST_EXACT} are the limit for one: give a smaller pca_level or more pooling."
        ) from error


@dataclass(frozen=True, eq=False)
class _Rows:
    """How a block becomes rows of one layer; goes to where the blocks are."""

    folds: np.ndarray
    j: int
    grid: Grid

    def of(self, block: Block) -> np.ndarray:
        """Features of a block as rows of shape (m * (1 + c), D), copies last."""
        return self.grid.rows(torch.from_numpy(block.features[self.j])).numpy()

    def own(self, block: Block) -> np.ndarray:
        """Rows of the m pictures themselves, without copies."""
        untouched = block.features[self.j][: len(block.index)]
        return self.grid.rows(torch.from_numpy(untouched)).numpy()

    def cells(self, block: Block) -> np.ndarray:
        """Cells of the pictures of a block, and of their copies, of shape (m * (1 + c), P, C)."""
        flat = self.of(block)
        return flat.reshape(-1, self.grid.n_cells, flat.shape[1])

    def folds_of(self, block: Block) -> np.ndarray:
        """Fold of each row; a copy has that of its picture."""
        times = len(block.features[self.j]) // max(1, len(block.index))
        return np.tile(self.folds[block.index], times)

    def of_fold(self, block: Block, fold: int) -> np.ndarray:
        """Rows of the pictures of one fold, and of their copies."""
        rows: np.ndarray = self.of(block)[self.folds_of(block) == fold]
        return rows


@dataclass(frozen=True, eq=False)
class _Layer:
    """The ways to the subspaces of a layer."""

    passes: Passes
    listed: Passes
    rows: _Rows
    level: float

    @property
    def fold_numbers(self) -> list[int]:
        return [int(f) for f in np.unique(self.rows.folds[self.rows.folds >= 0])]

    def by_moments(self) -> LayerFit:
        """Subspaces from the moments of all rows, minus those of a fold."""
        rows = self.rows
        whole = self.passes.total(lambda b: Moments.of(rows.of(b), limit=None), Moments.merge)
        subspace = fit_moments(whole, self.level)
        at_once = max(1, BUDGET // (8 * rows.grid.n_features**2))
        held = None
        for group in _groups(self.fold_numbers, at_once):

            def moments(b: Block, group: list[int] = group) -> dict[int, Moments]:
                return {f: Moments.of(rows.of_fold(b, f), limit=None) for f in group}

            apart = self.passes.total(moments, by_key)
            models = {f: fit_without(whole, part, self.level) for f, part in apart.items()}
            del apart
            held = self.hold_out(subspace, models, held)
        assert held is not None
        return LayerFit(subspace, held, float(np.trace(whole.scatter)) / (whole.n - 1))

    def by_cells(self) -> LayerFit:
        """Subspaces from the moments of the cells of each fold, in one pass over the features."""
        rows = self.rows
        parts = self.passes.total(lambda b: fold_moments(rows.cells(b), rows.folds_of(b)), merged)
        found = CellSubspaces.of(parts, self.level)
        del parts
        n = int((rows.folds >= 0).sum())
        final = replace(found.final, n_samples=n)
        single = np.zeros(0, np.float32)
        sent = {f: s.like(single) for f, s in found.without.items()}

        def look(block: Block) -> tuple[np.ndarray, HeldOutCells]:
            own = rows.cells(block)[: len(block.index)]  # without copies
            return block.index, held_out_block(own, rows.folds[block.index], sent)

        seen = self.passes.derive(look)
        # the noise that held-out cells show is the mean of what all blocks show
        total, cells = seen.total(
            lambda b: (float(b[1].maps.sum(dtype=np.float64)), b[1].maps.size),
            lambda a, b: (a[0] + b[0], a[1] + b[1]),
        )
        noise = noise_variance_of(total / cells, final)
        first = CellSubspaces(
            replace(final, basis=final.basis[:, :MOST_SPANNING]),
            {f: replace(s, basis=s.basis[:, :MOST_SPANNING]) for f, s in found.without.items()},
            found.total,
        )
        floor = noise if final.n_components < final.n_features else 0.0
        many = n_leading(final)

        def summed(pair: tuple[np.ndarray, HeldOutCells]) -> HeldOutBlock:
            index, held = pair
            maps = rows.grid.placed(torch.from_numpy(held.maps)).numpy()
            leading_coordinates = np.zeros((len(index), many), np.float32)
            leading_coordinates[:] = held.leading_coordinates(first)
            fre = held.maps.sum(axis=1, dtype=np.float64)
            return HeldOutBlock(
                index, [maps], [fre], [held.mahalanobis_above(floor)], [leading_coordinates]
            )

        return LayerFit(final, seen.derive(summed), found.total)

    def by_rows(self) -> LayerFit:
        """All rows in this process, at most as many as features: the one-machine code itself."""
        rows = self.rows
        found = list(self.passes.each(lambda b: (b.index, rows.of(b)), large=True))
        index = np.concatenate([i for i, _ in found])
        order = np.argsort(index)
        # the pictures of all blocks, then their first copies, and so on
        parts = [part.reshape(-1, len(i), part.shape[1]) for i, part in found]
        x = np.concatenate(parts, axis=1)[:, order].reshape(-1, rows.grid.n_features)
        del found, parts
        folds = np.tile(rows.folds[index[order]], len(x) // len(order))
        held_out = crossfit(x, folds, self.level, own=len(order))
        subspace = fit_subspace(x, self.level)
        maps = rows.grid.fre_map(torch.from_numpy(held_out.residual())).numpy()
        place = np.zeros(len(rows.folds), dtype=np.int64)
        place[index[order]] = np.arange(len(index))
        fre, mahalanobis = held_out.fre, held_out.mahalanobis
        leading_coordinates = held_out.leading_coordinates(subspace).astype(np.float32)

        def look_up(block: Block) -> HeldOutBlock:
            at = place[block.index]
            found = ([values[at]] for values in (maps, fre, mahalanobis, leading_coordinates))
            return HeldOutBlock(block.index, *found)

        ratio = held_out.refit_ratio() if held_out.refit_ratio else None
        total = reduce(Summary.merge, map(Summary.of, row_blocks(x))).total / (len(x) - 1)
        return LayerFit(subspace, self.listed.look_up(look_up), total, ratio)

    def by_iteration(self) -> LayerFit:
        """Subspaces of all rows and of those without each fold, iterated side by side."""
        rows, numbers = self.rows, self.fold_numbers
        apart = self.passes.total(
            lambda b: {f: Summary.of(x) for f in numbers if len(x := rows.of_fold(b, f))},
            by_key,
        )
        without = {
            f: reduce(Summary.merge, [part for other, part in apart.items() if other != f])
            for f in [None, *apart]
        }
        models = self.iterate({f: SubspaceIteration(s, self.level) for f, s in without.items()})
        subspace = models[None]
        of_folds = {f: model for f, model in models.items() if f is not None}
        at_once = max(1, BUDGET // (8 * subspace.basis.size))
        held = None
        for group in _groups(list(of_folds), at_once):
            held = self.hold_out(subspace, {f: of_folds[f] for f in group}, held)
        assert held is not None
        everything = without[None]
        return LayerFit(subspace, held, everything.total / (everything.n - 1))

    def iterate(
        self, iterations: dict[int | None, SubspaceIteration]
    ) -> dict[int | None, Subspace]:
        """Drive the iterations of the whole (None) and of each fold's rest until all settle."""
        rows, active = self.rows, dict(iterations)
        while active:
            group = _within_budget(active)
            sent = {f: (i.summary.mean, i.block) for f, i in group.items()}

            def shares(block: Block, sent: dict[Any, Any] = sent) -> dict[int | None, np.ndarray]:
                x, folds = rows.of(block), rows.folds_of(block)
                return {
                    f: contribution(x if f is None else x[folds != f], mean, directions)
                    for f, (mean, directions) in sent.items()
                }

            products = self.passes.total(shares, lambda a, b: {f: a[f] + b[f] for f in a})
            for f, iteration in group.items():
                if iteration.advance(products[f]):
                    del active[f]
        return {f: i.subspace() for f, i in iterations.items()}

    def hold_out(
        self, final: Subspace, models: dict[int, Subspace], before: Passes | None
    ) -> Passes:
        """Look at the rows of each fold under the subspace of the others."""
        rows, mean = self.rows, final.mean
        directions = {f: leading_directions(model, final) for f, model in models.items()}

        def look(block: Block) -> HeldOutBlock:
            x, folds = rows.own(block), rows.folds[block.index]
            kept = np.flatnonzero(np.isin(folds, list(models)))
            residual, mahalanobis = np.empty_like(x), np.zeros(len(x))
            leading_coordinates = np.zeros((len(x), n_leading(final)), np.float32)
            for f in np.unique(folds[kept]):
                out = folds == f
                coordinates, residual[out] = models[int(f)].split(x[out])
                mahalanobis[out] = models[int(f)].mahalanobis(coordinates)
                leading_coordinates[out] = (x[out] - mean) @ directions[int(f)]
            residual = residual[kept]
            maps = np.zeros((0, *rows.grid.shape[1:]), np.float32)
            if len(kept):
                maps = rows.grid.fre_map(torch.from_numpy(residual)).numpy()
            fre = squared_norm(residual.astype(np.float64))
            found = ([maps], [fre], [mahalanobis[kept]], [leading_coordinates[kept]])
            return HeldOutBlock(block.index[kept], *found)

        held = self.passes.derive(look)
        return held if before is None else before.join(held, _below)


def _below(a: HeldOutBlock, b: HeldOutBlock) -> HeldOutBlock:
    """Pictures of further folds of the same block."""
    both = zip(
        (a.maps, a.fre, a.mahalanobis, a.leading_coordinates),
        (b.maps, b.fre, b.mahalanobis, b.leading_coordinates),
        strict=True,
    )
    index = np.concatenate([a.index, b.index])
    order = np.argsort(index)
    return HeldOutBlock(index[order], *([np.concatenate([x[0], y[0]])[order]] for x, y in both))


def by_key(a: dict[int, Any], b: dict[int, Any]) -> dict[int, Any]:
    """Merge what both `a` and `b` have, and keep what one of them has."""
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
