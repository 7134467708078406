import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from dfm_mlflow.network.backbones import build_backbone
from dfm_mlflow.network.fusion import FusedConvolution, StridedMaxPool, fused


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 2, 2, 6), (2, 4, 7, 10), (1, 1, 9, 9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_maxima_of_views_are_max_pooling(shape, dtype):
    x = torch.randn(shape, dtype=dtype).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        assert torch.equal(StridedMaxPool()(x), F.max_pool2d(x, 3, 2, 1))
        pool, x = StridedMaxPool(), x.relu()
        pool.by_bits = True
        assert torch.equal(pool(x), F.max_pool2d(x, 3, 2, 1))


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v3_small", "densenet121"])
def test_the_network_computes_the_same_with_fewer_operations(name):
    module = build_backbone(name, ("stride:16",), (64, 64)).module
    module = module.to(memory_format=torch.channels_last)
    faster = fused(module, (64, 64))
    x = torch.rand(3, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        for before, after in zip(module(x).values(), faster(x).values(), strict=True):
            torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)
    if name.startswith("resnet"):
        assert any(isinstance(m, FusedConvolution) for m in faster.modules())
        assert len(faster.graph.nodes) < len(module.graph.nodes)


@pytest.mark.parametrize(
    ("layers", "in_place"),
    [
        (("layer2",), "fused_add fused_add_1 fused_add_2 fused_add_3"),
        (("layer1", "layer2"), "fused_add fused_add_1 fused_add_2 fused_add_3"),
        (("layer1.0", "layer2.0"), "fused_add fused_add_2"),  # layer1.0 is the next shortcut, too
    ],
)
def test_a_sum_takes_the_place_of_a_shortcut_that_nobody_reads(layers, in_place):
    module = build_backbone("resnet18", layers, (64, 64)).module
    module = module.to(memory_format=torch.channels_last)
    faster = fused(module, (64, 64))
    x = torch.rand(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        before, after = module(x), faster(x)
    for name in layers:
        torch.testing.assert_close(after[name], before[name], rtol=1e-3, atol=1e-4)
    sums = {name for name, m in faster.named_modules() if getattr(m, "in_place", False)}
    assert sums == set(in_place.split())


class Overlaps(nn.Module):
    """Sums whose shortcut is what they convolve, or has another name that is read later."""

    def __init__(self, alias):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(i, 64, 3, padding=1) for i in (3, 64, 64))
        self.relu, self.same, self.alias = nn.ReLU(), nn.Identity(), alias

    def forward(self, x):
        x = self.relu(self.a(x))
        other = self.same(x)
        if self.alias:
            return {"other": other, "out": self.relu(self.c(self.relu(self.b(x))) + x)}
        return {"out": self.relu(self.b(x) + x)}


@pytest.mark.parametrize("alias", [True, False])
def test_no_sum_takes_the_place_of_what_is_read_meanwhile_or_later(alias):
    class Whole(fx.Tracer):  # keeps the identity, which gives the tensor itself
        def is_leaf_module(self, module, name):
            return isinstance(module, nn.Identity) or super().is_leaf_module(module, name)

    model = Overlaps(alias).eval()
    module = fx.GraphModule(model, Whole().trace(model))
    faster, x = fused(module, (16, 16)), torch.rand(2, 3, 16, 16)
    assert any(isinstance(m, FusedConvolution) for m in faster.modules())
    assert not any(getattr(m, "in_place", False) for m in faster.modules())
    with torch.inference_mode():
        for name, value in module(x).items():
            torch.testing.assert_close(faster(x)[name], value)


def test_a_network_that_takes_no_smaller_input_is_tried_at_its_own():
    module = build_backbone("alexnet", ("features.12",), (128, 128)).module
    faster, x = fused(module, (128, 128)), torch.rand(1, 3, 128, 128)
    assert any(isinstance(m, FusedConvolution) for m in faster.modules())
    with torch.inference_mode():
        for name, value in module(x).items():
            torch.testing.assert_close(faster(x)[name], value, rtol=1e-3, atol=1e-4)


def test_the_given_network_stays_as_it_is():
    module = build_backbone("resnet18", ("layer1",), (64, 64)).module
    code, weights = module.code, {k: v.clone() for k, v in module.state_dict().items()}
    fused(module, (64, 64))
    assert module.code == code
    assert module.state_dict().keys() == weights.keys()
    assert all(torch.equal(v, weights[k]) for k, v in module.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(64, 64), (48, 80), (128, 256)])
def test_packed_weights_give_the_same_to_the_bit_at_any_size(dtype, size, monkeypatch):
    module = build_backbone("resnet18", ("layer3",), (64, 64)).module
    module = module.to(dtype=dtype, memory_format=torch.channels_last)
    packed = fused(module, (64, 64))
    if packed is module and dtype is torch.bfloat16:
        pytest.skip("this processor does not compute in bf16")
    monkeypatch.setattr(FusedConvolution, "pack", lambda *_: None)
    plain = fused(module, (64, 64))
    x = torch.rand(3, 3, *size).to(dtype=dtype, memory_format=torch.channels_last)
    with torch.inference_mode():
        assert torch.equal(packed(x)["layer3"], plain(x)["layer3"])
    for module, is_packed in ((packed, True), (plain, False)):
        convolutions = [m for m in module.modules() if isinstance(m, FusedConvolution)]
        assert {m.weight.is_mkldnn for m in convolutions} == {is_packed}


class Shortcuts(nn.Module):
    """What must not be fused: a sum that broadcasts, a value that is used twice."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.relu = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.ReLU()
        self.c = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")

    def forward(self, x):
        a = self.a(x)
        wide = self.relu(self.b(x) + a.mean((2, 3), keepdim=True))
        return {"out": self.relu(self.c(wide)) + a}


def test_what_cannot_be_fused_is_left_as_it_is():
    module = fx.symbolic_trace(Shortcuts().eval())
    x = torch.rand(2, 3, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(fused(module, (16, 16))(x)["out"], module(x)["out"])


def test_an_operation_that_changed_its_ways_is_not_used(monkeypatch, caplog):
    module = build_backbone("resnet18", ("layer1",), (64, 64)).module
    monkeypatch.setattr(FusedConvolution, "forward", lambda self, x, other=None: x * 0)
    with caplog.at_level("INFO"):
        assert fused(module, (64, 64)) is module
    assert "without fused operations" in caplog.text
