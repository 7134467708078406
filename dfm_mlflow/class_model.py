"""One class of good pictures: its subspace in each layer, its map, its score, its calibration."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dfm_mlflow.config import Options
from dfm_mlflow.core.aggregation import aggregate, residual_map
from dfm_mlflow.core.calibration import Calibration
from dfm_mlflow.core.crossfit import assign_folds, crossfit
from dfm_mlflow.core.solvers import fit_subspace, row_blocks
from dfm_mlflow.core.subspace import Subspace
from dfm_mlflow.errors import FitError
from dfm_mlflow.network.maps import combine_layers, usual_of

MOST_LEADING = 10  # coordinates of a layer that drift is looked for in
_CALM = 0.999  # share of held-out good positions that stay below grey level 128


@dataclass(frozen=True, eq=False)
class Grid:
    """Feature map of one layer, and which of its cells count.

    Attributes
    ----------
    shape : tuple of int
        ``(C, h, w)``.
    cells : ndarray of shape (h, w), bool
        Cells that the region of interest touches.
    """

    shape: tuple[int, int, int]
    cells: np.ndarray

    @property
    def n_features(self) -> int:
        """Length D of a row: channels times cells that count."""
        return self.shape[0] * int(self.cells.sum())

    def rows(self, features: Tensor) -> Tensor:
        """Flatten features of shape (n, C, h, w) to rows of shape (n, D)."""
        return self.inside(features).flatten(1)

    def inside(self, maps: Tensor) -> Tensor:
        """Values of the cells that count, of shape (..., P), from maps of shape (..., h, w)."""
        flat = maps.flatten(-2)
        if self.cells.all():
            return flat
        return flat[..., torch.from_numpy(np.flatnonzero(self.cells)).to(maps.device)]

    def fre_map(self, residual: Tensor) -> Tensor:
        """FRE map of shape (n, h, w) from residuals of shape (n, D); 0 in other cells."""
        values = residual_map(residual, self.shape[0])
        if not self.cells.all():
            index = torch.from_numpy(np.flatnonzero(self.cells)).to(values.device)
            full = values.new_zeros((values.shape[0], self.cells.size))
            values = full.index_copy(1, index, values)
        return values.reshape(values.shape[0], *self.shape[1:])


@dataclass(frozen=True, eq=False)
class LayerModel:
    """What good features of one class look like in one layer.

    Attributes
    ----------
    subspace : Subspace
        NumPy arrays, the basis in half precision, or float32 tensors to score with.
    usual : array of shape (h, w), float32
        What the FRE map is divided by.
    leading : ndarray of shape (n, l), float32
        First coordinates of the n good pictures of the calibration; each column ascending.
    """

    subspace: Subspace
    usual: np.ndarray | Tensor
    leading: np.ndarray


@dataclass(frozen=True, eq=False)
class ClassModel:
    """What one class of good pictures looks like.

    Attributes
    ----------
    name : str
    layers : tuple of LayerModel
    calibration : Calibration
        Held-out anomaly scores.
    map_scale : float
        Value of the anomaly map that all but 1 in 1,000 held-out good positions stay under.
    """

    name: str
    layers: tuple[LayerModel, ...]
    calibration: Calibration
    map_scale: float

    def on(self, device: torch.device) -> "ClassModel":
        """Return a copy to score with: float32 tensors on a device."""
        like = torch.zeros((), dtype=torch.float32, device=device)
        layers = tuple(
            LayerModel(
                layer.subspace.like(like),
                torch.as_tensor(np.asarray(layer.usual), dtype=torch.float32, device=device),
                layer.leading,
            )
            for layer in self.layers
        )
        return replace(self, layers=layers)


@dataclass(frozen=True, eq=False)
class ClassScores:
    """Scores of n pictures under one class.

    Attributes
    ----------
    score, fre, nll : Tensor of shape (n,)
        Anomaly score, and the published image scores summed over layers.
    maps : Tensor of shape (n, h, w)
        Anomaly maps on the finest grid.
    leading : list of Tensor of shape (n, l)
        First coordinates of each layer.
    """

    score: Tensor
    fre: Tensor
    nll: Tensor
    maps: Tensor
    leading: list[Tensor]


def n_leading(subspace: Subspace) -> int:
    """How many coordinates drift is looked for in: 10, fewer where few pictures were fitted.

    Pictures that were fitted spread further than new ones along directions that hardly more
    pictures than directions have chosen.
    """
    return min(MOST_LEADING, max(1, subspace.n_samples // 20), subspace.n_components)


def score_class(
    model: ClassModel, features: Sequence[Tensor], grids: Sequence[Grid], options: Options
) -> ClassScores:
    """Score features, one tensor of shape (n, C, h, w) a layer, under a class on their device."""
    maps, fre, nll, leading = [], [], [], []
    for layer, feature, grid in zip(model.layers, features, grids, strict=True):
        coordinates, residual = layer.subspace.split(grid.rows(feature))
        leading.append(coordinates[:, : n_leading(layer.subspace)])
        maps.append(grid.fre_map(residual))
        fre.append(maps[-1].sum(dim=(1, 2)))
        nll.append(layer.subspace.nll_of(coordinates, fre[-1]))
    usual = [torch.as_tensor(layer.usual) for layer in model.layers]
    both = torch.stack(fre).sum(0), torch.stack(nll).sum(0)
    score, combined = _score_maps(maps, usual, both[1], grids, options)
    return ClassScores(score, *both, combined, leading)


def fit_class(
    name: str,
    features: Sequence[Tensor],
    groups: Sequence[str] | None,
    grids: Sequence[Grid],
    options: Options,
) -> ClassModel:
    """Fit a class to its features and calibrate it on the same pictures, each held out once.

    Parameters
    ----------
    name : str
    features : sequence of Tensor of shape (n, C, h, w)
        One for each layer.
    groups : sequence of str, optional
        Pictures of one group are held out together.
    grids : sequence of Grid
    options : Options
        Resolved.

    Raises
    ------
    FitError
        If there is one group only, or features that no model fits.
    """
    level = float(options.pca_level)
    folds = assign_folds(len(features[0]), groups=groups, seed=options.seed)
    layers, maps, nll = [], [], []
    for feature, grid in zip(features, grids, strict=True):
        x = grid.rows(feature).cpu().numpy()
        held_out = crossfit(x, folds, level)
        subspace = fit_subspace(x, level)
        if options.score == "fre" and subspace.n_components == subspace.n_features:
            raise FitError(
                f"All {subspace.n_features} directions of a layer are kept and nothing is left to "
                "reconstruct: give a smaller pca_level, or score=nll."
            )
        subspace = subspace.with_noise(held_out.noise_variance(subspace))
        # Half the size on disk; with the residual formed explicitly scores move by 3e-5 at most.
        subspace = replace(subspace, basis=subspace.basis.astype(np.float16))
        maps.append(grid.fre_map(torch.from_numpy(held_out.residual())))
        nll.append(torch.from_numpy(held_out.nll(subspace)))
        usual_map = usual_of(maps[-1], options.normalize).numpy()
        layers.append(LayerModel(subspace, usual_map, _leading(subspace, x)))
    # What a held-out map is divided by must not know it either.
    usual = [_usual_without_fold(m, folds, options.normalize) for m in maps]
    score, combined = _score_maps(maps, usual, torch.stack(nll).sum(0), grids, options)
    calibration = Calibration.of(score.numpy(), len(np.unique(folds)), options.tail)
    return ClassModel(name, tuple(layers), calibration, _map_scale(combined))


def recalibrate_class(
    model: ClassModel, scored: Sequence[ClassScores], options: Options
) -> ClassModel:
    """Calibrate a class on good pictures that it was never fitted to.

    Their plain scores are held out already. The subspaces and what the maps are divided by stay,
    so that the score of a picture is what it was; the scale of the maps follows the pictures.

    Parameters
    ----------
    model : ClassModel
    scored : sequence of ClassScores
        Of the pictures under `model`, in parts.
    options : Options
        Resolved.

    Raises
    ------
    FitError
        For fewer than 2 pictures, or scores that are not finite.
    """
    scores = np.concatenate([s.score.cpu().numpy() for s in scored]) if scored else np.empty(0)
    if len(scores) < 2:
        raise FitError(
            f"{len(scores)} good pictures are given to calibrate on, and at least 2 are needed: "
            "add some."
        )
    if not np.isfinite(scores).all():
        raise FitError("The scores hold NaN or infinite values: look at the pictures.")
    calibration = Calibration.of(scores, 0, options.tail)
    scale = _map_scale(torch.cat([s.maps.cpu() for s in scored]))
    layers = tuple(
        replace(layer, leading=_sorted([s.leading[j] for s in scored]))
        for j, layer in enumerate(model.layers)
    )
    return replace(model, layers=layers, calibration=calibration, map_scale=scale)


def _leading(subspace: Subspace, x: np.ndarray) -> np.ndarray:
    first = np.asarray(subspace.basis[:, : n_leading(subspace)], dtype=np.float32)
    mean = subspace.mean.astype(np.float32)
    return _sorted([torch.from_numpy((block - mean) @ first) for block in row_blocks(x)])


def _sorted(parts: Sequence[Tensor]) -> np.ndarray:
    return np.sort(torch.cat([p.cpu() for p in parts]).numpy(), axis=0)


def _map_scale(maps: Tensor) -> float:
    """Value that all but 1 in 1,000 positions of held-out good maps stay under."""
    inside = maps[maps > 0].numpy()
    return float(np.quantile(inside, _CALM)) if inside.size else 0.0


def _usual_without_fold(maps: Tensor, folds: np.ndarray, how: str) -> Tensor:
    """What the maps of all other folds show, for each picture: shape (n, h, w)."""
    usual = torch.empty_like(maps)
    for fold in np.unique(folds):
        usual[folds == fold] = usual_of(maps[folds != fold], how)
    return usual


def _score_maps(
    maps: list[Tensor],
    usual: list[Tensor],
    nll: Tensor,
    grids: Sequence[Grid],
    options: Options,
) -> tuple[Tensor, Tensor]:
    """Give the anomaly scores, of shape (n,), and the maps on the finest grid."""
    combined = combine_layers(maps, usual)
    if options.score == "nll":
        score = nll
    elif options.aggregate == "sum":  # over each layer's own positions, whatever the common grid
        score = torch.stack([(m / u).sum((1, 2)) for m, u in zip(maps, usual, strict=True)]).sum(0)
    else:
        values = max(grids, key=lambda g: g.cells.size).inside(combined)
        score = aggregate(values, options.aggregate)
    return score, combined
