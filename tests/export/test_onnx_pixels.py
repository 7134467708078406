import numpy as np
import pytest
import torch

from dfm_mlflow.export.onnx_pixels import PixelsForOnnx, picture_like
from dfm_mlflow.network.backbones import build_backbone
from dfm_mlflow.network.extractor import Extractor

ROI = np.random.default_rng(0).random((50, 70)) > 0.3


@pytest.mark.parametrize("roi", [None, ROI], ids=["whole", "roi"])
@pytest.mark.parametrize("resize", ["stretch", "keep"])
def test_pixels_are_those_of_the_extractor(resize, roi):
    """Every single value, of noise too, for pictures smaller, larger and of the same size."""
    size = (48, 96)
    backbone = build_backbone("resnet18", ("layer1",), size)
    extractor = Extractor(backbone, size, resize, 1, torch.device("cpu"), roi=roi)
    pixels = PixelsForOnnx(extractor)
    rng = np.random.default_rng(1)
    shapes = [size, (24, 48), (50, 70), (2, 300), (431, 517), (900, 61)]
    shapes += [tuple(rng.integers(10, 400, 2)) for _ in range(10)]
    for shape in shapes:
        for image in (picture_like(shape, 2), rng.integers(0, 256, (*shape, 3), dtype=np.uint8)):
            found = pixels(torch.from_numpy(image)[None])[0]
            assert torch.equal(found, extractor.pixels.resized(image)), shape
