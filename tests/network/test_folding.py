import pytest
import torch
from torch import nn

from dfm_mlflow.network import folding
from dfm_mlflow.network.backbones import build_backbone

from .test_timm_backbones import SIZE, batch_norms, trained

timm = pytest.importorskip("timm")


@torch.inference_mode()
def test_what_cannot_fold_is_kept():
    # Pre-activation: the first batch norm of a block reads a sum, not a convolution.
    model = trained("resnetv2_18")
    state = model.state_dict()
    backbone = build_backbone(
        "timm:resnetv2_18", ("stages.1",), SIZE, lambda need: {k: state[k] for k in need}
    )
    assert 0 < batch_norms(backbone.module) < batch_norms(model.stages[:2])
    x = torch.randn(2, 3, *SIZE)
    expected = model.stages[:2](model.stem(x))
    torch.testing.assert_close(backbone.module(x)["stages.1"], expected, rtol=1e-4, atol=1e-4)


def test_weight_standardised_convolutions_are_not_folded():
    torch.manual_seed(0)
    conv = timm.layers.StdConv2d(3, 8, 3).eval()
    assert folding._fuse(conv, nn.BatchNorm2d(8).eval()) is None
    assert folding._fuse(nn.Conv2d(3, 8, 3).eval(), nn.BatchNorm2d(8).eval()) is not None
