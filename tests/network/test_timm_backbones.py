import functools
import hashlib
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file
from torch import nn

from dfm_mlflow.errors import BackboneError, WeightsError
from dfm_mlflow.network.backbones import IMAGENET_MEAN, backbone_requirements, build_backbone
from dfm_mlflow.network.extractor import Extractor
from dfm_mlflow.network.weights import load_weights

timm = pytest.importorskip("timm")


@pytest.mark.parametrize(
    ("name", "asked", "layer"),
    [
        ("resnet18", "stride:16", "layer3"),
        ("mobilenetv3_small_100", "stride:8", "blocks.1"),  # BatchNormAct2d
        ("mobilenetv3_small_100", "bn1", "bn1"),  # the output is the activation of a folded one
        ("tf_efficientnet_lite0", "stride:8", "blocks.2"),  # BatchNormAct2d after Conv2dSame
        ("convnext_atto", "stride:8", "stages.1"),  # layer norms
        ("resnetblur18", "layer2", "layer2"),  # a blur kernel that is in no state dict
    ],
)
@torch.inference_mode()
def test_truncated_and_folded_network_gives_the_layer_s_output(name, asked, layer):
    model = trained(name)
    seen = {}
    model.get_submodule(layer).register_forward_hook(lambda m, i, o: seen.update(o=o.clone()))
    state = model.state_dict()
    backbone = build_backbone(
        f"timm:{name}", (asked,), SIZE, lambda need: {k: state[k] for k in need}
    )
    assert backbone.layers == (layer,)
    x = torch.randn(2, 3, *SIZE)
    model(x)
    ours = backbone.module(x)[layer]
    torch.testing.assert_close(ours, seen["o"], rtol=1e-4, atol=1e-4)
    assert batch_norms(backbone.module) == 0
    rebuilt = build_backbone(f"timm:{name}", (layer,), SIZE, folded=backbone.state())
    assert torch.equal(rebuilt.module(x)[layer], ours)
    assert rebuilt.fingerprint() == backbone.fingerprint()


def test_normalisation_is_that_of_the_weights():
    half = (0.5, 0.5, 0.5)
    of = {
        name: build_backbone(f"timm:{name}", ("stride:4",), SIZE)
        for name in ("test_resnet", "tf_efficientnet_lite0", "mobilenetv3_large_100.miil_in21k")
    }
    assert of["test_resnet"].mean == timm.get_pretrained_cfg("test_resnet").mean
    assert of["tf_efficientnet_lite0"].mean == of["tf_efficientnet_lite0"].std == half
    assert of["mobilenetv3_large_100.miil_in21k"].mean == (0.0, 0.0, 0.0)  # another tag's differs
    assert build_backbone("timm:mobilenetv3_large_100", ("bn1",), SIZE).mean == IMAGENET_MEAN


def test_the_tag_is_needed_for_pretrained_weights_only():
    with pytest.raises(WeightsError, match=r"name one of timm:resnet18\.a1_in1k, .*tv_in1k, or"):
        load_weights("imagenet", "timm:resnet18", 42)
    with pytest.raises(WeightsError, match="timm has none for this model, give weights=<file>"):
        load_weights("imagenet", "timm:resnetblur18", 42)
    with pytest.raises(BackboneError, match=r"no weights 'resnet18\.b7': it has resnet18\.a1_in1k"):
        build_backbone("timm:resnet18.b7", ("layer2",), SIZE)
    assert load_weights("random", "timm:resnet18", 7).id == "random:7"
    tagged = build_backbone("timm:resnet18.tv_in1k", ("layer1",), SIZE)
    assert tagged.fingerprint() == build_backbone("timm:resnet18", ("layer1",), SIZE).fingerprint()


def test_unknown_names_and_the_missing_package(monkeypatch):
    with pytest.raises(BackboneError, match=r"no model 'resnet19': close names are .*resnet18"):
        build_backbone("timm:resnet19", ("layer2",), SIZE)
    for other in ("hf-hub:timm/resnet18", "local-dir:/tmp", ""):
        with pytest.raises(BackboneError, match="timm has no model"):
            build_backbone(f"timm:{other}", ("layer2",), SIZE)
    monkeypatch.setitem(sys.modules, "timm", None)
    for attempt in (
        lambda: build_backbone("timm:resnet18", ("layer2",), SIZE),
        lambda: load_weights("imagenet", "timm:resnet18.a1_in1k", 42),
    ):
        with pytest.raises(BackboneError, match=r"pip install 'dfm-mlflow\[timm\]'"):
            attempt()


def test_requirements():
    assert backbone_requirements("timm:resnet18.a1_in1k") == ["timm"]
    assert backbone_requirements("resnet18") == []


def test_pretrained_weights_come_through_timm_s_loader(tmp_path, monkeypatch):
    name = "test_resnet.r160_in1k"
    torch.manual_seed(1)
    published = {k: v.contiguous() for k, v in timm.create_model(name).state_dict().items()}
    save_file(published, tmp_path / "model.safetensors")
    local = {"file": str(tmp_path / "model.safetensors")}
    create = functools.partial(timm.create_model, pretrained_cfg_overlay=local)
    monkeypatch.setattr(timm, "create_model", create)
    weights = load_weights("imagenet", f"timm:{name}", 42)
    assert weights.id == f"timm:{name}"
    assert weights.sha256 == hashlib.sha256(save(published)).hexdigest()
    backbone = build_backbone(f"timm:{name}", ("stride:8",), SIZE, weights.take)
    by_file = load_weights(local["file"], f"timm:{name}", 42)
    again = build_backbone(f"timm:{name}", ("stride:8",), SIZE, by_file.take)
    assert backbone.fingerprint() == again.fingerprint()


def test_a_failed_fetch_says_what_to_do(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    address = r"https://huggingface\.co/timm/test_resnet\.r160_in1k/resolve/main/model\.safetensors"
    with pytest.raises(WeightsError, match=rf"could not be fetched .*{address} .*weights=<file>"):
        load_weights("imagenet", "timm:test_resnet.r160_in1k", 42)


def test_tokens_are_brought_back_to_their_grid():
    backbone = build_backbone("timm:test_vit", ("blocks.1",), (160, 160))
    extractor = Extractor(backbone, (160, 160), "stretch", 1, torch.device("cpu"))
    (features,) = extractor.extract([np.zeros((160, 160, 3), np.uint8)]).features
    assert features.shape[2:] == (10, 10)


SIZE = (64, 64)


def trained(name):
    """A network whose batch norms differ from the identity in all of their four tensors."""
    torch.manual_seed(0)
    model = timm.create_model(name).train()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
        model(torch.randn(4, 3, *SIZE))
    return model.eval()


def batch_norms(module):
    return sum(isinstance(m, nn.BatchNorm2d) for m in module.modules())
