"""From an RGB picture to the pixels that the network sees: region of interest, resize, padding."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dfm_mlflow.images.picture import spread
from dfm_mlflow.network.tiles import scaled_mask


class Pixels:
    """Resizing as one model does it.

    Shapes: roi (H, W) bool.
    """

    def __init__(
        self,
        size: tuple[int, int],
        resize: str,
        padding: tuple[int, ...],
        roi: np.ndarray | None,
    ):
        self.size, self.resize, self.padding, self.roi = size, resize, padding, roi

    def resized(self, image: np.ndarray) -> Tensor:
        """Resize an RGB or grey array to the network's input, antialiased, as uint8 ``(3, H, W)``.

        The thread that decoded resizes, so that the network sees the same on every device.

        Shapes: image (H, W, 3) or (H, W) uint8; gives (3, H, W) uint8.
        """
        if self.roi is not None:
            inside = scaled_mask(self.roi, _shape(image))
            colours = image[:, :, None] if image.ndim == 2 else image
            image = np.where(inside[:, :, None], colours, np.array(self.padding, np.uint8))
        return self._fitted(image, self.padding)

    def roi_cells(self, grid: tuple[int, int]) -> np.ndarray:
        """Which cells of a feature grid the region of interest touches.

        Gives (h, w) bool.
        """
        if self.roi is None:
            return np.ones(grid, dtype=bool)
        mask = np.repeat((self.roi * np.uint8(255))[:, :, None], 3, axis=2)
        covered = self._fitted(mask, (0, 0, 0))[:1].float()
        return (F.adaptive_max_pool2d(covered[None], grid)[0, 0] > 0).numpy()

    def filled_part(self, size: tuple[int, int]) -> tuple[float, float]:
        """Share of the input's height and width that a picture fills."""
        target = self._target(size)
        return target[0] / self.size[0], target[1] / self.size[1]

    def _target(self, size: tuple[int, int]) -> tuple[int, int]:
        if self.resize == "stretch":
            return self.size
        ratio = min(self.size[0] / size[0], self.size[1] / size[1])
        return max(1, round(size[0] * ratio)), max(1, round(size[1] * ratio))

    def _fitted(self, image: np.ndarray, padding: tuple[int, ...]) -> Tensor:
        # The three colours of a pixel stay beside each other, as oneDNN computes with them; with
        # another stride of the one picture torch orders the result by colours.
        colours = image[:, :, None] if image.ndim == 2 else image
        pixels = torch.from_numpy(colours)[None].permute(0, 3, 1, 2)
        target = self._target(_shape(image))
        if tuple(pixels.shape[2:]) != target:
            pixels = F.interpolate(
                pixels, target, mode="bilinear", antialias=True, align_corners=False
            )
        if image.ndim == 2:  # the three colours only now, of fewer pixels
            pixels = torch.from_numpy(spread(pixels[0, 0].numpy()))[None].permute(0, 3, 1, 2)
        if target == self.size:
            return pixels[0]
        padded = torch.tensor(padding, dtype=torch.uint8).view(3, 1, 1).repeat(1, *self.size)
        top, left = ((s - t) // 2 for s, t in zip(self.size, target, strict=True))
        padded[:, top : top + target[0], left : left + target[1]] = pixels[0]
        return padded


def stacked(inputs: Sequence[Tensor]) -> Tensor:
    """Put inputs of the network together, the three colours of a pixel beside each other.

    ``torch.stack`` orders by colours, which costs as much as the resizing, and the network's input
    is ordered back.

    Shapes: inputs (3, H, W) uint8; gives (n, 3, H, W) uint8.
    """
    if len(inputs) == 1:
        return inputs[0][None]
    return torch.stack([one.permute(1, 2, 0) for one in inputs]).permute(0, 3, 1, 2)


def _shape(image: np.ndarray) -> tuple[int, int]:
    return image.shape[0], image.shape[1]
