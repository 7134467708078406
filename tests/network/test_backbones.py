from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torchvision import models

from dfm_mlflow.errors import BackboneError, WeightsError
from dfm_mlflow.network.backbones import build_backbone
from dfm_mlflow.network.extractor import Extractor

SIZE = (64, 64)


def trained(name):
    """A network whose batch norms have seen something, so that folding them is not trivial."""
    torch.manual_seed(0)
    model = models.get_model(name, weights=None).train()
    with torch.no_grad():
        model(torch.randn(4, 3, *SIZE))
    return model.eval()


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("resnet18", "layer3"),
        ("resnet18", "layer2.0"),
        ("resnet18", "avgpool"),
        ("efficientnet_b0", "features.5"),
        ("mobilenet_v3_large", "features.12"),
        ("regnet_y_400mf", "trunk_output.block3"),
        ("squeezenet1_1", "features.9"),
    ],
)
@torch.inference_mode()
def test_truncated_and_folded_network_gives_the_layer_s_output(name, layer):
    model = trained(name)
    seen = {}
    model.get_submodule(layer).register_forward_hook(lambda m, i, o: seen.update(output=o))
    state = model.state_dict()
    backbone = build_backbone(name, (layer,), SIZE, lambda need: {k: state[k] for k in need})
    x = torch.randn(2, 3, *SIZE)
    model(x)
    ours = backbone.module(x)[layer]
    torch.testing.assert_close(ours, seen["output"], rtol=1e-4, atol=1e-5)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in backbone.module.modules())
    rebuilt = build_backbone(name, (layer,), SIZE, folded=backbone.state())
    assert torch.equal(rebuilt.module(x)[layer], ours)
    assert rebuilt.fingerprint() == backbone.fingerprint()


def test_layers_after_the_used_one_are_neither_needed_nor_kept():
    state = trained("resnet18").state_dict()
    asked = set()

    def give(needed):
        asked.update(needed)
        return {k: state[k] for k in needed}

    backbone = build_backbone("resnet18", ("layer2",), SIZE, give)
    assert not any(k.startswith(("layer3", "layer4", "fc")) for k in asked | set(backbone.state()))


def test_wrong_shapes_are_refused():
    state = trained("resnet18").state_dict()
    state["layer1.0.conv1.weight"] = torch.zeros(1, 1, 3, 3)
    with pytest.raises(WeightsError, match=r"layer1\.0\.conv1\.weight has shape \(1, 1, 3, 3\)"):
        build_backbone("resnet18", ("layer2",), SIZE, lambda need: {k: state[k] for k in need})


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("resnet18", "layer3"),
        ("efficientnet_b0", "features.5"),
        pytest.param("wide_resnet50_2", "layer3", marks=pytest.mark.slow),
        pytest.param("densenet121", "features.denseblock3", marks=pytest.mark.slow),
        pytest.param("googlenet", "inception4e", marks=pytest.mark.slow),
    ],
)
def test_the_layer_at_stride_16(name, layer):
    assert build_backbone(name, ("stride:16",), (256, 256)).layers == (layer,)


@pytest.mark.slow
def test_the_preset_accurate_names_a_layer_that_exists():
    accurate = build_backbone("efficientnet_b5", ("features.6",), (456, 456))
    assert accurate.module(torch.zeros(1, 3, 456, 456))["features.6"].shape == (1, 304, 15, 15)


def test_the_default_preset_names_layers_that_exist():
    """Both at once, and layers by their stride in any order."""
    both = build_backbone("resnet18", ("stride:8", "stride:16"), (256, 256))
    assert both.layers == ("layer2", "layer3")
    assert build_backbone("resnet18", ("avgpool",), (256, 256)).layers == ("avgpool",)


def test_efficientnet_lite_folds_too():
    pytest.importorskip("efficientnet_lite_pytorch")
    backbone = build_backbone("efficientnet_lite0", ("stride:16",), (256, 192))
    assert backbone.layers == ("_blocks.10",)
    assert backbone.module(torch.zeros(1, 3, 256, 192))["_blocks.10"].shape == (1, 112, 16, 12)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in backbone.module.modules())


def test_unknown_names_list_the_valid_ones():
    with pytest.raises(BackboneError, match=r"no layer 'layer9': its layers are .*layer3"):
        build_backbone("resnet18", ("layer9",), SIZE)
    with pytest.raises(BackboneError, match="'resnet19': close names are resnet1.*resnet18"):
        build_backbone("resnet19", ("layer3",), SIZE)
    with pytest.raises(BackboneError, match="no layer at stride 7"):
        build_backbone("resnet18", ("stride:7",), SIZE)


def test_random_weights_follow_the_seed():
    first, same, other = (build_backbone("resnet18", ("layer1",), SIZE, seed=s) for s in (1, 1, 2))
    assert first.fingerprint() == same.fingerprint() != other.fingerprint()


def test_networks_are_built_and_run_side_by_side_in_threads():
    """torch.fx replaces a method of every module of the process while it traces."""
    image = torch.rand(1, 64, 64, 3).mul(255).to(torch.uint8).numpy()[0]
    backbone = build_backbone("resnet18", ("layer2",), SIZE, seed=1)
    extractor = Extractor(backbone, SIZE, "stretch", 2, torch.device("cpu"))
    expected = extractor.extract([image]).features[0]

    def build(seed):
        return build_backbone("resnet18", ("layer2",), SIZE, seed=1).fingerprint()

    def run(_):
        return torch.allclose(extractor.extract([image]).features[0], expected, atol=1e-5)

    with ThreadPoolExecutor(8) as pool:
        built = [pool.submit(build, i) for i in range(6)]
        ran = [pool.submit(run, i) for i in range(60)]
    assert {f.result() for f in built} == {backbone.fingerprint()}
    assert all(f.result() for f in ran)
