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

from collections.abc import Callable, Sequence
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
from dfm_mlflow.core.threads import side_by_side
from dfm_mlflow.detector.class_fit import brought_to_final, calibrate, check_residual_dimensions
from dfm_mlflow.detector.class_model import ClassModel, LayerModel, ratio_of, score_maps
from dfm_mlflow.detector.grid import Grid
from dfm_mlflow.detector.held_out import HeldOutScores, sketches_of
from dfm_mlflow.detector.layer_fit import Deal, bytes_of, prepared_for_storage
from dfm_mlflow.detector.maps import largest_of, normaliser_of, scale_of
from dfm_mlflow.errors import FitError
from dfm_mlflow.network.copies import copies_of
from dfm_mlflow.spark.blocks import Block, HeldOutBlock, LocalPasses, Passes
from dfm_mlflow.spark.layer_passes import LayerFit, by_key, fit_layer

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
    listed = passes.derive(lambda block: Block(block.index, []))
    n = int((folds >= 0).sum()) * len(copies_of(options.augment))

    def fit(j: int) -> LayerFit:
        return fit_layer(passes, listed, folds, j, grids[j], options)

    if isinstance(passes, LocalPasses):
        fits = side_by_side(fit, range(len(grids)), [bytes_of(n, grid) for grid in grids])
    else:  # jobs belong to the thread that has named and may cancel them
        fits = [fit(j) for j in range(len(grids))]
    held = reduce(lambda a, b: a.join(b, _beside), [fit.held for fit in fits]).kept()
    sums, leading_coordinates = _sums(held, folds), _leading_coordinates(held)
    layers, of_folds = _layers(fits, sums, leading_coordinates, len(deal.folds), grids, options)
    shares = [layer.explained_share for layer in layers]
    scoring = _HeldOutScoring(folds, of_folds, shares, grids, options)
    subspaces = [layer.subspace for layer in layers]
    scores = _nll(held, subspaces, grids) if options.score == "nll" else _all(held, scoring.scores)
    scores = scores[np.argsort(_all(held, lambda block: block.index))]
    ones = np.ones(len(scores))
    ratios = [ones if fit.refit_ratio is None else fit.refit_ratio for fit in fits]
    ratio = ratio_of(ratios, grids, options, shares)
    calibration = calibrate(scores, deal, options, ratio)
    brought = brought_to_final(scores, options, ratio)
    held_out = HeldOutScores(
        brought,
        held_out_p_values(brought, deal.groups),
        _most_unusual_maps(held, scoring, brought),
        _sketches(passes, grids) if len(scores) <= MOST else None,
    )
    scale = scale_of(_all(held, scoring.largest))
    for derived in (listed, held, *(fit.held for fit in fits)):
        derived.drop()
    correlation = rank_correlation(leading_coordinates)
    return ClassModel(name, layers, calibration, scale, correlation), held_out


@dataclass(frozen=True, eq=False)
class _HeldOutScoring:
    """How a block of held-out pictures is scored; goes to where the blocks are."""

    folds: np.ndarray  # (n_listed,) int
    normalisers: list[Tensor]  # (n_folds, h, w): of each layer, from all other folds
    explained_shares: list[float]
    grids: Sequence[Grid]
    options: Options

    def _scored(self, block: HeldOutBlock) -> tuple[Tensor, Tensor]:
        mine = self.folds[block.index]
        return score_maps(
            [torch.from_numpy(m) for m in block.maps],
            [of_folds[mine] for of_folds in self.normalisers],
            torch.zeros(len(block.index), dtype=torch.float64),  # likelihoods are summed elsewhere
            self.grids,
            self.options,
            self.explained_shares,
        )

    def scores(self, block: HeldOutBlock) -> np.ndarray:
        """Anomaly score of each picture, of shape (m,)."""
        found: np.ndarray = self._scored(block)[0].numpy()
        return found

    def largest(self, block: HeldOutBlock) -> np.ndarray:
        """Largest value of each picture's map, of shape (m,)."""
        return largest_of(self._scored(block)[1])

    def maps_of(self, block: HeldOutBlock, listed: np.ndarray) -> dict[int, Tensor]:
        """Maps of those pictures that are `listed`, by their place in the list of the class."""
        mine = [i for i, place in enumerate(block.index) if place in listed]
        if not mine:
            return {}
        combined = self._scored(block)[1]
        return {int(block.index[i]): combined[i] for i in mine}


def _layers(
    fits: Sequence[LayerFit],
    sums: "dict[int, _Sums]",
    leading_coordinates: Sequence[np.ndarray],
    n: int,
    grids: Sequence[Grid],
    options: Options,
) -> tuple[tuple[LayerModel, ...], list[Tensor]]:
    """The layers of the class, and the normalisers of held-out maps: (n_folds, h, w) of each."""
    layers, of_folds = [], []
    ways = options.of_maps("normalize", len(grids))
    for j, (fit, grid, how) in enumerate(zip(fits, grids, ways, strict=True)):
        subspace = prepared_for_storage(
            replace(fit.subspace, n_samples=n),
            _noise_variance(sums, j, fit.subspace, grid),
            of_cells=grid.of_cells,
        )
        normaliser, others = _normalisers(sums, j, how)
        of_folds.append(others)
        sorted_rows = np.sort(leading_coordinates[j], axis=0)
        share = explained_share(_mean_fre(sums, j, grid), fit.total)
        layers.append(LayerModel(subspace, normaliser.numpy(), sorted_rows, share))
    check_residual_dimensions([layer.subspace for layer in layers], options)
    return tuple(layers), of_folds


def _all(held: Passes, work: Callable[[HeldOutBlock], np.ndarray]) -> np.ndarray:
    """What `work` gives for the pictures of all blocks, in the order of the blocks."""
    return np.concatenate(list(held.each(work)))


def _most_unusual_maps(
    held: Passes, scoring: _HeldOutScoring, scores: np.ndarray
) -> dict[int, Tensor]:
    most_unusual = np.argsort(-scores)[:MOST_MAPS]
    listed = np.flatnonzero(scoring.folds >= 0)[most_unusual]  # their places in the class's list
    maps = held.total(lambda block: scoring.maps_of(block, listed), lambda a, b: a | b)
    return {int(i): maps[int(place)] for i, place in zip(most_unusual, listed, strict=True)}


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
