"""Presets: what an option that is left at ``auto`` becomes."""

import re
from typing import Any

# Networks of torchvision and timm that give tokens of one resolution, by their names: a preset must
# know them before anything is built.
_FAMILIES = "vit|deit3?|beit(v2|3)?|eva(02)?|samvit|aimv2|flexivit|levit"
TRANSFORMER = rf"(timm:)?(test_vit\d?|({_FAMILIES})_)"

SECOND = "2:"  # before the name of a layer of the second of two backbones

_SHARP = {
    "backbone": "resnet18",
    "layers": "stride:8,stride:16",
    "pooling": "stride:16+stride:32,stride:16+stride:32+stride:64",
    "aggregate": "top:0.05",
    "normalize": "blend",
}
PRESETS: dict[str, dict[str, Any]] = {
    # Why: stride 8 sees small defects, stride 16 parts and faint large ones; cells of 16 pixels
    # keep a small defect, those of 32 and 64 average the noise of single positions away, for large
    # faint ones; dividing by what held-out good pictures show weighs maps and positions alike; the
    # mean of the top twentieth keeps a defect of a few cells from drowning in a good rest. The
    # form was chosen on the development sets: docs/sharpness.md.
    "default": _SHARP | {"image_size": "256"},
    "fine": _SHARP | {"image_size": "384"},
    # The published recipe for frozen tokens (SubspaceAD, CVPR 2026): one subspace over the cells of
    # all pictures, the mean of middle blocks, the top hundredth of a lightly blurred map. Nothing
    # of it is tuned on test labels: docs/transformers.md.
    "tokens": {
        "backbone": "timm:vit_small_patch14_dinov2.lvd142m",
        "layers": "depth:0.5-0.8",
        "pooling": "1",
        "image_size": "448",
        "subspace": "cell",
        "pca_level": "0.99",
        "blur": "3",
        "aggregate": "top:0.01",
        "normalize": "global",
    },
    # Cells of tokens tell much from few pictures, whole pictures from many: each of `tokens` and
    # `default` gives a score, and they weigh what their subspaces explain of held-out pictures.
    "fusion": {
        "backbone": "timm:vit_small_patch14_dinov2.lvd142m+resnet18",
        "layers": "depth:0.5-0.8,2:stride:8,2:stride:16",
        "pooling": "1,stride:16+stride:32,stride:16+stride:32+stride:64",
        "image_size": "448",
        "subspace": "cell,picture,picture",
        "pca_level": "0.99,0.97,0.97",
        "aggregate": "top:0.01,top:0.05,top:0.05",
        "normalize": "global,blend,blend",
    },
    "anomalib-0.3": {
        "backbone": "resnet18",
        "layers": "avgpool",
        "pooling": "1",
        "image_size": "256",
        "aggregate": "sum",
        "augment": "none",
    },
    "anomalib": {
        "backbone": "resnet18",
        "layers": "stride:16",
        "pooling": "2",
        "image_size": "256",
        "aggregate": "sum",
        "augment": "none",
    },
    "accurate": {
        "backbone": "efficientnet_b5",
        "layers": "features.6",
        "pooling": "2",
        "image_size": "456",
        "aggregate": "sum",
        "augment": "none",
    },
}
_COMMON = {
    "resize": "stretch",
    "pca_level": "0.97",
    "subspace": "picture",
    "blur": "none",
    "score": "fre",
    "normalize": "none",
}


def is_transformer(backbone: str) -> bool:
    """Whether a `backbone`, by its name, is a vision transformer of one resolution, or has one."""
    return any(re.match(TRANSFORMER, part) for part in backbone.split("+"))


def decided(preset: str, backbone: str) -> dict[str, Any]:
    """What ``auto`` means, by option."""
    if is_transformer(backbone):
        preset = "fusion" if "+" in backbone else "tokens"
    values = {**_COMMON, **PRESETS[preset]}
    if preset == "anomalib" and backbone.startswith("wide_resnet50"):
        values["pooling"] = "4"  # as published for Wide ResNet-50
    return values
