"""What a network would give and need, told from shapes alone unless computing takes no time."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dfm_mlflow.errors import BackboneError, DfmError
from dfm_mlflow.network.backbones import Backbone, is_small
from dfm_mlflow.network.forward import Network
from dfm_mlflow.network.pooling import Rule


@dataclass(frozen=True)
class Shapes:
    """Of one picture's way through a network."""

    maps: list[tuple[int, ...]]  # ``(C, h, w)`` of each layer and scale, pooled
    largest: int  # numbers in the largest array on the way; 0 where that is small


def shapes_of(
    backbone: Backbone,
    size: tuple[int, int],
    pooling: Rule | Sequence[Sequence[Rule]],
    tile: int | None,
) -> Shapes:
    """Follow the shapes of one picture."""
    small, seen = is_small(backbone.module, size), _Largest()
    device = torch.device("cpu" if small else "meta")
    try:
        with torch.inference_mode(), device, nullcontext() if small else seen:
            network = Network(backbone, size, pooling, device, "fp32", tile=tile, fuse=False)
            network.module = _once(network.module)
            maps = network.run(torch.zeros(1, 3, *size, dtype=torch.uint8))
    except DfmError:
        raise
    except Exception as error:  # a network may do anything with a size that it was not made for
        raise BackboneError(
            f"{backbone.name} gives no feature maps of {size[0]}x{size[1]} pixels "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]}): choose another "
            "image_size."
        ) from None
    return Shapes([tuple(m.shape[1:]) for m in maps], seen.largest)


def _once(module: Any) -> Any:
    """Follow the first tile alone: all have one shape, and there can be thousands."""
    known: dict[torch.Size, Any] = {}

    def run(inputs: Tensor) -> Any:
        if inputs.shape not in known:
            known[inputs.shape] = module(inputs)
        return known[inputs.shape]

    return run


class _Largest(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # not in its stubs
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        found = [t.numel() for t in tree_leaves(result) if isinstance(t, Tensor)]
        self.largest = max([self.largest, *found])
        return result
