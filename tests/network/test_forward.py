import pytest
import torch

from dfm_mlflow.errors import DeviceError
from dfm_mlflow.network.backbones import build_backbone
from dfm_mlflow.network.forward import Network

CPU = torch.device("cpu")
PIXELS = torch.randint(
    0, 256, (11, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


@pytest.fixture
def network():
    backbone = build_backbone("resnet18", ("layer1", "layer2"), (64, 64))
    return Network(backbone, (64, 64), 2, CPU, "fp32")


def test_passes_do_not_change_the_maps(network):
    together = network.run(PIXELS)
    for i in range(len(PIXELS)):
        for one, all_ in zip(network.run(PIXELS[i : i + 1]), together, strict=True):
            torch.testing.assert_close(one[0], all_[i], rtol=1e-5, atol=1e-6)


def without_memory_for(network, monkeypatch, most):
    """Let the network fail as a GPU does that has no memory for more pictures at once."""
    seen, original = [], network.module

    def forward(inputs):
        seen.append(len(inputs))
        if len(inputs) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(inputs)

    monkeypatch.setattr(network, "module", forward)
    return seen


def test_lack_of_memory_halves_the_batch_and_goes_on(network, monkeypatch, caplog):
    expected = network.run(PIXELS)
    seen = without_memory_for(network, monkeypatch, 1)
    found = network.run(PIXELS)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert "going on with 1" in caplog.text
    seen.clear()
    network.run(PIXELS)
    assert seen == [1] * len(PIXELS)  # it does not try again what failed


def test_no_memory_for_one_picture_is_said(network, monkeypatch):
    without_memory_for(network, monkeypatch, 0)
    with pytest.raises(DeviceError, match="no memory for one picture of 64x64"):
        network.run(PIXELS)


def test_the_backbone_keeps_its_precision():
    backbone = build_backbone("resnet18", ("layer1",), (64, 64))
    before = backbone.fingerprint()
    Network(backbone, (64, 64), 1, CPU, "bf16").run(PIXELS)
    assert backbone.fingerprint() == before
    assert {p.dtype for p in backbone.module.parameters()} == {torch.float32}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_goes_on_with_less_memory():
    backbone = build_backbone("resnet18", ("layer1",), (512, 512))
    network = Network(backbone, (512, 512), 8, torch.device("cuda:0"), "fp32")
    pixels = torch.randint(0, 256, (64, 3, 512, 512), dtype=torch.uint8)
    expected = torch.cat([network.run(pixels[i : i + 4])[0].cpu() for i in range(0, 64, 4)])
    free, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(min(1.0, (total - free + 2e9) / total))
    try:
        found = network.run(pixels)[0].cpu()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_runs_the_network_without_waiting():
    backbone = build_backbone("resnet18", ("layer1",), (64, 64))
    network = Network(backbone, (64, 64), 2, torch.device("cuda:0"), "bf16")
    network.run(PIXELS)  # kernels are loaded
    pixels = PIXELS.to("cuda:0")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        network.run(pixels)
    finally:
        torch.cuda.set_sync_debug_mode("default")
