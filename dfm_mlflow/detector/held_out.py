"""What good pictures looked like while they were held out: the fit computes it, jobs show it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dfm_mlflow.core.duplicates import WIDTH, sketch
from dfm_mlflow.detector.grid import Grid

_CELLS = 8  # most cells a side of the maps that are compared


@dataclass(frozen=True, eq=False)
class HeldOutScores:
    """Held-out scores and maps of the n good pictures that a detector was fitted to."""

    # (n,) float64: Anomaly score of each picture under a model that was fitted without its fold,
    # brought to the final model as the calibration has it, in the order in which the pictures were
    # given.
    score: np.ndarray
    # (n,) float64: Of that score among the others of its class: the share of groups (pictures,
    # where there are no groups) that score at least as high, its own counted once.
    p_value: np.ndarray
    # (h, w): Anomaly map of the same model, on the CPU, by the picture's place; of all pictures
    # where they are at hand, of the most unusual ones where the features are elsewhere.
    maps: Mapping[int, Tensor]
    # (n, layers, s) float32, or None: What near-duplicates are found by: :func:`sketches_of` the
    # features; None where the pictures are more than :data:`~dfm_mlflow.core.duplicates.MOST`.
    sketches: np.ndarray | None

    @classmethod
    def joined(
        cls, parts: Sequence["HeldOutScores"], places: Sequence[np.ndarray]
    ) -> "HeldOutScores":
        """Put the pictures of several classes back into their common order.

        Shapes: places (n_class,) int.
        """
        order = np.argsort(np.concatenate(places))
        maps: dict[int, Tensor] = {}
        for part, mine in zip(parts, places, strict=True):
            maps |= {int(mine[i]): values for i, values in part.maps.items()}
        score, p_value = (
            np.concatenate([getattr(part, name) for part in parts])[order]
            for name in ("score", "p_value")
        )
        sketches = [part.sketches for part in parts if part.sketches is not None]
        whole = len(sketches) == len(parts)
        return cls(score, p_value, maps, np.concatenate(sketches)[order] if whole else None)


def sketches_of(features: Sequence[Tensor], grids: Sequence[Grid]) -> np.ndarray:
    """Random projections of the features of n pictures, of each layer alike many numbers.

    Of fine maps first means of larger cells are taken, which a shift of a pixel or two hardly
    moves.

    Shapes: features (n, C, h, w); gives (n, layers, s) float32.
    """
    width = WIDTH // len(grids)
    layers = [
        sketch(_coarse(feature, grid).flatten(1), width, seed=j)
        for j, (feature, grid) in enumerate(zip(features, grids, strict=True))
    ]
    return torch.stack(layers, dim=1).cpu().numpy()


def _coarse(feature: Tensor, grid: Grid) -> Tensor:
    """Bring a map of shape (n, C, h, w) to few cells; those that do not count are 0."""
    if not grid.cells.all():
        feature = feature * torch.from_numpy(grid.cells).to(feature.device)
    high, wide = feature.shape[-2:]
    if max(high, wide) <= _CELLS:
        return feature
    return F.adaptive_avg_pool2d(feature, (min(high, _CELLS), min(wide, _CELLS)))
