import io

import numpy as np
import pytest
import torch
from PIL import Image

from dfm_mlflow.errors import DeviceError
from dfm_mlflow.network.backbones import build_backbone
from dfm_mlflow.network.cache import FeatureCache
from dfm_mlflow.network.device import choose_device, choose_precision
from dfm_mlflow.network.extractor import Extractor

from ..conftest import texture

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def backbone():
    return build_backbone("resnet18", ("layer2",), (64, 64))


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


PICTURES = [png(texture(np.random.default_rng(i), 80)) for i in range(11)]


def make(backbone, **options):
    size = options.pop("size", (64, 64))
    resize = options.pop("resize", "stretch")
    return Extractor(backbone, size, resize, options.pop("pooling", 2), CPU, **options)


def test_order_and_numbers_do_not_depend_on_batches(backbone):
    whole = make(backbone, batch_size=4).extract(PICTURES).features[0]
    assert whole.shape == (11, 128, 4, 4)
    single = torch.cat([make(backbone).extract([p]).features[0] for p in PICTURES])
    torch.testing.assert_close(whole, single, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_many_pictures_run_in_the_threads_that_decode_them(
    backbone, precision, tmp_path, monkeypatch
):
    cores = torch.get_num_threads()
    n = 8 * max(2, cores) + 3
    sources = [PICTURES[i % 11] for i in range(n)]
    sources[5] = b"noise"
    extractor = make(backbone, precision=precision, cache=FeatureCache(tmp_path))
    few = torch.cat(
        [
            extractor.extract(sources[i : i + 2]).features[0]
            for i in (*range(0, 4, 2), *range(6, n - 1, 2))
        ]
    )
    seen = []
    run = extractor.run_batch
    monkeypatch.setattr(
        extractor,
        "run_batch",
        lambda p: seen.append((len(p), torch.get_num_threads())) or run(p),
    )
    extractor.cache = None
    many = extractor.extract(sources)
    assert many.kept == [i for i in range(n) if i != 5]
    assert list(many.errors) == [5]
    # what was extracted a pair at a time, in the caller's thread, is there bit by bit
    rows = [
        many.kept.index(i)
        for pair in (*range(0, 4, 2), *range(6, n - 1, 2))
        for i in (pair, pair + 1)
    ]
    assert torch.equal(many.features[0][rows], few)
    if cores > 1:
        assert {threads for _, threads in seen} == {1}
        assert max(size for size, _ in seen) == 4
    assert torch.get_num_threads() == cores  # of this thread, as before


def test_an_error_of_a_pass_in_another_thread_is_raised(backbone, monkeypatch):
    extractor = make(backbone)

    def fail(pixels):
        raise DeviceError("no memory")

    monkeypatch.setattr(extractor, "run_batch", fail)
    with pytest.raises(DeviceError, match="no memory"):
        extractor.extract(PICTURES * 8)


def test_unreadable_pictures_are_reported_and_the_others_kept(backbone, tmp_path):
    sources = [PICTURES[0], b"noise", PICTURES[1], tmp_path / "missing.png", PICTURES[2]]
    extraction = make(backbone, batch_size=2).extract(sources)
    assert extraction.kept == [0, 2, 4]
    assert set(extraction.errors) == {1, 3}
    expected = make(backbone).extract(PICTURES[:3]).features[0]
    torch.testing.assert_close(extraction.features[0], expected, rtol=1e-5, atol=1e-6)


def test_pooling_is_the_mean_of_its_window(backbone):
    fine = make(backbone, pooling=1).extract(PICTURES[:2]).features[0]
    coarse = make(backbone, pooling=3).extract(PICTURES[:2]).features[0]
    assert coarse.shape[2:] == (3, 3)  # 8 = 3 + 3 + 2: the border is not lost
    torch.testing.assert_close(coarse[:, :, 0, 0], fine[:, :, :3, :3].mean((2, 3)))
    torch.testing.assert_close(coarse[:, :, 2, 2], fine[:, :, 6:, 6:].mean((2, 3)))


def test_cached_features_are_the_same_and_skip_the_network(backbone, tmp_path, monkeypatch):
    cache = FeatureCache(tmp_path)
    first = make(backbone, cache=cache).extract(PICTURES)
    again = make(backbone, cache=cache)
    monkeypatch.setattr(again, "run_batch", lambda pixels: pytest.fail("the network ran"))
    second = again.extract(PICTURES)
    assert torch.equal(first.features[0], second.features[0])
    assert first.sizes == second.sizes
    other = make(backbone, cache=cache, pooling=1).extract(PICTURES[:1])
    assert other.features[0].shape[2:] == (8, 8)


def test_a_damaged_cache_entry_costs_one_extraction(backbone, tmp_path):
    extractor = make(backbone, cache=FeatureCache(tmp_path))
    first = extractor.extract(PICTURES[:2]).features[0]
    for path in tmp_path.rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:30])
    assert torch.equal(extractor.extract(PICTURES[:2]).features[0], first)


def test_cache_keeps_its_limit_and_the_newest(tmp_path):
    cache = FeatureCache(tmp_path, limit=3000)
    for i in range(6):
        cache.put(f"{i:02d}", [np.zeros(200, np.float32)])
        path = next(tmp_path.glob(f"*/{i:02d}.safetensors"))
        import os

        os.utime(path, (i, i))
    cache.trim()
    assert sum(p.stat().st_size for p in tmp_path.glob("*/*")) <= 3000
    assert cache.get("05") is not None
    assert cache.get("00") is None


def test_an_unwritable_cache_warns_and_the_work_goes_on(backbone, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    extractor = make(backbone, cache=FeatureCache(tmp_path / "file"))
    assert len(extractor.extract(PICTURES[:2]).kept) == 2
    assert "cannot be written" in caplog.text


def test_keep_pads_and_stretch_does_not(backbone):
    wide = np.full((40, 120, 3), 200, np.uint8)
    kept = make(backbone, resize="keep").resized(wide)
    assert kept.shape == (3, 64, 64)
    assert (kept[:, 22:42] == 200).all()
    assert kept[:, 0, 0].tolist() == [124, 116, 104]
    assert (make(backbone).resized(wide) == 200).all()


def test_bf16_comes_close(backbone):
    exact = make(backbone).extract(PICTURES[:2]).features[0]
    network = build_backbone("resnet18", ("layer2",), (64, 64))
    rough = make(network, precision="bf16").extract(PICTURES[:2]).features[0]
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).norm() / exact.norm() < 0.02


def test_devices(monkeypatch):
    monkeypatch.delenv("MLFLOW_DEFAULT_PREDICTION_DEVICE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == CPU
    with pytest.raises(DeviceError, match="0 CUDA devices"):
        choose_device("cuda:3")
    with pytest.raises(DeviceError, match="not known"):
        choose_device("tpu")
    monkeypatch.setenv("MLFLOW_DEFAULT_PREDICTION_DEVICE", "cuda")
    with pytest.raises(DeviceError, match="CUDA devices"):
        choose_device(None)
    assert choose_device("cpu") == CPU
    with pytest.raises(DeviceError, match="fp16 needs a CUDA device"):
        choose_precision("fp16", CPU)


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
