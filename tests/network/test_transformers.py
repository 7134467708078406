import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision import models
from torchvision.models.vision_transformer import interpolate_embeddings

from dfm_mlflow.errors import BackboneError, WeightsError
from dfm_mlflow.network.backbones import build_backbone, layer_names
from dfm_mlflow.network.extractor import Extractor
from dfm_mlflow.network.forward import Network
from dfm_mlflow.network.weights import load_weights

timm = pytest.importorskip("timm")

DINO, TINY = "timm:vit_small_patch14_dinov2", "timm:test_vit"
WIDE = (56, 84)
CPU = torch.device("cpu")


def seen_tokens(model, blocks, x):
    """Outputs of blocks, by hooks on the whole network."""
    seen = {}
    for i, block in enumerate(blocks):
        block.register_forward_hook(lambda m, a, o, i=i: seen.update({i: o.clone()}))
    with torch.inference_mode():
        model(x)
    return seen


def as_grid(tokens, prefix, grid):
    return tokens[:, prefix:].transpose(1, 2).reshape(len(tokens), -1, *grid)


@pytest.mark.parametrize(
    ("name", "prefix", "size"),
    [
        (DINO, 1, WIDE),
        ("timm:vit_small_patch14_reg4_dinov2", 5, WIDE),  # registers
        ("timm:vit_small_patch16_dinov3", 5, (64, 96)),  # rotations in place of positions
        ("timm:deit_tiny_distilled_patch16_224", 2, (64, 96)),
    ],
)
def test_prefix_tokens_are_dropped_and_the_rest_lie_on_their_grid(name, prefix, size):
    stem = name.removeprefix("timm:")
    torch.manual_seed(3)
    kinds = {"dynamic_img_size": False} if "deit" not in stem else {}
    model = timm.create_model(stem, img_size=size, **kinds).eval()
    state = model.state_dict()
    backbone = build_backbone(name, ("depth:0.5-0.8", "blocks.2"), size, lambda need: dict(state))
    assert backbone.layers == ("blocks.5-8", "blocks.2")
    x = torch.randn(2, 3, *size)
    seen = seen_tokens(model, model.blocks, x)
    grid = (size[0] // backbone.patch, size[1] // backbone.patch)
    with torch.inference_mode():
        ours = backbone.module(x)
    expected = torch.stack([seen[i] for i in (5, 6, 7, 8)]).mean(0)
    torch.testing.assert_close(ours["blocks.5-8"], as_grid(expected, prefix, grid))
    torch.testing.assert_close(ours["blocks.2"], as_grid(seen[2], prefix, grid))
    # nothing is kept after the last used block
    assert not any(k.startswith(("model.blocks.9", "model.head")) for k in backbone.state())


def test_positions_are_resampled_by_timm_s_filter():
    state = timm.create_model("vit_small_patch14_dinov2", img_size=98).state_dict()
    backbone = build_backbone(DINO, ("blocks.0",), WIDE, lambda need: dict(state))
    expected = timm.layers.resample_abs_pos_embed(
        state["pos_embed"], (4, 6), old_size=(7, 7), num_prefix_tokens=1
    )
    torch.testing.assert_close(backbone.module.model.pos_embed, expected)


@pytest.mark.parametrize("side", [64, pytest.param(224, marks=pytest.mark.slow)])
def test_torchvision_s_positions_are_those_of_its_own_function(side):
    torch.manual_seed(4)
    whole = models.vit_b_16()
    torch.nn.init.normal_(whole.encoder.pos_embedding)
    state = whole.state_dict()
    backbone = build_backbone("vit_b_16", ("blocks.1",), (side, side), lambda need: dict(state))
    expected = interpolate_embeddings(side, 16, dict(state))["encoder.pos_embedding"]
    torch.testing.assert_close(backbone.module.model.encoder.pos_embedding.data, expected)


def test_torchvision_s_network_gives_its_own_tokens():
    torch.manual_seed(5)
    whole = models.VisionTransformer(64, 16, 12, 12, 768, 3072).eval()
    state = whole.state_dict()
    backbone = build_backbone("vit_b_16", ("blocks.1",), (64, 64), lambda need: dict(state))
    x = torch.randn(1, 3, 64, 64)
    seen = seen_tokens(whole, whole.encoder.layers, x)
    with torch.inference_mode():
        torch.testing.assert_close(backbone.module(x)["blocks.1"], as_grid(seen[1], 1, (4, 4)))


@pytest.mark.parametrize(
    "name",
    [
        TINY,
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in ("timm:vit_small_patch16_dinov3", "vit_b_16")
        ),
    ],
)
def test_stored_tensors_build_the_same_network(name):
    size = (64, 96)
    backbone = build_backbone(name, ("depth:0.3-0.5:l2",), size, seed=3)
    again = build_backbone(name, backbone.layers, size, folded=backbone.state())
    x = torch.randn(1, 3, *size)
    with torch.inference_mode():
        (ours,), (theirs,) = backbone.module(x).values(), again.module(x).values()
    assert torch.equal(ours, theirs)
    assert backbone.fingerprint() == again.fingerprint()
    torch.testing.assert_close(ours.norm(dim=1), torch.ones(1, *ours.shape[2:]))
    other = build_backbone(name, backbone.layers, size, seed=4)
    assert other.fingerprint() != backbone.fingerprint()


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ("blocks.6", r"its 6 blocks are blocks\.0 to blocks\.5"),
        ("blocks.4-2", r"its 6 blocks are"),
        ("depth:0.51-0.6", r"holds no block of timm:test_vit: its 6 blocks end at 1/6"),
        ("depth:0.8-0.5", "holds no block"),
        ("stride:16", r"is a transformer of 6 blocks; give blocks\.0"),
        ("norm", "is a transformer of 6 blocks"),
    ],
)
def test_layers_that_are_not_there(layer, words):
    assert layer_names(TINY, ("depth:0.5-1", "blocks.1"), (64, 64)) == ("blocks.2-5", "blocks.1")
    for refuse in (layer_names, build_backbone):
        with pytest.raises(BackboneError, match=words):
            refuse(TINY, (layer,), (64, 64))


