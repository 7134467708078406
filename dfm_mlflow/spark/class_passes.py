"""Fitting a class whose features are in many places, in passes over them.

The places are this process or Spark's executors: :class:`~dfm_mlflow.spark.blocks.Passes` is all
that is known of them. What comes back is a sum whose size does not follow the number of pictures,
or a few numbers a picture.

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

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from dfm_mlflow.config import Options
from dfm_mlflow.core.crossfit import ONE_GROUP, HeldOut, explained_share
from dfm_mlflow.core.duplicates import MOST
from dfm_mlflow.core.leading_coordinates import rank_correlation
from dfm_mlflow.core.outliers import held_out_p_values
from dfm_mlflow.core.subspace import Subspace
from dfm_mlflow.detector.class_fit import brought_to_final, calibrate, check_residual_dimensions
from dfm_mlflow.detector.class_model import ClassModel, LayerModel, ratio_of, score_maps
from dfm_mlflow.detector.grid import Grid
from dfm_mlflow.detector.held_out import HeldOutScores, sketches_of
from dfm_mlflow.detector.layer_fit import Deal, prepared_for_storage
from dfm_mlflow.detector.maps import largest_of, normaliser_of, scale_of
from dfm_mlflow.errors import FitError
from dfm_mlflow.spark.blocks import Block, HeldOutBlock, Passes
from dfm_mlflow.spark.layer_passes import by_key, fit_layer

MOST_MAPS = 64  # of the most unusual pictures of a class, that come to this process


def fit_class_in_passes(
    name: str,
    passes: Passes,
    folds: np.ndarray,
    deal: Deal,
    grids: Sequence[Grid],
    options: Options,
) -> tuple[ClassModel, HeldOutScores]:
    """Fit and calibrate a class, as ``fit_class_held_out`` does, up to rounding.

    Shapes: folds (n_listed,) int.
    """
    folds = folds.astype(np.int16)
    if len(np.unique(folds[folds >= 0])) < 2:
        raise FitError(ONE_GROUP)
    parts = [fit_layer(passes, folds, j, grid, options) for j, grid in enumerate(grids)]
    held = parts[0][1]
    for _, other, *_ in parts[1:]:
        held = held.join(other, _beside)
    sums = _sums(held, folds)
    subspaces = [
        prepared_for_storage(
            replace(subspace, n_samples=len(deal.folds)),
            _noise_variance(sums, j, subspace, grid),
            of_cells=grid.of_cells,
        )
        for j, ((subspace, *_), grid) in enumerate(zip(parts, grids, strict=True))
    ]
    check_residual_dimensions(subspaces, options)
    ways = options.of_maps("normalize", len(grids))
    divisors = [_normalisers(sums, j, how) for j, how in enumerate(ways)]
    explained_shares = [
        explained_share(_mean_fre(sums, j, grid), total)
        for j, ((_, _, total, _), grid) in enumerate(zip(parts, grids, strict=True))
    ]
    normalisers = [others for _, others in divisors]
    leading_coordinates = _leading_coordinates(held)
    layers = [
        LayerModel(subspace, whole.numpy(), np.sort(rows, axis=0), share)
        for subspace, (whole, _), rows, share in zip(
            subspaces, divisors, leading_coordinates, explained_shares, strict=True
        )
    ]

    def scored(block: HeldOutBlock) -> tuple[Tensor, Tensor]:
        maps = [torch.from_numpy(m) for m in block.maps]
        nothing = torch.zeros(len(block.index), dtype=torch.float64)
        mine = folds[block.index]
        return score_maps(
            maps, [u[mine] for u in normalisers], nothing, grids, options, explained_shares
        )

    order = np.argsort(np.concatenate(list(held.each(lambda block: block.index))))
    scores = (
        _nll(held, subspaces, grids)
        if options.score == "nll"
        else np.concatenate(list(held.each(lambda block: scored(block)[0].numpy())))
    )[order]
    ratio = ratio_of([of_layer for *_, of_layer in parts], grids, options, explained_shares)
    calibration = calibrate(scores, deal, options, ratio)
    brought = brought_to_final(scores, options, ratio)

    largest = held.each(lambda block: largest_of(scored(block)[1]))
    scale = scale_of(np.concatenate(list(largest)))
    most_unusual = np.argsort(-brought)[:MOST_MAPS]
    listed = np.flatnonzero(folds >= 0)[most_unusual]  # their places in the list of the class

    def maps_of(block: HeldOutBlock) -> dict[int, Tensor]:
        mine = [i for i, place in enumerate(block.index) if place in listed]
        if not mine:
            return {}
        combined = scored(block)[1]
        return {int(block.index[i]): combined[i] for i in mine}

    maps = held.total(maps_of, lambda a, b: a | b)
    held_out = HeldOutScores(
        brought,
        held_out_p_values(brought, deal.groups),
        {int(i): maps[int(place)] for i, place in zip(most_unusual, listed, strict=True)},
        _sketches(passes, grids) if len(scores) <= MOST else None,
    )
    for _, part, *_ in parts:
        part.drop()
    return ClassModel(
        name, tuple(layers), calibration, scale, rank_correlation(leading_coordinates)
    ), held_out


def _sketches(passes: Passes, grids: Sequence[Grid]) -> np.ndarray:
    def sketches(block: Block) -> tuple[np.ndarray, np.ndarray]:
        own = [torch.from_numpy(f[: len(block.index)]) for f in block.features]  # without copies
        return block.index, sketches_of(own, grids)

    index, rows = zip(*passes.each(sketches, large=True), strict=True)
    ordered: np.ndarray = np.concatenate(rows)[np.argsort(np.concatenate(index))]
    return ordered


def _leading_coordinates(held: Passes) -> list[np.ndarray]:
    """First coordinates in each layer: a few numbers a picture come to this process."""
    parts = held.each(lambda block: block.leading_coordinates)
    return [np.concatenate(layer) for layer in zip(*parts, strict=True)]


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

    return held.total(sums, by_key)


def _mean_fre(sums: dict[int, _Sums], j: int, grid: Grid) -> float:
    """Mean held-out FRE of a row of a layer."""
    whole = reduce(_Sums.merge, sums.values())
    return float(whole.fre[j]) / (whole.n * grid.n_rows)


def _noise_variance(sums: dict[int, _Sums], j: int, subspace: Subspace, grid: Grid) -> float:
    of_row = np.array([_mean_fre(sums, j, grid)])
    mean = HeldOut(of_row, np.zeros(1), lambda: np.zeros((1, 0)))
    return mean.noise_variance(subspace)


def _normalisers(sums: dict[int, _Sums], j: int, how: str) -> tuple[Tensor, Tensor]:
    """Normaliser of a layer's maps, and those of held-out ones: of shape (n_folds, h, w)."""

    def divisor(parts: list[_Sums]) -> Tensor:
        whole = reduce(_Sums.merge, parts)
        return normaliser_of(
            torch.from_numpy((whole.maps[j] / whole.n).astype(np.float32))[None], how
        )

    others = [
        divisor([part for other, part in sums.items() if other != f]) for f in range(max(sums) + 1)
    ]
    return divisor(list(sums.values())), torch.stack(others)


def _nll(held: Passes, subspaces: Sequence[Subspace], grids: Sequence[Grid]) -> np.ndarray:
    """Held-out likelihoods: two numbers a picture and layer come to this process."""
    parts = list(held.each(lambda block: (block.mahalanobis, block.fre)))
    layers = []
    for j, (subspace, grid) in enumerate(zip(subspaces, grids, strict=True)):
        distance, fre = (np.concatenate([p[i][j] for p in parts]) for i in range(2))
        layers.append(subspace.nll_from(distance, fre, grid.n_rows))
    nll: np.ndarray = np.sum(layers, axis=0)
    return nll


def _beside(a: HeldOutBlock, b: HeldOutBlock) -> HeldOutBlock:
    """The same pictures in a further layer."""
    return HeldOutBlock(
        a.index,
        a.maps + b.maps,
        a.fre + b.fre,
        a.mahalanobis + b.mahalanobis,
        a.leading_coordinates + b.leading_coordinates,
    )
