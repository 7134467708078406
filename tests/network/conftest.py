import io

import numpy as np
import pytest
import torch
from PIL import Image

from dfm_mlflow.network.backbones import build_backbone
from dfm_mlflow.network.extractor import Extractor

from ..conftest import texture

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def backbone():
    return build_backbone("resnet18", ("layer2",), (64, 64))


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


PICTURES = [png(texture(np.random.default_rng(i), 80)) for i in range(11)]


def make(backbone, **options):
    size = options.pop("size", (64, 64))
    resize = options.pop("resize", "stretch")
    return Extractor(backbone, size, resize, options.pop("pooling", 2), CPU, **options)