def test_sizes_that_patches_do_not_cut_name_the_next_two():
    with pytest.raises(BackboneError, match=r"image_size=450 .* 14 pixels .* give 448 or 462"):
        build_backbone(DINO, ("blocks.1",), (450, 450))
    with pytest.raises(BackboneError, match=r"image_size=56x60 .* in place of 60 give 56 or 70"):
        build_backbone(DINO, ("blocks.1",), (56, 60))
    backbone = build_backbone(TINY, ("blocks.1",), (64, 64))
    with pytest.raises(BackboneError, match=r"tile=70 .* give 64 or 80"):
        Network(backbone, (128, 128), 1, CPU, "fp32", tile=70)
    with pytest.raises(BackboneError, match=r"image_size=100 .* give 96 or 112"):
        Network(backbone, (100, 100), 1, CPU, "fp32", tile=64)


@pytest.mark.parametrize("name", ["timm:levit_128s", "timm:vit_base_r26_s32_224"])
def test_networks_without_a_grid_are_refused(name):
    if name not in {f"timm:{n}" for n in timm.list_models()}:
        pytest.skip(f"this timm has no {name}")
    with pytest.raises(BackboneError, match="gives no grid of tokens"):
        build_backbone(name, ("blocks.1",), (224, 224))


def test_tokens_of_a_network_that_is_no_plain_transformer_are_no_map():
    backbone = build_backbone("timm:cait_xxs24_224", ("blocks.0",), (224, 224))
    pixels = torch.zeros(1, 3, 224, 224, dtype=torch.uint8)
    with pytest.raises(BackboneError, match="3 axes, not a feature map .* or a vision transformer"):
        Network(backbone, (224, 224), 1, CPU, "fp32").run(pixels)


