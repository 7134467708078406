"""Vision transformers: the tokens of their blocks, back on the grid of the picture's patches.

timm's and torchvision's networks of one resolution, by name. Class and register tokens are dropped,
positions are resampled once when the network is built for its size, and nothing is kept after the
last block that is used. Layers are named by block: ``blocks.5``, ``blocks.5-8`` for the mean of
several, ``depth:0.5-0.8`` for those that lie there as a share of depth; ``:l2`` behind one scales
each token to length 1.
"""

import math
import re
import sys
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfm_mlflow.config.presets import is_transformer
from dfm_mlflow.errors import BackboneError
from dfm_mlflow.network import timm_backbones, vision

_LAYER = re.compile(
    r"(?:blocks\.(?P<first>\d+)(?:-(?P<last>\d+))?|depth:(?P<low>[\d.]+)-(?P<high>[\d.]+))"
    r"(?P<unit>:l2)?"
)


@dataclass(frozen=True)
class Window:
    """Consecutive blocks whose tokens are averaged."""

    first: int
    last: int
    unit: bool = False  # whether each averaged token is scaled to length 1

    @property
    def name(self) -> str:
        """As a layer: ``blocks.5``, ``blocks.5-8`` or ``blocks.5-8:l2``."""
        span = f"blocks.{self.first}" + (f"-{self.last}" if self.last > self.first else "")
        return span + (":l2" if self.unit else "")


class Tokens(nn.Module):
    """A transformer up to its last used block."""

    def __init__(self, model: nn.Module, windows: tuple[Window, ...]):
        super().__init__()
        self.model, self.windows = model, windows
        used = {b for w in windows for b in range(w.first, w.last + 1)}
        self.blocks = sorted(used)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Give the grid of each window.

        Shapes: images (n, 3, H, W); gives (n, C, H / patch, W / patch): by the window's name.
        """
        grids = dict(zip(self.blocks, self._grids(images), strict=True))
        return {w.name: _mean(grids, w) for w in self.windows}

    def _grids(self, images: Tensor) -> list[Tensor]:
        if isinstance(self.model, vision.models.VisionTransformer):
            return _torchvision_grids(self.model, images, self.blocks)
        forward: Any = self.model.forward_intermediates  # of timm
        grids: list[Tensor] = forward(
            images, indices=self.blocks, norm=False, output_fmt="NCHW", intermediates_only=True
        )
        return grids


def _mean(grids: dict[int, Tensor], window: Window) -> Tensor:
    own = [grids[i] for i in range(window.first, window.last + 1)]
    mean = own[0] if len(own) == 1 else torch.stack(own).mean(0)
    return F.normalize(mean, dim=1) if window.unit else mean


def whole(name: str, size: tuple[int, int]) -> nn.Module:
    """Build the whole network for inputs of a size, with random weights."""
    if not name.startswith(timm_backbones.PREFIX):
        return _torchvision(name, size)
    model: Any = timm_backbones.of_size(name, size)
    patch = patch_of(model, name)
    check_size(name, size, patch)
    grid = tuple(model.patch_embed.grid_size)
    if grid != (size[0] // patch, size[1] // patch):
        raise no_grid(name)
    whole_model: nn.Module = model
    return whole_model


def no_grid(name: str) -> BackboneError:
    """The error of a network, called `name`, whose tokens do not lie on a grid."""
    return BackboneError(
        f"{name} gives no grid of tokens, one for each patch of a picture: choose a plain vision "
        "transformer, such as timm:vit_small_patch14_dinov2.lvd142m, or a convolutional backbone."
    )


def patch_of(model: nn.Module, name: str) -> int:
    """Side of a patch of a `model`, called `name`, in pixels."""
    if isinstance(model, vision.models.VisionTransformer):
        return int(model.patch_size)
    embed: Any = getattr(model, "patch_embed", None)
    patch = getattr(embed, "patch_size", None)
    able = all(hasattr(model, n) for n in ("blocks", "forward_intermediates"))
    if patch is None or not able or not hasattr(model, "prune_intermediate_layers"):
        raise no_grid(name)
    patch = (patch, patch) if isinstance(patch, int) else tuple(patch)
    stride = tuple(embed.proj.stride) if hasattr(embed, "proj") else patch
    if patch[0] != patch[-1] or stride[0] != patch[0]:
        raise no_grid(name)
    return int(patch[0])


def check_size(name: str, size: tuple[int, int], patch: int, what: str = "image_size") -> None:
    """Refuse inputs that patches do not cut."""
    for side in size:
        if side % patch:
            below = max(patch, side // patch * patch)
            raise BackboneError(
                f"{what}={_spelled(size)} is not a multiple of the patch of {patch} pixels of "
                f"{name}: in place of {side} give {below} or {(side // patch + 1) * patch}."
            )


def _spelled(size: tuple[int, int]) -> str:
    return str(size[0]) if size[0] == size[1] else f"{size[0]}x{size[1]}"


def windows_of(name: str, layers: tuple[str, ...], n_blocks: int) -> tuple[Window, ...]:
    """Read names of layers."""
    return tuple(_window(name, layer, n_blocks) for layer in layers)


def _window(name: str, layer: str, n: int) -> Window:
    found = _LAYER.fullmatch(layer)
    if found is None:
        raise BackboneError(
            f"{name} has no layer {layer!r}: it is a transformer of {n} blocks; give blocks.0 to "
            f"blocks.{n - 1}, the mean of several such as blocks.{n // 2}-{n - 2}, or a window of "
            "its depth such as depth:0.5-0.8."
        )
    unit = found["unit"] is not None
    if found["first"] is not None:
        first, last = int(found["first"]), int(found["last"] or found["first"])
        if first > last or last >= n:
            raise BackboneError(
                f"{name} has no layer {layer!r}: its {n} blocks are blocks.0 to blocks.{n - 1}."
            )
        return Window(first, last, unit)
    low, high = float(found["low"]), float(found["high"])
    inside = [i for i in range(n) if low - 1e-9 <= (i + 1) / n <= high + 1e-9]
    if not inside:
        raise BackboneError(
            f"The window {layer} holds no block of {name}: its {n} blocks end at 1/{n}, 2/{n} and "
            "so on of its depth, up to 1; give a wider one such as depth:0.5-0.8."
        )
    return Window(inside[0], inside[-1], unit)


def n_blocks_of(model: nn.Module) -> int:
    """Blocks of a whole `model`."""
    blocks: Any = (
        model.encoder.layers if isinstance(model, vision.models.VisionTransformer) else model.blocks
    )
    return len(blocks)


def truncated(model: nn.Module, windows: tuple[Window, ...]) -> Tokens:
    """Cut a whole network after its last used block."""
    last = max(w.last for w in windows)
    if isinstance(model, vision.models.VisionTransformer):
        model.encoder.layers = model.encoder.layers[: last + 1]
        model.encoder.ln = model.heads = nn.Identity()
    else:
        model.prune_intermediate_layers(  # type: ignore[operator]  # of timm
            [last], prune_norm=True, prune_head=True
        )
    return Tokens(model, windows).eval()


def fitted_state(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give published weights the names and positions of a network, by its library's own rule."""
    state = {k: v.float() for k, v in state.items()}
    if isinstance(model, vision.models.VisionTransformer):
        key = "encoder.pos_embedding"
        grid = model.grid
        if key in state:
            state[key] = _resampled(state[key], grid)
        return state
    own_filter = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    fitted: dict[str, Tensor] = own_filter(state, model) if own_filter else state
    return fitted


