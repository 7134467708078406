import pytest
import torch
from safetensors.torch import save_file

from dfm_mlflow.config import Options
from dfm_mlflow.errors import BackboneError, ConfigError, WeightsError
from dfm_mlflow.network.backbones import backbone_requirements, build_backbone, layer_names
from dfm_mlflow.network.forward import Network
from dfm_mlflow.network.pair import Pair, layers_of
from dfm_mlflow.network.weights import load_weights

pytest.importorskip("timm")
NAME, LAYERS, SIZE = "timm:test_vit+resnet18", ("blocks.1", "2:stride:8"), (64, 96)


@pytest.fixture(scope="module")
def pair():
    return build_backbone(NAME, LAYERS, SIZE, seed=3)


def test_each_network_gives_what_it_gives_alone(pair):
    vit = build_backbone("timm:test_vit", ("blocks.1",), SIZE, seed=3)
    resnet = build_backbone("resnet18", ("layer2",), SIZE, seed=3)
    assert pair.layers == ("blocks.1", "2:layer2") == layer_names(NAME, LAYERS, SIZE)
    assert (pair.patch, vit.mean != resnet.mean) == (16, True)
    pixels = torch.randint(0, 256, (2, 3, *SIZE), dtype=torch.uint8)
    cpu = torch.device("cpu")
    both = Network(pair, SIZE, 1, cpu, "fp32").run(pixels)
    alone = [Network(b, SIZE, 1, cpu, "fp32").run(pixels)[0] for b in (vit, resnet)]
    for ours, theirs in zip(both, alone, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert backbone_requirements(NAME) == ["timm"]


def test_stored_tensors_build_the_same_pair(pair):
    asked = []

    def read(expected):
        asked.append(expected)
        return pair.state()

    again = build_backbone(NAME, pair.layers, SIZE, folded=read)
    assert len(asked) == 1  # the file is read once, as large as both need
    assert {k: v.shape for k, v in asked[0].items()} == {
        k: v.shape for k, v in pair.state().items()
    }
    assert again.fingerprint() == pair.fingerprint()
    x = torch.randn(1, 3, *SIZE)
    with torch.inference_mode():
        ours, theirs = pair.module(x), again.module(x)
    assert all(torch.equal(ours[k], theirs[k]) for k in pair.layers)


def test_two_sources_of_weights_and_what_is_refused(tmp_path):
    vit = build_backbone("timm:test_vit", ("blocks.5",), SIZE, seed=5).module.model
    save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    resnet = torch.nn.Sequential(torch.nn.Linear(1, 1))
    save_file(resnet.state_dict(), tmp_path / "r.safetensors")
    source = f"{tmp_path}/vit.safetensors+{tmp_path}/r.safetensors"
    assert Options.parse({"weights": source}).weights == source
    weights = load_weights(source, NAME, 42)
    assert weights.id == "file:vit.safetensors+file:r.safetensors"
    with pytest.raises(WeightsError, match=r"lack 50 of 50 .* second\.bn1"):
        build_backbone(NAME, LAYERS, SIZE, weights.take)
    with pytest.raises(WeightsError, match="one file for two networks"):
        load_weights(f"{tmp_path}/vit.safetensors", NAME, 42)
    with pytest.raises(WeightsError, match="random for one of two"):
        load_weights(f"{tmp_path}/vit.safetensors+random", NAME, 42)
    assert load_weights("random", NAME, 7).id == "random:7"


def test_layers_of_both_are_needed_and_told_apart():
    assert layers_of(LAYERS, True) == ("stride:8",)
    for layers, backbone in (
        ("blocks.1", NAME),
        ("2:layer1", NAME),
        ("layer1,2:layer2", "resnet18"),
    ):
        with pytest.raises(ConfigError, match="two backbones need a layer of each"):
            Options.parse({"layers": layers, "backbone": backbone, "pooling": "1"})
    with pytest.raises(BackboneError, match="no layer 'layer9'"):
        build_backbone(NAME, ("blocks.1", "2:layer9"), SIZE)


def test_equal_normalisations_cost_nothing():
    one = torch.nn.Identity()
    same = Pair.of(one, one, ((0.5,) * 3, (0.2,) * 3), ((0.5,) * 3, (0.2,) * 3))
    assert (same.scale, same.offset) == ((1.0,) * 3, (0.0,) * 3)
