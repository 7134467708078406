"""Which classes a picture may be of, by the likelihood alone, before it is scored in full.

The likelihood needs no map: of the part of a picture outside a subspace only the length counts,
which is what the coordinates leave of the whole. That difference loses digits, so that every class
stays whose likelihood it cannot tell from the largest; scoring in full decides between those.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dfm_mlflow.core.subspace import squared_norm
from dfm_mlflow.detector.class_model import ClassModel, ClassScores
from dfm_mlflow.detector.grid import Grid

_LOST = 1e-4  # of a squared length that single precision may lose, a hundred times what it does


def candidates(
    models: Sequence[ClassModel], features: Sequence[Tensor], grids: Sequence[Grid]
) -> Tensor:
    """Say under which classes a picture may be likeliest.

    Shapes: features (n, C, h, w); gives (n, classes) bool: at least one of each picture.
    """
    found = [_bounds(model, features, grids) for model in models]
    least, most = (torch.stack(bounds, dim=1) for bounds in zip(*found, strict=True))
    possible = least <= most.amin(dim=1, keepdim=True)
    possible |= ~possible.any(dim=1, keepdim=True)  # of what is not finite nothing is known
    return possible


def _bounds(
    model: ClassModel, features: Sequence[Tensor], grids: Sequence[Grid]
) -> tuple[Tensor, Tensor]:
    """Least and largest negative log-likelihood that pictures may have under a class."""
    least, most = [], []
    for layer, feature, grid in zip(model.layers, features, grids, strict=True):
        subspace = layer.subspace
        centred = grid.rows(feature) - subspace.mean
        coordinates = centred @ subspace.basis
        whole = grid.of_pictures(squared_norm(centred))
        outside = (whole - grid.of_pictures(squared_norm(coordinates))).clamp(min=0)
        distance = grid.of_pictures(subspace.mahalanobis(coordinates))
        nll = subspace.nll_from(distance, outside, grid.n_rows)
        lost = _LOST * (nll.abs() + 0.5 * (distance + whole / subspace.noise_variance))
        least.append(nll - lost)
        most.append(nll + lost)
    return torch.stack(least).sum(0), torch.stack(most).sum(0)


def in_place(scores: ClassScores | None, rows: Tensor) -> ClassScores:
    """Put the scores of some pictures into those of all; others cannot be of the class.

    Shapes: rows (n,) bool.
    """
    n = len(rows)
    if scores is None:
        nothing = torch.full((n,), torch.inf, device=rows.device)
        return ClassScores(nothing, nothing, nothing, nothing.new_empty((n, 0, 0)), [])

    def spread(values: Tensor, others: float) -> Tensor:
        full = values.new_full((n, *values.shape[1:]), others)
        full[rows] = values
        return full

    return ClassScores(
        spread(scores.score, torch.inf),
        spread(scores.fre, torch.inf),
        spread(scores.nll, torch.inf),
        spread(scores.maps, 0.0),
        [spread(layer, 0.0) for layer in scores.leading_coordinates],
    )
