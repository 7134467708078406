"""Fitting the subspaces of one class in each layer, with every picture held out once."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce

import numpy as np
import torch
from torch import Tensor

from dfm_mlflow.config import Options
from dfm_mlflow.core.cells import crossfit_cells, folds_of_parts
from dfm_mlflow.core.crossfit import assign_folds, crossfit, explained_share
from dfm_mlflow.core.groups import group_rows
from dfm_mlflow.core.leading_coordinates import rank_correlation
from dfm_mlflow.core.packing import on_grid
from dfm_mlflow.core.solvers import BLOCK, fit_subspace, row_blocks
from dfm_mlflow.core.streaming import Summary
from dfm_mlflow.core.subspace import Subspace
from dfm_mlflow.core.threads import side_by_side
from dfm_mlflow.detector.class_model import LayerModel
from dfm_mlflow.detector.grid import Grid
from dfm_mlflow.errors import FitError

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Deal:
    """Which pictures of a class are held out together, and which count as one."""

    folds: np.ndarray  # (n,) int: fold of each picture
    # (n,) int: Group of each picture; pictures with the same bytes are of one group in any case.
    groups: np.ndarray

    @classmethod
    def of(
        cls,
        keys: Sequence[str],
        groups: Sequence[str] | None,
        seed: int,
        n_folds: int | None = None,
    ) -> "Deal":
        """Deal pictures to folds, as a function of the set of their `keys` and `groups`."""
        if len(keys) > 1 and len(set(keys)) == 1:
            raise FitError(
                f"All {len(keys)} pictures are copies of one: add pictures with other contents."
            )
        folds = assign_folds(len(keys), n_folds, groups=groups, keys=keys, seed=seed)
        return cls(folds, group_rows(keys, groups, seed=seed))


@dataclass(frozen=True, eq=False)
class FittedLayers:
    """The dear part of a fit, which ``normalize``, ``aggregate`` and the like do not change."""

    layers: list[LayerModel]  # with maps that are divided by nothing
    maps: list[Tensor]  # (n, h, w): held-out FRE maps of the n pictures in each layer
    nll: Tensor  # (n,): held-out, summed over layers
    deal: Deal
    # (L, L) float32: Of the ranks of the leading coordinates of all layers together.
    correlation: np.ndarray
    # (n,): What the FRE of each layer is multiplied by to become that of the final model.
    refit_ratios: list[np.ndarray]


def fit_layers(
    features: Sequence[Tensor], deal: Deal, grids: Sequence[Grid], options: Options
) -> FittedLayers:
    """Fit the subspaces of a class; of the options only ``pca_level`` matters.

    Shapes: features (n * (1 + c), C, h, w).
    """
    found = side_by_side(
        lambda layer: (_layer_of_cells if layer[1].of_cells else _layer_of_pictures)(*layer, deal),
        list(zip(features, grids, options.levels_of(len(grids)), strict=True)),
        [bytes_of(len(feature), grid) for feature, grid in zip(features, grids, strict=True)],
    )
    layers = [
        LayerModel(
            one.subspace,
            np.ones(grid.shape[1:], dtype=np.float32),
            np.sort(one.leading_coordinates, axis=0),
            one.explained_share,
        )
        for one, grid in zip(found, grids, strict=True)
    ]
    return FittedLayers(
        layers,
        [one.maps for one in found],
        torch.from_numpy(sum(one.nll for one in found)),
        deal,
        rank_correlation([one.leading_coordinates for one in found]),
        [one.refit_ratio for one in found],
    )


def bytes_of(n: int, grid: Grid) -> int:
    """Size of what a layer of n pictures is fitted from: its rows, or moments of many rows."""
    rows, dimension = n * grid.n_rows, grid.n_features
    return max(4 * rows * dimension, 24 * dimension**2 if rows > dimension else 0)


@dataclass(frozen=True, eq=False)
class _Layer:
    """One layer of n pictures: its subspace, and what held-out pictures showed."""

    subspace: Subspace
    maps: Tensor
    nll: np.ndarray
    leading_coordinates: np.ndarray
    refit_ratio: np.ndarray
    explained_share: float


def _layer_of_pictures(feature: Tensor, grid: Grid, level: float, deal: Deal) -> _Layer:
    n = len(deal.folds)
    if n == 1:
        return _silent_layer(feature, grid)
    x = grid.rows(feature).cpu().numpy()
    folds = np.tile(deal.folds, len(x) // n)  # a copy has that of its picture
    held_out = crossfit(x, folds, level, own=n)
    subspace = replace(fit_subspace(x, level), n_samples=n)
    leading_coordinates = held_out.leading_coordinates(subspace).astype(np.float32)
    subspace = prepared_for_storage(subspace, held_out.noise_variance(subspace))
    maps = grid.fre_map(torch.from_numpy(held_out.residual()))
    ratio = held_out.refit_ratio() if held_out.refit_ratio else np.ones(n)
    total = reduce(Summary.merge, map(Summary.of, row_blocks(x))).total / (len(x) - 1)
    share = explained_share(float(held_out.fre.mean()), total)
    return _Layer(subspace, maps, held_out.nll(subspace), leading_coordinates, ratio, share)


def _silent_layer(feature: Tensor, grid: Grid) -> _Layer:
    """One picture says nothing of others: its map weighs nothing beside that of its cells."""
    mean = grid.rows(feature[:1])[0].cpu().numpy().astype(np.float64)
    basis = np.zeros((len(mean), 1), np.float16)
    basis[0] = 1
    subspace = Subspace(mean, basis, np.ones(1), 1.0, 1)
    maps, nothing = torch.ones(1, *grid.shape[1:]), np.zeros(1)
    return _Layer(subspace, maps, nothing, np.zeros((1, 1), np.float32), np.ones(1), 0.0)


def check_single(grids: Sequence[Grid]) -> None:
    """Refuse a single picture where no map is of its cells."""
    if not any(grid.of_cells for grid in grids):
        raise FitError(
            "There is 1 good picture, and subspaces over pictures need 2: add one, or give "
            "preset=tokens, which fits to the cells of one."
        )
    _logger.warning(
        "There is one good picture: its parts are held out in turn, and the promise of 1/2 is an "
        "estimate. Add good pictures; with 16 or more little is lost."
    )


def _layer_of_cells(feature: Tensor, grid: Grid, level: float, deal: Deal) -> _Layer:
    n = len(deal.folds)
    folds = np.tile(deal.folds, len(feature) // n)
    if n == 1:  # parts of the only picture are held out
        folds = np.tile(folds_of_parts(grid.shape[1:])[:, grid.cells.ravel()], (len(feature), 1))
    blocks = partial(cell_blocks, feature, grid)
    subspaces, held_out = crossfit_cells(blocks, folds, level, own=n)
    leading_coordinates = held_out.leading_coordinates(subspaces).astype(np.float32)
    noise = held_out.noise_variance(subspaces.final)
    subspace = prepared_for_storage(subspaces.final, noise, of_cells=True)
    maps = grid.placed(torch.from_numpy(held_out.maps))
    # The cells of all pictures settle the subspace: scores stay as they are, on the safe side.
    share = explained_share(float(held_out.maps.mean()), subspaces.total)
    return _Layer(subspace, maps, held_out.nll(subspace), leading_coordinates, np.ones(n), share)


def cell_blocks(feature: Tensor, grid: Grid) -> Iterator[np.ndarray | Tensor]:
    """Give the cells of pictures in blocks: on a GPU where they are there, else as NumPy arrays.

    Shapes: feature (n, C, h, w); gives (m, P, C).
    """
    step = max(1, BLOCK // (grid.n_cells * grid.shape[0]))
    for part in feature.split(step):
        cells = grid.rows(part).unflatten(0, (-1, grid.n_cells))
        yield cells if cells.is_cuda else cells.numpy()


def prepared_for_storage(
    subspace: Subspace, noise_variance: float, *, of_cells: bool = False
) -> Subspace:
    """Give a fitted subspace the noise that held-out rows show, and its basis what is stored."""
    basis = subspace.basis.astype(np.float32) if of_cells else on_grid(subspace.basis)
    return replace(subspace, basis=basis, noise_variance=noise_variance)
