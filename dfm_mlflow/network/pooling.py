"""Features that were extracted once, pooled in several ways.

The rules are those of :class:`~dfm_mlflow.network.extractor.Extractor`.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

Rule = int | str


def rules_of(pooling: Rule | Sequence[Sequence[Rule]], n_layers: int) -> Sequence[Sequence[Rule]]:
    """Scales of each of `n_layers` layers: one rule is that of all.

    `pooling` is one rule, or the scales of each of `n_layers` layers.
    """
    return [[pooling]] * n_layers if isinstance(pooling, int | str) else pooling


def base_rule(rules: set[Rule]) -> Rule:
    """Pooling to extract with, from which all `rules` follow."""
    if len(rules) == 1:
        return next(iter(rules))
    if all(isinstance(rule, str) for rule in rules):
        return min((str(rule) for rule in rules), key=_pixels)
    return 1


def kernel_of(rule: Rule, base: Rule, features: Tensor, size: tuple[int, int]) -> tuple[int, int]:
    """Kernel that pools features, extracted under one rule, to another.

    Shapes: features (n, C, h, w).
    """
    if rule == base:
        return 1, 1
    high, wide = features.shape[2:]
    if isinstance(rule, str):
        kernel = [
            max(1, round(_pixels(rule) * cells / pixels))
            for cells, pixels in zip((high, wide), size, strict=True)
        ]
    else:
        kernel = [rule, rule]
    return min(kernel[0], high), min(kernel[1], wide)


def pool(features: Tensor, kernel: tuple[int, int]) -> Tensor:
    """Average over cells; a partial window at the border averages what it has.

    Shapes: features (n, C, h, w); gives (n, C, h', w'): the sizes are rounded up.
    """
    return features if kernel == (1, 1) else F.avg_pool2d(features, kernel, ceil_mode=True)


def _pixels(rule: str) -> int:
    return int(rule.removeprefix("stride:"))
