"""Small detectors with random weights, and pictures for them."""

import functools
import io

import numpy as np
import torch
from PIL import Image

from dfm_mlflow.config import Options
from dfm_mlflow.detector import class_fit, layer_fit
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.detector.layer_fit import Deal
from dfm_mlflow.network.backbones import build_backbone
from dfm_mlflow.network.copies import copies_of
from dfm_mlflow.network.extractor import Extractor

from .conftest import texture


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def pictures(n: int, seed: int = 0, defect: bool = False, shift: int = 0) -> list[bytes]:
    return list(_pictures(n, seed, defect, shift))


@functools.cache
def _pictures(n: int, seed: int, defect: bool, shift: int) -> tuple[bytes, ...]:
    rng = np.random.default_rng(seed)
    return tuple(
        png((texture(rng, defect=defect).astype(int) + shift).clip(0, 255).astype(np.uint8))
        for _ in range(n)
    )


def fit(
    classes: dict[str, list[bytes]] | None = None, groups=None, roi=None, **options
) -> AnomalyDetector:
    """Two layers whose grids differ, unless said otherwise."""
    classes = classes or {"stripes": pictures(30)}
    given = {
        "image_size": "64",
        "layers": "layer1,layer2",
        "pooling": "2",
        "category": ",".join(classes),
        **options,
    }
    resolved = Options.parse(given).resolve()
    name = resolved.backbone if "timm:" in resolved.backbone else "resnet18"
    backbone = build_backbone(name, resolved.layer_names, resolved.network_size, seed=1)
    layers = ",".join(backbone.layers)  # a window of depth is named
    resolved = resolved.model_copy(update={"layers": layers})
    extractor = Extractor(
        backbone,
        resolved.size,
        resolved.resize,
        resolved.pooling_rules,
        torch.device(options.get("device", "cpu")),
        options.get("precision", "fp32"),
        tile=resolved.tile_size,
        roi=roi,
    )
    labels = [name for name, images in classes.items() for _ in images]
    sources = [p for images in classes.values() for p in images]
    extraction = extractor.extract(sources, copies=copies_of(resolved.augment))
    weights = {"id": "random:1", "sha256": ""}
    return AnomalyDetector.fit(resolved, extractor, extraction, labels, weights, groups)


def deal(n, groups=None, seed=42):
    """Folds and groups of n pictures with different contents."""
    return Deal.of([str(i) for i in range(n)], groups, seed)


def fit_class(name, features, groups, grids, options):
    """A class fitted to pictures with different contents."""
    dealt = deal(len(features[0]), groups, options.seed)
    return class_fit.fit_class(name, features, dealt, grids, options)


def fit_layers(features, groups, grids, options):
    """Subspaces fitted to pictures with different contents."""
    return layer_fit.fit_layers(
        features, deal(len(features[0]), groups, options.seed), grids, options
    )
