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
CALM = 0.999  # share of held-out good positions that stay below grey level 128


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

    def on(self, device: torch.device) -> "LayerModel":
        """Return a copy to score with: float32 tensors on a device."""
        like = torch.zeros((), dtype=torch.float32, device=device)
        usual = torch.as_tensor(np.asarray(self.usual), dtype=torch.float32, device=device)
        return LayerModel(self.subspace.like(like), usual, self.leading)


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
        return replace(self, layers=tuple(layer.on(device) for layer in self.layers))


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


@dataclass(frozen=True, eq=False)
class RawScores:
    """What scoring n pictures under a class costs; the rest is a matter of options.

    Attributes
    ----------
    maps : list of Tensor of shape (n, h, w)
        FRE map of each layer.
    fre, nll : Tensor of shape (n,)
        Summed over layers.
    leading : list of Tensor of shape (n, l)
        First coordinates of each layer.
    """

    maps: list[Tensor]
    fre: Tensor
    nll: Tensor
    leading: list[Tensor]


def score_class(
    model: ClassModel, features: Sequence[Tensor], grids: Sequence[Grid], options: Options
) -> ClassScores:
    """Score features, one tensor of shape (n, C, h, w) a layer, under a class on their device."""
    return finish_scores(model, raw_scores(model.layers, features, grids), grids, options)


def raw_scores(
    layers: Sequence[LayerModel], features: Sequence[Tensor], grids: Sequence[Grid]
) -> RawScores:
    """Project features of n pictures on the subspaces of a class."""
    maps, fre, nll, leading = [], [], [], []
    for layer, feature, grid in zip(layers, features, grids, strict=True):
        coordinates, residual = layer.subspace.split(grid.rows(feature))
        leading.append(coordinates[:, : n_leading(layer.subspace)])
        maps.append(grid.fre_map(residual))
        fre.append(maps[-1].sum(dim=(1, 2)))
        nll.append(layer.subspace.nll_of(coordinates, fre[-1]))
    return RawScores(maps, torch.stack(fre).sum(0), torch.stack(nll).sum(0), leading)


def finish_scores(
    model: ClassModel, raw: RawScores, grids: Sequence[Grid], options: Options
) -> ClassScores:
    """Divide, combine and aggregate the maps of pictures."""
    usual = [torch.as_tensor(layer.usual) for layer in model.layers]
    score, combined = score_maps(raw.maps, usual, raw.nll, grids, options)
    return ClassScores(score, raw.fre, raw.nll, combined, raw.leading)


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
    return finish_class(name, fit_layers(features, groups, grids, options), grids, options)


@dataclass(frozen=True, eq=False)
class FittedLayers:
    """What fitting a class costs: ``normalize``, ``aggregate`` and the like change nothing of it.

    Attributes
    ----------
    layers : list of LayerModel
        With maps that are divided by nothing.
    maps : list of Tensor of shape (n, h, w)
        Held-out FRE maps of the n pictures in each layer.
    nll : Tensor of shape (n,)
        Held-out, summed over layers.
    folds : ndarray of shape (n,), int
    """

    layers: list[LayerModel]
    maps: list[Tensor]
    nll: Tensor
    folds: np.ndarray


def fit_layers(
    features: Sequence[Tensor],
    groups: Sequence[str] | None,
    grids: Sequence[Grid],
    options: Options,
) -> FittedLayers:
    """Fit the subspaces of a class; of the options only ``pca_level`` and ``seed`` matter."""
    level = float(options.pca_level)
    folds = assign_folds(len(features[0]), groups=groups, seed=options.seed)
    layers, maps, nll = [], [], []
    for feature, grid in zip(features, grids, strict=True):
        x = grid.rows(feature).cpu().numpy()
        held_out = crossfit(x, folds, level)
        subspace = fit_subspace(x, level)
        subspace = to_store(subspace, held_out.noise_variance(subspace))
        maps.append(grid.fre_map(torch.from_numpy(held_out.residual())))
        nll.append(torch.from_numpy(held_out.nll(subspace)))
        undivided = np.ones(grid.shape[1:], dtype=np.float32)
        layers.append(LayerModel(subspace, undivided, _leading(subspace, x)))
    return FittedLayers(layers, maps, torch.stack(nll).sum(0), folds)


def to_store(subspace: Subspace, noise_variance: float) -> Subspace:
    """Give a fitted subspace the noise that held-out rows show, and its basis half precision."""
    # Half the size on disk; with the residual formed explicitly scores move by 3e-5 at most.
    half = subspace.basis.astype(np.float16)
    return replace(subspace, basis=half, noise_variance=noise_variance)


def finish_class(
    name: str, fitted: FittedLayers, grids: Sequence[Grid], options: Options
) -> ClassModel:
    """Divide the maps of a fitted class, and calibrate its scores."""
    check_rest([layer.subspace for layer in fitted.layers], options)
    layers = tuple(
        replace(layer, usual=usual_of(maps, options.normalize).numpy())
        for layer, maps in zip(fitted.layers, fitted.maps, strict=True)
    )
    # What a held-out map is divided by must not know it either.
    usual = [usual_without_fold(m, fitted.folds, options.normalize) for m in fitted.maps]
    score, combined = score_maps(fitted.maps, usual, fitted.nll, grids, options)
    calibration = Calibration.of(score.numpy(), len(np.unique(fitted.folds)), options.tail)
    return ClassModel(name, layers, calibration, _map_scale(combined))


def check_rest(subspaces: Sequence[Subspace], options: Options) -> None:
    """Refuse FRE where nothing is left to reconstruct."""
    if options.score == "fre":
        for whole in (s for s in subspaces if s.n_components == s.n_features):
            raise FitError(
                f"All {whole.n_features} directions of a layer are kept and nothing is left to "
                "reconstruct: give a smaller pca_level, or score=nll."
            )


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
        replace(layer, leading=sorted_columns([s.leading[j] for s in scored]))
        for j, layer in enumerate(model.layers)
    )
    return replace(model, layers=layers, calibration=calibration, map_scale=scale)


def _leading(subspace: Subspace, x: np.ndarray) -> np.ndarray:
    return sorted_columns([first_coordinates(subspace, block) for block in row_blocks(x)])


def first_coordinates(subspace: Subspace, x: np.ndarray) -> Tensor:
    """Coordinates of rows that drift is looked for in, of shape (n, l)."""
    first = np.asarray(subspace.basis[:, : n_leading(subspace)], dtype=np.float32)
    return torch.from_numpy((x - subspace.mean.astype(np.float32)) @ first)


def sorted_columns(parts: Sequence[Tensor]) -> np.ndarray:
    """Put rows of shape (n, l) together and sort each column."""
    return np.sort(torch.cat([p.cpu() for p in parts]).numpy(), axis=0)


def _map_scale(maps: Tensor) -> float:
    """Value that all but 1 in 1,000 positions of held-out good maps stay under."""
    inside = maps[maps > 0].numpy()
    return float(np.quantile(inside, CALM)) if inside.size else 0.0


def usual_without_fold(maps: Tensor, folds: np.ndarray, how: str) -> Tensor:
    """What the maps of all other folds show, for each picture: shape (n, h, w)."""
    usual = torch.empty_like(maps)
    for fold in np.unique(folds):
        usual[folds == fold] = usual_of(maps[folds != fold], how)
    return usual


def score_maps(
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
