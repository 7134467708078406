"""From the FRE maps of layers to one anomaly map, and from it to pictures."""

import io
import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dfm_mlflow.images.overlay import GOOD_LEVEL

_FINE = 5  # places a cell at which the largest value of a smooth map is looked for
MOST = 0.9  # share of held-out good pictures that stay under level 128 everywhere


def combine_layers(
    maps: list[Tensor], normalisers: list[Tensor], weights: Sequence[np.ndarray]
) -> Tensor:
    """Bring the maps of several layers to the finest of their grids and average them.

    Between cells a map is interpolated from those that count, and from no other: what is constant
    inside a region of interest is so up to the region's border, whatever its cells' size.

    Shapes: maps (n, h_l, w_l); normalisers (h_l, w_l) or (n, h_l, w_l); weights (h_l, w_l); gives
    (n, h, w).
    """
    grid = max(((m.shape[1], m.shape[2]) for m in maps), key=math.prod)
    parts = zip(maps, normalisers, weights, strict=True)
    return torch.stack([_weighed(m / u, w, grid) for m, u, w in parts]).mean(0)


def blurred(maps: Tensor, side: int, weights: np.ndarray) -> Tensor:
    """Average each cell with those around it that count.

    Shapes: maps (n, h, w); weights (h, w); gives (n, h, w).
    """

    def mean(values: Tensor) -> Tensor:
        return F.avg_pool2d(values[:, None], side, 1, side // 2, count_include_pad=False)[:, 0]

    if weights.all():
        return mean(maps)
    weight = torch.from_numpy(weights).to(maps)[None]
    return torch.where(weight > 0, mean(maps * weight) / mean(weight).clamp(min=1e-6), 0.0)


def _weighed(maps: Tensor, weights: np.ndarray, grid: tuple[int, int]) -> Tensor:
    if tuple(maps.shape[1:]) == grid or weights.all():
        return _to_grid(maps, grid)
    weight = torch.from_numpy(weights).to(maps)[None]
    share = _to_grid(weight, grid)
    return torch.where(share > 0, _to_grid(maps * weight, grid) / share.clamp(min=1e-6), 0.0)


def normaliser_of(maps: Tensor, how: str, floor: float = 0.3) -> Tensor:
    """Normaliser of a layer's map: the mean of the held-out maps of good pictures.

    Shapes: maps (n, h, w); gives (h, w).
    """
    mean = maps.mean(dim=0)
    if how == "none":
        return torch.ones_like(mean)
    inside = mean[mean > 0]
    overall = inside.mean() if len(inside) else torch.ones((), dtype=maps.dtype)
    if how == "global":
        return overall.expand_as(mean).clone()
    own = mean.clamp(min=floor * float(overall))
    return own if how == "position" else (own * overall).sqrt()


def largest_of(maps: Tensor) -> np.ndarray:
    """Largest value of each map as it is drawn, smooth.

    Shapes: maps (n, h, w); gives (n,).
    """
    if not len(maps):
        return np.empty(0)
    full = _smooth(maps, (_FINE * maps.shape[1], _FINE * maps.shape[2]))
    largest: np.ndarray = full.flatten(1).amax(dim=1).cpu().numpy()
    return largest


def scale_of(largest: np.ndarray) -> float:
    """Value of the maps that becomes level 128: what nine in ten good pictures stay under.

    A quantile over pictures, of each one's largest value: an odd picture counts once, however large
    the region is that stands out in it, and cannot blank the maps of all others.

    Shapes: largest (n,).
    """
    return float(np.quantile(largest, MOST)) if largest.size else 0.0


def to_level(full: Tensor, scale: float) -> np.ndarray:
    """Draw a map in 8-bit levels that mean the same in every picture of a model.

    Shapes: full (H, W); gives (H, W) uint8.
    """
    level = full * (GOOD_LEVEL / max(scale, math.ulp(1.0)))
    return level.clamp_(0, 255).round_().to(torch.uint8).cpu().numpy()


def smooth_map(
    values: Tensor, size: tuple[int, int], part: tuple[float, float] = (1.0, 1.0)
) -> Tensor:
    """Bring one map to the size of its picture, with the steps between its cells smoothed out.

    Shapes: values (h, w); gives size, float32.
    """
    whole = [round(s / p) for s, p in zip(size, part, strict=True)]
    # Blurred at no more than 512 pixels a side: more would hold nothing that the blur leaves.
    work = [min(s, max(512, c)) for s, c in zip(whole, values.shape, strict=True)]
    full = _smooth(values[None], (work[0], work[1]))
    if part != (1.0, 1.0):
        height, width = (max(1, round(w * p)) for w, p in zip(work, part, strict=True))
        top, left = (work[0] - height) // 2, (work[1] - width) // 2
        full = full[:, :, top : top + height, left : left + width]
    if tuple(full.shape[2:]) != tuple(size):
        full = F.interpolate(full, size, mode="bilinear", align_corners=False)
    return full[0, 0]


def _smooth(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring maps (n, h, w) to a size, the steps between their cells smoothed out: (n, 1, H, W)."""
    rows, columns = map(_stretch, maps.shape[1:], size)
    rows, columns = rows.to(maps.device), columns.to(maps.device)
    return (rows @ maps.float() @ columns.T)[:, None]


@lru_cache(maxsize=16)
def _stretch(cells: int, pixels: int) -> Tensor:
    """What a pixel of one axis takes of each cell: (pixels, cells).

    Bilinear interpolation and torchvision's `gaussian_blur` are linear, and act on each axis alone:
    two products give a whole map, in a tenth of the time of passes over its pixels.
    """
    sigma = max(0.1, 0.3 * pixels / cells)
    size = min(2 * math.ceil(2 * sigma) + 1, 2 * pixels - 1)
    reach = (size - 1) / (2 * math.sqrt(2))
    kernel = torch.softmax(torch.linspace(-reach, reach, size).div(sigma).pow(2).neg(), dim=0)
    each = torch.eye(cells)[:, None]
    full = F.interpolate(each, pixels, mode="linear", align_corners=False)
    padded = F.pad(full, [size // 2] * 2, mode="reflect")  # mirrored outside
    return F.conv1d(padded, kernel.view(1, 1, -1))[:, 0].T.contiguous()


def to_png(pixels: np.ndarray) -> bytes:
    """Encode `pixels` of shape (H, W) or (H, W, 3), uint8, in grey or RGB."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _to_grid(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    if tuple(maps.shape[1:]) == grid:
        return maps
    return F.interpolate(maps[:, None], grid, mode="bilinear", align_corners=False)[:, 0]
