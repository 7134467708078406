"""``Pixels.resized`` for an ONNX graph: pictures of any size to the network's input."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dfm_mlflow.network.extractor import Extractor

_MOST_BITS = 22  # of a weight's fraction in torch's fixed-point arithmetic


class PixelsForOnnx(nn.Module):
    """From pictures (n, height, width, 3) to pixels (n, 3, H, W), both uint8.

    Restates :meth:`Pixels.resized`, whose sizes are Python's numbers, which tracing would fix to
    those of the example; a test compares both with each other. ONNX has an antialiased Resize, but
    it rounds 1 value in 1,000 to the next of 256 levels, which moves a score by up to 1 %. Here
    both axes are matrix products with torch's own fixed-point weights, whole numbers that double
    precision adds up without error.
    """

    def __init__(self, extractor: Extractor):
        super().__init__()
        self.size, self.keep = extractor.size, extractor.resize == "keep"
        self.roi = None if extractor.roi is None else torch.from_numpy(extractor.roi)
        self.colour = torch.tensor(extractor.padding, dtype=torch.float64).view(1, 3, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Paint, resize and pad `image` of shape (n, height, width, 3), uint8."""
        planes = image.permute(0, 3, 1, 2).double()
        given = image.shape[1:3]
        if self.roi is not None:
            rows, columns = (_nearest(a, b) for a, b in zip(given, self.roi.shape, strict=True))
            planes = torch.where(self.roi[rows][:, columns], planes, self.colour)
        target = self._target(given)
        first = [torch.floor((full - t) / 2) for full, t in zip(self.size, target, strict=True)]
        for axis in (1, 0):  # torch resizes rows first, and rounds between
            weights, bits = _weights(given[axis], target[axis], self.size[axis], first[axis])
            product = planes @ weights.T if axis else weights @ planes
            planes = ((product + bits / 2) / bits).floor().clamp(0, 255)
        if self.keep:
            inside = [
                _inside(full, t, f) for full, t, f in zip(self.size, target, first, strict=True)
            ]
            planes = torch.where(inside[0][:, None] & inside[1], planes, self.colour)
        return planes.to(torch.uint8)

    def _target(self, given: Any) -> list[Tensor]:
        full = [torch.full((), s, dtype=torch.float64) for s in self.size]
        if not self.keep:
            return full
        # in double precision and rounding to even, as Python does
        size = [torch.full((), s, dtype=torch.float64) for s in given]
        ratio = torch.minimum(full[0] / size[0], full[1] / size[1])
        return [(s * ratio).round().clamp(min=1) for s in size]


def _weights(given: Any, target: Tensor, full: int, first: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of shape (full, given) of an antialiased resize along one axis, and their unit.

    They are whole numbers, as torch's for uint8: of as many bits as let the largest fit 15, by
    ``compute_index_ranges_int16_weights`` of ATen's ``UpSampleKernel.cpp``. Pixels of the padding
    have none.
    """
    scale = torch.full((), given, dtype=torch.float64) / target
    centre = scale * (torch.arange(full, dtype=torch.float64) - first + 0.5)
    position = torch.arange(given, dtype=torch.float64) + 0.5
    far = (position - centre[:, None]).abs() / scale.clamp(min=1)
    weights = (1 - far).clamp(min=0) * _inside(full, target, first)[:, None]
    weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-9)
    units = 2.0 ** torch.arange(1, _MOST_BITS + 1, dtype=torch.float64)
    fits = (weights.max() * units + 0.5).floor() < 2**15
    bits = torch.where(fits, units, 1.0).max()
    return (weights * bits + 0.5).floor(), bits


def _inside(full: int, target: Tensor, first: Tensor) -> Tensor:
    index = torch.arange(full, dtype=torch.float64) - first
    return (index >= 0) & (index < target)


def _nearest(new: Any, old: int) -> Tensor:
    """Index of ``tiles.scaled_mask``, ``(i + 0.5) * old / new``, in whole numbers."""
    index: Tensor = (2 * torch.arange(new) + 1) * old // (2 * new)
    return index


def picture_like(size: tuple[int, int], seed: int) -> np.ndarray:
    """Make an RGB picture with coarse and fine structure, the same for the same `seed`.

    Gives (height, width, 3) uint8.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    waves = sum(
        amplitude * np.sin(fy * y + fx * x + phase)[:, :, None]
        for amplitude, (fy, fx), phase in zip(
            (40, 25, 10), rng.uniform(0.01, 0.4, (3, 2)), rng.uniform(0, 6, 3), strict=True
        )
    )
    noise = rng.normal(0, 6, (*size, 3))
    picture: np.ndarray = (rng.uniform(90, 160, 3) + waves + noise).clip(0, 255).astype(np.uint8)
    return picture