def test_tiles_of_a_transformer_are_multiples_of_its_patch():
    backbone = build_backbone(TINY, ("blocks.1",), (80, 80), seed=1)
    size = (112, 160)
    network = Network(backbone, size, 1, CPU, "fp32", tile=80)
    pixels = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8)
    (maps,) = network.run(pixels)
    assert maps.shape == (1, 64, 7, 10)
    (corner,) = Network(backbone, (80, 80), 1, CPU, "fp32").run(pixels[:, :, :80, :80])
    torch.testing.assert_close(maps[:, :, :3, :3], corner[:, :, :3, :3])


def test_the_authors_names_are_read_and_a_missing_tensor_is_named(tmp_path):
    model = timm.create_model("vit_small_patch14_reg4_dinov2", img_size=56)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    theirs = {("register_tokens" if k == "reg_token" else k): v for k, v in state.items()}
    # DINOv2's own files give the class token a position, and have a mask token
    theirs["pos_embed"] = torch.cat([torch.zeros(1, 1, 384), state["pos_embed"]], dim=1)
    theirs["mask_token"] = torch.zeros(1, 384)
    save_file(theirs, tmp_path / "dinov2.safetensors")
    name = "timm:vit_small_patch14_reg4_dinov2"
    weights = load_weights(str(tmp_path / "dinov2.safetensors"), name, 42)
    backbone = build_backbone(name, ("blocks.1",), (56, 56), weights.take)
    torch.testing.assert_close(backbone.module.model.reg_token.data, state["reg_token"])
    torch.testing.assert_close(backbone.module.model.pos_embed.data, state["pos_embed"])
    del theirs["blocks.1.norm1.weight"]
    with pytest.raises(WeightsError, match=r"blocks\.1\.norm1\.weight .* missing"):
        build_backbone(name, ("blocks.1",), (56, 56), lambda need: dict(theirs))


@pytest.mark.parametrize(
    ("tag", "words", "level"),
    [
        (
            "vit_small_patch16_dinov3.lvd1689m",
            "dinov3-license; it is not a free licence",
            "WARNING",
        ),
        ("vit_small_patch14_dinov2.lvd142m", None, None),
    ],
)
def test_a_licence_that_is_not_free_is_said(tag, words, level, tmp_path, caplog):
    save_file({"x": torch.zeros(1)}, tmp_path / "w.safetensors")
    caplog.set_level("INFO")
    load_weights(str(tmp_path / "w.safetensors"), f"timm:{tag}", 42)
    said = [r for r in caplog.records if "licence" in r.message]
    assert [r.levelname for r in said] == ([level] if level else [])
    assert words is None or words in said[0].message


def test_without_timm_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(BackboneError, match=r"pip install 'dfm-mlflow\[timm\]'"):
        build_backbone("timm:vit_tiny_patch16_224", ("blocks.1",), (64, 64))


def test_real_tokens_in_half_precision_are_those_of_timm(real_data):
    """Of a ViT-S/14 of DINOv2's architecture that was fine-tuned for saliency."""
    path = real_data / "weights" / "vit_small_patch14_saliency.safetensors"
    model = timm.create_model("vit_small_patch14_dinov2", img_size=112).eval()
    from timm.models.vision_transformer import checkpoint_filter_fn

    published = {k: v.float() for k, v in load_file(path).items()}
    model.load_state_dict(checkpoint_filter_fn(dict(published), model))
    weights = load_weights(str(path), DINO, 42)
    backbone = build_backbone(DINO, ("depth:0.5-0.8",), (112, 112), weights.take)
    image = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    extractor = Extractor(backbone, (112, 112), "stretch", 1, CPU)
    (ours,) = extractor.extract([image]).features
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (backbone.mean, backbone.std))
    x = ((torch.from_numpy(image).permute(2, 0, 1) / 255 - mean) / std)[None]
    seen = seen_tokens(model, model.blocks, x)
    expected = torch.stack([seen[i] for i in (5, 6, 7, 8)]).mean(0)
    torch.testing.assert_close(ours, as_grid(expected, 1, (8, 8)), rtol=1e-3, atol=1e-3)
