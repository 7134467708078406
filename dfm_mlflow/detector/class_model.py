"""One class of good pictures: its subspace in each layer, its map and its score."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dfm_mlflow.config import Options
from dfm_mlflow.core.aggregation import aggregate
from dfm_mlflow.core.calibration import Calibration
from dfm_mlflow.core.leading_coordinates import n_leading
from dfm_mlflow.core.subspace import Subspace
from dfm_mlflow.detector.grid import Grid
from dfm_mlflow.detector.maps import blurred, combine_layers

_TINY = 1e-30  # below any score: its logarithm is finite


@dataclass(frozen=True, eq=False)
class LayerModel:
    """What good features of one class look like in one layer."""

    # NumPy arrays, the basis in half precision, or float32 tensors to score with.
    subspace: Subspace
    normaliser: (
        np.ndarray | Tensor
    )  # (h, w) float32: held-out mean of the FRE map, which it is divided by
    # (n, l) float32: First coordinates of the n good pictures of the calibration, held out; each
    # column ascending.
    leading_coordinates: np.ndarray
    # Share of the variance of good pictures that the subspace explains of held-out ones.
    explained_share: float = 1.0

    def on(self, device: torch.device) -> "LayerModel":
        """Return a copy to score with: float32 tensors on a `device`."""
        like = torch.zeros((), dtype=torch.float32, device=device)
        normaliser = torch.as_tensor(
            np.asarray(self.normaliser), dtype=torch.float32, device=device
        )
        return replace(self, subspace=self.subspace.like(like), normaliser=normaliser)


@dataclass(frozen=True, eq=False)
class ClassModel:
    """What one class of good pictures looks like."""

    name: str
    layers: tuple[LayerModel, ...]
    calibration: Calibration  # held-out anomaly scores
    # 90th percentile of the largest anomaly-map value of each held-out good picture; in models
    # made before that, the value that all but 1 in 1,000 of their positions stay under.
    map_scale: float
    # (L, L) float32, or None: Of the ranks of the leading coordinates of all layers together; None
    # in format 1.
    correlation: np.ndarray | None = None
    # (n,) float64, or None: Mean level of the pictures of the calibration, ascending; None where it
    # is not known.
    light: np.ndarray | None = None

    def on(self, device: torch.device) -> "ClassModel":
        """Return a copy to score with: float32 tensors on a `device`."""
        return replace(self, layers=tuple(layer.on(device) for layer in self.layers))


@dataclass(frozen=True, eq=False)
class ClassScores:
    """Scores of n pictures under one class.

    Shapes: score, fre, nll (n,).
    """

    score: Tensor
    fre: Tensor
    nll: Tensor
    maps: Tensor  # (n, h, w): anomaly maps on the finest grid
    leading_coordinates: list[Tensor]  # (n, l): first coordinates of each layer

    @classmethod
    def joined(cls, parts: Sequence["ClassScores"]) -> "ClassScores":
        """Put the scores of several lots of pictures together, in order."""
        if len(parts) == 1:
            return parts[0]
        score, fre, nll, maps = (
            torch.cat([getattr(p, name) for p in parts]) for name in ("score", "fre", "nll", "maps")
        )
        leading_coordinates = [
            torch.cat(layer) for layer in zip(*(p.leading_coordinates for p in parts), strict=True)
        ]
        return cls(score, fre, nll, maps, leading_coordinates)


@dataclass(frozen=True, eq=False)
class RawScores:
    """What scoring n pictures under a class costs; the rest is a matter of options.

    Shapes: fre, nll (n,).
    """

    maps: list[Tensor]  # (n, h, w): FRE map of each layer
    fre: Tensor
    nll: Tensor
    leading_coordinates: list[Tensor]  # (n, l): first coordinates of each layer


def score_class(
    model: ClassModel, features: Sequence[Tensor], grids: Sequence[Grid], options: Options
) -> ClassScores:
    """Score features under a class, on their device.

    Shapes: features (n, C, h, w).
    """
    return finish_scores(model, raw_scores(model.layers, features, grids), grids, options)


def raw_scores(
    layers: Sequence[LayerModel], features: Sequence[Tensor], grids: Sequence[Grid]
) -> RawScores:
    """Project features of n pictures on the subspaces of a class.

    Shapes: features (n, C, h, w).
    """
    maps, fre, nll, leading_coordinates = [], [], [], []
    for layer, feature, grid in zip(layers, features, grids, strict=True):
        coordinates, residual = layer.subspace.split(grid.rows(feature))
        first = coordinates[:, : n_leading(layer.subspace)]
        leading_coordinates.append(grid.of_pictures(first, mean=True))
        maps.append(grid.fre_map(residual))
        fre.append(maps[-1].sum(dim=(1, 2)))
        distance = grid.of_pictures(layer.subspace.mahalanobis(coordinates))
        nll.append(layer.subspace.nll_from(distance, fre[-1], grid.n_rows))
    return RawScores(maps, torch.stack(fre).sum(0), torch.stack(nll).sum(0), leading_coordinates)


def finish_scores(
    model: ClassModel, raw: RawScores, grids: Sequence[Grid], options: Options
) -> ClassScores:
    """Divide, combine and aggregate the maps of pictures."""
    normalisers = [torch.as_tensor(layer.normaliser) for layer in model.layers]
    explained_shares = [layer.explained_share for layer in model.layers]
    score, combined = score_maps(raw.maps, normalisers, raw.nll, grids, options, explained_shares)
    return ClassScores(score, raw.fre, raw.nll, combined, raw.leading_coordinates)


def score_maps(
    maps: list[Tensor],
    normalisers: list[Tensor],
    nll: Tensor,
    grids: Sequence[Grid],
    options: Options,
    explained_shares: Sequence[float] = (),
) -> tuple[Tensor, Tensor]:
    """Give the anomaly scores, and the maps on the finest grid.

    Maps whose subspaces are of one kind, and that become a number in the same way, are averaged.
    Where there are several such groups, the score is the geometric mean of theirs: each map counts
    by the share of held-out pictures that its subspace explains, so that subspaces of pictures
    count for nothing from few pictures and for much from many.

    Shapes: maps (n, h, w); normalisers (h, w) or (n, h, w); nll (n,); gives scores (n,) and maps
    (n, H, W).
    """
    groups = _groups(grids, options)
    found = [_of_group(maps, normalisers, grids, group, options) for group in groups.items()]
    if len(found) == 1:
        score, combined = found[0]
    else:
        weights = _weights(list(groups.values()), explained_shares)
        logs = [w * s.clamp(min=_TINY).log() for w, (s, _) in zip(weights, found, strict=True)]
        score = torch.stack(logs).sum(0).exp()
        weighed = [len(found) * w * m for w, (_, m) in zip(weights, found, strict=True)]
        finest = [_finest(grids, own) for own in groups.values()]
        one = [torch.ones((), dtype=m.dtype, device=m.device) for m in weighed]
        combined = combine_layers(weighed, one, [grid.weights for grid in finest])
    if options.score == "nll":
        score = nll
    return score, combined


def ratio_of(
    ratios: Sequence[np.ndarray],
    grids: Sequence[Grid],
    options: Options,
    explained_shares: Sequence[float],
) -> np.ndarray:
    """What held-out scores are multiplied by to become those of the final model.

    Shapes: ratios (n,); gives (n,) float64.
    """
    groups = list(_groups(grids, options).values())
    means = [np.mean([ratios[j] for j in own], axis=0) for own in groups]
    if len(groups) == 1:
        only: np.ndarray = means[0]
        return only
    weights = _weights(groups, explained_shares)
    logs = [w * np.log(m) for w, m in zip(weights, means, strict=True)]
    fused: np.ndarray = np.exp(np.sum(logs, axis=0))
    return fused


def _weights(groups: Sequence[Sequence[int]], explained_shares: Sequence[float]) -> list[float]:
    """What each group of maps weighs: all that their subspaces explain."""
    shares = [sum(explained_shares[j] for j in own) for own in groups]
    whole = sum(shares)
    return [share / whole if whole else 1 / len(shares) for share in shares]


def _groups(grids: Sequence[Grid], options: Options) -> dict[tuple[str, str], list[int]]:
    """Maps that are averaged, by what rows of their subspaces are and how they become a number."""
    groups: dict[tuple[str, str], list[int]] = {}
    for j, how in enumerate(options.of_maps("aggregate", len(grids))):
        groups.setdefault((grids[j].rows_are, how), []).append(j)
    return groups


def _finest(grids: Sequence[Grid], own: Sequence[int]) -> Grid:
    return max((grids[j] for j in own), key=lambda g: g.cells.size)


def _of_group(
    maps: list[Tensor],
    normalisers: list[Tensor],
    grids: Sequence[Grid],
    group: tuple[tuple[str, str], list[int]],
    options: Options,
) -> tuple[Tensor, Tensor]:
    (_, how), own = group
    mine, divisors = [maps[j] for j in own], [normalisers[j] for j in own]
    combined = combine_layers(mine, divisors, [grids[j].weights for j in own])
    finest = _finest(grids, own)
    if options.blur_cells:
        combined = blurred(combined, options.blur_cells, finest.weights)
    if how == "sum":  # over each layer's own positions, whatever the common grid
        parts = zip(mine, divisors, strict=True)
        return torch.stack([(m / u).sum((1, 2)) for m, u in parts]).sum(0), combined
    return aggregate(finest.inside(combined), how), combined
