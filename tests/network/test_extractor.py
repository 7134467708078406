import pytest
import torch

from dfm_mlflow.network.backbones import build_backbone
from dfm_mlflow.network.extractor import Extractor

from .conftest import PICTURES, make


def test_order_and_numbers_do_not_depend_on_batches(backbone):
    whole = make(backbone, batch_size=4).extract(PICTURES).features[0]
    assert whole.shape == (11, 128, 4, 4)
    single = torch.cat([make(backbone).extract([p]).features[0] for p in PICTURES])
    torch.testing.assert_close(whole, single, rtol=1e-5, atol=1e-6)


def test_bf16_comes_close(backbone):
    exact = make(backbone).extract(PICTURES[:2]).features[0]
    network = build_backbone("resnet18", ("layer2",), (64, 64))
    rough = make(network, precision="bf16").extract(PICTURES[:2]).features[0]
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).norm() / exact.norm() < 0.02


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("fp16", 0.01)])
def test_cuda_agrees_with_the_cpu(precision, tolerance):
    def network():
        return build_backbone("resnet18", ("layer2",), (64, 64))

    exact = make(network()).extract(PICTURES).features[0]
    cuda = Extractor(network(), (64, 64), "stretch", 2, torch.device("cuda:0"), precision)
    found = cuda.extract(PICTURES).features[0]
    assert found.device.type == "cuda"
    assert (found.cpu() - exact).norm() / exact.norm() < tolerance
