"""Two frozen networks that see the same picture, as one backbone."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dfm_mlflow.config.presets import SECOND

Values = tuple[float, ...]


class Pair(nn.Module):
    """Two networks beside each other."""

    def __init__(self, first: nn.Module, second: nn.Module, scale: Values, offset: Values):
        super().__init__()
        self.first, self.second = first, second
        self.scale, self.offset = scale, offset

    @classmethod
    def of(
        cls,
        first: nn.Module,
        second: nn.Module,
        of_first: tuple[Values, Values],
        of_second: tuple[Values, Values],
    ) -> "Pair":
        """Put two networks beside each other."""
        channels = list(zip(*of_first, *of_second, strict=True))
        scale = tuple(own / other for _, own, _, other in channels)
        offset = tuple((mean - other) / std for mean, _, other, std in channels)
        return cls(first, second, scale, offset)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Give the maps of both.

        Shapes: images (n, 3, H, W).
        """
        found: dict[str, Tensor] = self.first(images)
        if any(s != 1 for s in self.scale) or any(self.offset):
            images = images * _column(images, self.scale) + _column(images, self.offset)
        return {**found, **{SECOND + name: m for name, m in self.second(images).items()}}

    def with_parts(self, change: Callable[[nn.Module], nn.Module]) -> "Pair":
        """Return a pair of what `change` makes of each network."""
        return Pair(change(self.first), change(self.second), self.scale, self.offset)


def layers_of(layers: tuple[str, ...], second: bool) -> tuple[str, ...]:
    """Names of the layers of one of two networks, as it knows them."""
    mine = [layer for layer in layers if layer.startswith(SECOND) == second]
    return tuple(layer.removeprefix(SECOND) for layer in mine)


def _column(like: Tensor, values: Values) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, 3, 1, 1)
