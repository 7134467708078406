"""The grid of a layer's feature map, and the cells of it that count."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dfm_mlflow.core.aggregation import residual_map
from dfm_mlflow.errors import FitError

_VALUES = 1 << 23  # of cells that are scored at once: 32 MiB


@dataclass(frozen=True, eq=False)
class Grid:
    """Feature map of one layer, and which of its cells count."""

    shape: tuple[int, int, int]  # ``(C, h, w)``
    cells: np.ndarray  # (h, w) bool: cells that the region of interest touches
    # Whether other cells keep out of the map on a finer grid. In models of format 1 their zeros
    # bleed into the border of the region.
    even_border: bool = True
    rows_are: str = "picture"  # what a row of the layer's subspace is

    @property
    def weights(self) -> np.ndarray:
        """What each cell weighs on a finer grid, of shape (h, w), float32: 0 or 1."""
        weighed = self.cells if self.even_border else np.ones_like(self.cells)
        return weighed.astype(np.float32)

    @property
    def of_cells(self) -> bool:
        """Whether a row is one cell."""
        return self.rows_are == "cell"

    @property
    def n_cells(self) -> int:
        """Cells that count, P."""
        return int(self.cells.sum())

    @property
    def n_rows(self) -> int:
        """Rows of a picture: 1, or the cells that count."""
        return self.n_cells if self.of_cells else 1

    @property
    def n_features(self) -> int:
        """Length D of a row: channels, and of a whole picture times the cells that count."""
        return self.shape[0] * (1 if self.of_cells else self.n_cells)

    def rows(self, features: Tensor) -> Tensor:
        """Flatten `features` of shape (n, C, h, w) to rows: (n, D), or of cells (n P, D)."""
        inside = self.inside(features)
        return inside.transpose(1, 2).flatten(0, 1) if self.of_cells else inside.flatten(1)

    def of_pictures(self, values: Tensor, mean: bool = False) -> Tensor:
        """Sum `values` of rows, of shape (n n_rows, ...), over those of each picture, or average.

        Gives (n, ...).
        """
        if not self.of_cells:
            return values
        apart: Tensor = values.unflatten(0, (-1, self.n_rows))
        return apart.mean(1) if mean else apart.sum(1)

    def inside(self, maps: Tensor) -> Tensor:
        """Values of the cells that count, of shape (..., P), from `maps` of shape (..., h, w)."""
        flat = maps.flatten(-2)
        if self.cells.all():
            return flat
        return flat[..., torch.from_numpy(np.flatnonzero(self.cells)).to(maps.device)]

    def fre_map(self, residual: Tensor) -> Tensor:
        """FRE map of shape (n, h, w) from the `residual` of all rows; 0 in other cells."""
        if self.of_cells:
            return self.placed((residual**2).sum(1).unflatten(0, (-1, self.n_cells)))
        values: Tensor = residual_map(residual, self.shape[0])
        return self.placed(values)

    def placed(self, values: Tensor) -> Tensor:
        """Put `values` of the cells that count, of shape (n, P), on the grid; 0 in other cells."""
        if not self.cells.all():
            index = torch.from_numpy(np.flatnonzero(self.cells)).to(values.device)
            full = values.new_zeros((values.shape[0], self.cells.size))
            values = full.index_copy(1, index, values)
        return values.reshape(values.shape[0], *self.shape[1:])


def at_once(grids: Sequence[Grid], most: int) -> int:
    """How many pictures are scored at once: rows that are cells are many."""
    values = max((g.n_cells * g.shape[0] for g in grids if g.of_cells), default=0)
    return max(1, min(most, _VALUES // values)) if values else most


def grids_of(
    shapes: Iterable[Sequence[int]],
    roi_cells: Callable[[tuple[int, int]], np.ndarray],
    rows_are: Sequence[str] | None = None,
) -> list[Grid]:
    """Give the grid of each layer."""
    shapes = list(shapes)
    grids = [
        Grid((c, h, w), roi_cells((h, w)), rows_are=kind)
        for (c, h, w), kind in zip(shapes, rows_are or ["picture"] * len(shapes), strict=True)
    ]
    if not all(grid.cells.any() for grid in grids):
        raise FitError("The roi touches no cell of a layer: paint a larger region.")
    return grids
