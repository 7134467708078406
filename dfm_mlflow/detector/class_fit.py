"""Fitting one class of good pictures, and its calibration."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from dfm_mlflow.config import Options
from dfm_mlflow.core.calibration import Calibration
from dfm_mlflow.core.duplicates import MOST
from dfm_mlflow.core.leading_coordinates import rank_correlation
from dfm_mlflow.core.outliers import held_out_p_values
from dfm_mlflow.core.subspace import Subspace
from dfm_mlflow.detector.class_model import (
    ClassModel,
    ClassScores,
    ratio_of,
    score_maps,
)
from dfm_mlflow.detector.grid import Grid
from dfm_mlflow.detector.held_out import HeldOutScores, sketches_of
from dfm_mlflow.detector.layer_fit import Deal, FittedLayers, fit_layers
from dfm_mlflow.detector.maps import largest_of, normaliser_of, scale_of
from dfm_mlflow.errors import FitError


def fit_class(
    name: str, features: Sequence[Tensor], deal: Deal, grids: Sequence[Grid], options: Options
) -> ClassModel:
    """Fit a class to its features and calibrate it on the same pictures, each held out once.

    Shapes: features (n * (1 + c), C, h, w).
    """
    return fit_class_held_out(name, features, deal, grids, options)[0]


def fit_class_held_out(
    name: str, features: Sequence[Tensor], deal: Deal, grids: Sequence[Grid], options: Options
) -> tuple[ClassModel, HeldOutScores]:
    """Fit a class as :func:`fit_class`, and keep what its pictures showed while held out.

    Shapes: features (n * (1 + c), C, h, w).
    """
    fitted = fit_layers(features, deal, grids, options)
    model, scores, maps = _finished(name, fitted, grids, options)
    p_values = held_out_p_values(scores, deal.groups)
    own = [feature[: len(scores)] for feature in features]  # without copies
    sketches = sketches_of(own, grids) if len(scores) <= MOST else None
    return model, HeldOutScores(scores, p_values, maps, sketches)


def finish_class(
    name: str, fitted: FittedLayers, grids: Sequence[Grid], options: Options
) -> ClassModel:
    """Divide the maps of a fitted class, and calibrate its scores."""
    return _finished(name, fitted, grids, options)[0]


def _finished(
    name: str, fitted: FittedLayers, grids: Sequence[Grid], options: Options
) -> tuple[ClassModel, np.ndarray, dict[int, Tensor]]:
    """The class, and the held-out scores and maps of its pictures."""
    check_residual_dimensions([layer.subspace for layer in fitted.layers], options)
    ways = options.of_maps("normalize", len(grids))
    layers = tuple(
        replace(layer, normaliser=normaliser_of(maps, how).numpy())
        for layer, maps, how in zip(fitted.layers, fitted.maps, ways, strict=True)
    )
    # The normaliser of a held-out map must not know it either.
    folds = fitted.deal.folds
    normalisers = [
        normaliser_without_fold(m, folds, w) for m, w in zip(fitted.maps, ways, strict=True)
    ]
    explained_shares = [layer.explained_share for layer in layers]
    score, combined = score_maps(
        fitted.maps, normalisers, fitted.nll, grids, options, explained_shares
    )
    ratio = ratio_of(fitted.refit_ratios, grids, options, explained_shares)
    calibration = calibrate(score.numpy(), fitted.deal, options, ratio)
    model = ClassModel(name, layers, calibration, _map_scale(combined), fitted.correlation)
    scores = brought_to_final(score.numpy(), options, ratio)
    return model, scores, dict(enumerate(combined))


def calibrate(
    scores: np.ndarray, deal: Deal, options: Options, refit_ratio: np.ndarray
) -> Calibration:
    """Calibrate on the held-out scores of the pictures of one class.

    Shapes: scores (n,); refit_ratio (n,).
    """
    n_folds = len(np.unique(deal.folds))
    ratio = _ratio(options, refit_ratio)
    return Calibration.of(scores, n_folds, options.tail, deal.groups, options.contamination, ratio)


def brought_to_final(scores: np.ndarray, options: Options, refit_ratio: np.ndarray) -> np.ndarray:
    """Give held-out scores as the calibration has them, brought to those of the final model.

    Shapes: scores (n,); refit_ratio (n,); gives (n,) float64.
    """
    brought: np.ndarray = np.asarray(scores, dtype=np.float64) * _ratio(options, refit_ratio)
    return brought


def _ratio(options: Options, refit_ratio: np.ndarray) -> np.ndarray:
    """What each score is multiplied by; a likelihood is no residual and stays as it is."""
    return np.ones_like(refit_ratio) if options.score == "nll" else refit_ratio


def check_residual_dimensions(subspaces: Sequence[Subspace], options: Options) -> None:
    """Refuse FRE, if `options` ask for it, where one of `subspaces` leaves nothing outside it."""
    if options.score == "fre":
        for whole in (s for s in subspaces if s.n_components == s.n_features):
            raise FitError(
                f"All {whole.n_features} directions of a layer are kept and nothing is left to "
                "reconstruct: give a smaller pca_level, or score=nll."
            )


def recalibrate_class(
    model: ClassModel, scored: Sequence[ClassScores], groups: np.ndarray | None, options: Options
) -> ClassModel:
    """Calibrate a class on good pictures that it was never fitted to.

    Their plain scores are held out already. The subspaces and the normalisers stay,
    so that the score of a picture is what it was; the scale of the maps follows the pictures.

    Shapes: groups (n,) int.
    """
    scores = np.concatenate([s.score.cpu().numpy() for s in scored]) if scored else np.empty(0)
    if len(scores) < 2:
        raise FitError(
            f"{len(scores)} good pictures are given to calibrate on, and at least 2 are needed: "
            "add some."
        )
    if not np.isfinite(scores).all():
        raise FitError("The scores hold NaN or infinite values: look at the pictures.")
    calibration = Calibration.of(scores, 0, options.tail, groups)
    scale = _map_scale(torch.cat([s.maps.cpu() for s in scored]))
    leading_coordinates = [
        torch.cat([s.leading_coordinates[j].cpu() for s in scored]).numpy()
        for j in range(len(model.layers))
    ]
    layers = tuple(
        replace(layer, leading_coordinates=np.sort(rows, axis=0))
        for layer, rows in zip(model.layers, leading_coordinates, strict=True)
    )
    return replace(
        model,
        layers=layers,
        calibration=calibration,
        map_scale=scale,
        correlation=rank_correlation(leading_coordinates),
    )


def _map_scale(maps: Tensor) -> float:
    return scale_of(largest_of(maps))


def normaliser_without_fold(maps: Tensor, folds: np.ndarray, how: str) -> Tensor:
    """Normaliser of each held-out map: the mean over the maps of all other folds.

    Shapes: maps (n, h, w); folds (n,) int; gives (n, h, w).
    """
    if how == "none":
        return torch.ones_like(maps)
    normaliser, of = torch.empty_like(maps), torch.from_numpy(folds)
    for fold in np.unique(folds):
        others = maps[of != fold]
        normaliser[of == fold] = normaliser_of(others if len(others) else maps, how)
    return normaliser
