"""The grid of a layer's feature map, and the cells of it that count."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dfm_mlflow.core.aggregation import residual_map
from dfm_mlflow.errors import FitError


@dataclass(frozen=True, eq=False)
class Grid:
    """Feature map of one layer, and which of its cells count.

    Attributes
    ----------
    shape : tuple of int
        ``(C, h, w)``.
    cells : ndarray of shape (h, w), bool
        Cells that the region of interest touches.
    even_border : bool
        Whether other cells keep out of the map on a finer grid. In models of format 1 their zeros
        bleed into the border of the region.
    """

    shape: tuple[int, int, int]
    cells: np.ndarray
    even_border: bool = True

    @property
    def weights(self) -> np.ndarray:
        """What each cell weighs on a finer grid, of shape (h, w), float32: 0 or 1."""
        weighed = self.cells if self.even_border else np.ones_like(self.cells)
        return weighed.astype(np.float32)

    @property
    def n_features(self) -> int:
        """Length D of a row: channels times cells that count."""
        return self.shape[0] * int(self.cells.sum())

    def rows(self, features: Tensor) -> Tensor:
        """Flatten `features` of shape (n, C, h, w) to rows of shape (n, D)."""
        return self.inside(features).flatten(1)

    def inside(self, maps: Tensor) -> Tensor:
        """Values of the cells that count, of shape (..., P), from `maps` of shape (..., h, w)."""
        flat = maps.flatten(-2)
        if self.cells.all():
            return flat
        return flat[..., torch.from_numpy(np.flatnonzero(self.cells)).to(maps.device)]

    def fre_map(self, residual: Tensor) -> Tensor:
        """FRE map of shape (n, h, w) from a `residual` of shape (n, D); 0 in other cells."""
        values: Tensor = residual_map(residual, self.shape[0])
        if not self.cells.all():
            index = torch.from_numpy(np.flatnonzero(self.cells)).to(values.device)
            full = values.new_zeros((values.shape[0], self.cells.size))
            values = full.index_copy(1, index, values)
        return values.reshape(values.shape[0], *self.shape[1:])


def grids_of(
    shapes: Iterable[Sequence[int]], roi_cells: Callable[[tuple[int, int]], np.ndarray]
) -> list[Grid]:
    """Give the grid of each layer.

    Parameters
    ----------
    shapes : iterable of sequence of int
        ``(C, h, w)`` of each layer.
    roi_cells : callable
        Which cells of a grid ``(h, w)`` the region of interest touches, of that shape, bool.

    Raises
    ------
    FitError
        If the region touches no cell of a layer.
    """
    grids = [Grid((c, h, w), roi_cells((h, w))) for c, h, w in shapes]
    if not all(grid.cells.any() for grid in grids):
        raise FitError("The roi touches no cell of a layer: paint a larger region.")
    return grids
