import numpy as np
import pytest
import torch

from dfm_mlflow.errors import BackboneError
from dfm_mlflow.network.backbones import build_backbone
from dfm_mlflow.network.extractor import Extractor
from dfm_mlflow.network.shapes import shapes_of


@pytest.mark.parametrize(
    ("name", "layers", "size", "pooling", "tile"),
    [
        ("resnet18", ("layer1", "layer3"), (96, 64), "stride:32", None),
        ("resnet18", ("layer2", "avgpool"), (99, 67), 2, None),
        ("resnet18", ("layer2",), (256, 160), 1, 128),
        ("efficientnet_b0", ("features.3",), (75, 64), 3, None),
        ("googlenet", ("inception3a",), (64, 64), 999, None),
    ],
)
def test_they_are_those_that_the_network_gives(name, layers, size, pooling, tile):
    backbone = build_backbone(name, layers, size)
    extractor = Extractor(backbone, size, "stretch", pooling, torch.device("cpu"), tile=tile)
    maps = extractor.extract([np.zeros((*size, 3), np.uint8)]).features
    assert shapes_of(backbone, size, pooling, tile).maps == [tuple(m.shape[1:]) for m in maps]


@pytest.mark.parametrize("tile", [None, 128])
def test_the_largest_input_costs_nothing(tile):
    backbone = build_backbone("vgg11", ("features.1",), (4096, 4096))
    found = shapes_of(backbone, (4096, 4096), 512, tile)
    assert found.maps == [(64, 8, 8)]
    assert found.largest == 64 * 4096**2


def test_a_size_that_a_network_cannot_take_is_one_sentence():
    backbone = build_backbone("inception_v3", ("Mixed_5b",), (20, 20))
    with pytest.raises(BackboneError, match=r"inception_v3 gives no feature maps of 20x20 pixels"):
        shapes_of(backbone, (20, 20), 1, None)