# -- torchvision -----------------------------------------------------------------------------------


def _torchvision(name: str, size: tuple[int, int]) -> nn.Module:
    if name not in vision.models.list_models(module=vision.models):
        known = [n for n in vision.models.list_models(module=vision.models) if is_transformer(n)]
        raise BackboneError(
            f"There is no backbone {name!r}: the transformers are {', '.join(known)}, and "
            "timm:<name>."
        )
    model: Any = vision.models.get_model(name, weights=None)
    check_size(name, size, model.patch_size)
    model.grid = (size[0] // model.patch_size, size[1] // model.patch_size)
    width = model.hidden_dim
    model.encoder.pos_embedding = nn.Parameter(
        torch.empty(1, 1 + math.prod(model.grid), width).normal_(std=0.02)  # as torchvision draws
    )
    whole_model: nn.Module = model
    return whole_model


def _torchvision_grids(model: Any, images: Tensor, blocks: list[int]) -> list[Tensor]:
    """Run torchvision's own modules; its ``forward`` takes square inputs of one size alone."""
    tokens = model.conv_proj(images).flatten(2).transpose(1, 2)
    tokens = torch.cat([model.class_token.expand(len(images), -1, -1), tokens], dim=1)
    tokens = tokens + model.encoder.pos_embedding
    grids = []
    for i, block in enumerate(model.encoder.layers):
        tokens = block(tokens)
        if i in blocks:
            grids.append(tokens[:, 1:].transpose(1, 2).unflatten(2, model.grid).contiguous())
    return grids


def _resampled(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """``torchvision...interpolate_embeddings`` for inputs of any two sides."""
    side = math.isqrt(positions.shape[1] - 1)
    if (side, side) == grid:
        return positions
    if side * side != positions.shape[1] - 1:
        return positions  # whose shape does not fit, which is reported
    of_grid = positions[:, 1:].transpose(1, 2).unflatten(2, (side, side))
    of_grid = F.interpolate(of_grid, grid, mode="bicubic", align_corners=True)
    return torch.cat([positions[:, :1], of_grid.flatten(2).transpose(1, 2)], dim=1)
