"""The network on its device: precision, passes that fit the memory, pooled feature maps."""

import copy
import logging
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from dfm_mlflow.errors import BackboneError, DeviceError
from dfm_mlflow.network.backbones import Backbone
from dfm_mlflow.network.device import DTYPES
from dfm_mlflow.network.fusion import fused
from dfm_mlflow.network.pooling import Rule, kernel_of, pool, rules_of
from dfm_mlflow.network.tiles import CELL, run_tiles
from dfm_mlflow.network.tracing import running
from dfm_mlflow.network.transformers import check_size

# Pictures in one pass of a CPU: few activations stay in its caches, and no large array is asked of
# the system and given back at every layer (1.3 times faster than 16 on two cores).
CPU_PASS = 4
_TRIED = 384  # pixels; a larger input shows no more of whether fused operations give the same

_logger = logging.getLogger(__name__)


class Network:
    """A backbone's layers, pooled."""

    def __init__(
        self,
        backbone: Backbone,
        size: tuple[int, int],
        pooling: Rule | Sequence[Sequence[Rule]],
        device: torch.device,
        precision: str,
        *,
        tile: int | None = None,
        fuse: bool = True,
    ):
        self.layers, self.size, self.tile = backbone.layers, size, tile
        self._unit = backbone.patch or CELL
        if backbone.patch:
            for what, sides in (("image_size", size), ("tile", (tile, tile) if tile else size)):
                check_size(backbone.name, sides, backbone.patch, what)
        self._rules = rules_of(pooling, len(backbone.layers))
        self.device, self._dtype = device, DTYPES[precision]
        if device.type == "cuda" and precision == "fp32":
            # cuDNN would round to 10 bits by itself: half a percent beside a CPU's features.
            torch.backends.cudnn.allow_tf32 = False
        self._fitting = sys.maxsize  # pictures that the memory of the device was seen to hold
        self.module = copy.deepcopy(backbone.module).to(  # type: ignore[call-overload]  # not in its stubs: all three
            device=device, dtype=self._dtype, memory_format=torch.channels_last
        )
        if fuse and device.type == "cpu":
            height, width = (tile, tile) if tile else size
            self.module = fused(self.module, (min(height, _TRIED), min(width, _TRIED)))
        mean = torch.tensor(backbone.mean, device=device)
        std = torch.tensor(backbone.std, device=device)
        # Of a row of pixels, colours beside each other: along three values nothing is vectorised.
        self._scale, self._offset = (v.repeat(size[1]) for v in (1 / (255 * std), -mean / std))

    @torch.inference_mode()
    def run(self, pixels: Tensor) -> list[Tensor]:
        """Run the network on pixels.

        A GPU without memory for all of them is given halves of them.

        Shapes: pixels (n, 3, H, W) uint8; gives (n, C, h, w) float32, one for each layer and scale.
        """
        step = self._fitting
        if self.device.type == "cpu":
            step = min(step, max(CPU_PASS, torch.get_num_threads()))
        parts: list[list[Tensor]] = []
        start = 0
        while start < len(pixels):
            maps = self._forward(pixels[start : start + step])
            if maps is None:  # outside the except clause, whose traceback holds the activations
                step = self._smaller(min(step, len(pixels) - start))
                continue
            parts.append(maps)
            start += step
        if len(parts) == 1:
            return parts[0]
        return [torch.cat(maps) for maps in zip(*parts, strict=True)]

    def _forward(self, pixels: Tensor) -> list[Tensor] | None:
        try:
            with running():
                return self.maps(pixels)
        except torch.OutOfMemoryError:
            return None

    def maps(self, pixels: Tensor) -> list[Tensor]:
        """Run the network once.

        Shapes: pixels (n, 3, H, W) uint8; gives (n, C, h, w) float32.
        """
        if pixels.device != self.device:
            pixels = pixels.pin_memory().to(self.device, non_blocking=True)
        rows = pixels.permute(0, 2, 3, 1).flatten(2)
        levels = torch.addcmul(self._offset, rows.float(), self._scale).to(self._dtype)
        inputs = levels.unflatten(2, (-1, 3)).permute(0, 3, 1, 2)
        outputs = (
            run_tiles(self.module, inputs, self.tile, self._unit)
            if self.tile
            else self.module(inputs)
        )
        return [
            self._pool(name, outputs[name], rule)
            for name, rules in zip(self.layers, self._rules, strict=True)
            for rule in rules
        ]

    def _smaller(self, n: int) -> int:
        if n == 1:
            raise DeviceError(
                f"{self.device} has no memory for one picture of {self.size[0]}x{self.size[1]} "
                "pixels: close other programs, or give a smaller image_size, tile or backbone."
            )
        self._fitting = n // 2
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        _logger.warning(
            "%s has no memory for %d pictures at once: going on with %d.", self.device, n, n // 2
        )
        return self._fitting

    def _pool(self, layer: str, output: Tensor, rule: Rule) -> Tensor:
        if output.ndim == 2:
            output = output[:, :, None, None]
        if output.ndim != 4:
            raise BackboneError(
                f"The layer {layer} gives {output.ndim} axes, not a feature map (n, C, h, w): "
                "choose a convolutional layer, or a vision transformer such as "
                "timm:vit_small_patch14_dinov2.lvd142m."
            )
        output = output.float()
        return pool(output, kernel_of(rule, 1, output, self.size)).contiguous()
