"""What somebody else's model costs to load, however it lies about sizes."""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file as save_torch

from dfm_mlflow.artifact import files as artifact_files
from dfm_mlflow.artifact.save_load import BACKBONE, DETECTOR, STATISTICS, load_detector, sha256
from dfm_mlflow.errors import ArtifactError
from dfm_mlflow.network.backbones import build_backbone
from dfm_mlflow.network.extractor import Extractor
from dfm_mlflow.network.shapes import shapes_of

from .test_save_load import edit

pytestmark = pytest.mark.integration  # whole jobs, one after the other

FORMAT1 = Path(__file__).parents[1] / "fixtures/format1/one-class/dfm"


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(FORMAT1, tmp_path / "dfm")


def forge(folder, backbone, layer, size, pooling, tile="none"):
    """Turn a model into one of another network, input and pooling, every shape and hash right."""
    sides = (size, size)
    network = build_backbone(backbone, (layer,), sides)
    save_torch(network.state(), folder / BACKBONE)
    found = shapes_of(network, sides, pooling, None if tile == "none" else int(tile))
    ((channels, height, width),) = found.maps
    n, rng = channels * height * width, np.random.default_rng(0)
    arrays = {k: a for k, a in load_file(folder / STATISTICS).items() if "held_out" in k}
    basis = rng.normal(size=(n, 2))
    arrays |= {
        "0.0.mean": np.zeros(n, np.float32),
        "0.0.basis": (basis / np.linalg.norm(basis, axis=0)).astype(np.float16),
        "0.0.variances": np.ones(2, np.float32),
        "0.0.usual": np.ones((height, width), np.float32),
        "0.0.leading": np.zeros((len(arrays["0.held_out"]), 1), np.float32),
    }
    save_file(arrays, folder / STATISTICS)

    def change(record):
        options = {"backbone": backbone, "layers": layer, "image_size": str(size)}
        record["options"].update(options, pooling=str(pooling), tile=tile)
        record["layers"] = [{"name": layer, "shape": [channels, height, width]}]
        record["classes"][0]["layers"] = [{"n_components": 2, "noise_variance": 1e-3}]
        record["sha256"] = {name: sha256(folder / name) for name in (STATISTICS, BACKBONE)}

    edit(folder, change)


def peak(work):
    """Megabytes that some work needs at its worst beside what there is before it."""

    def status(key):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(key))

    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    work()
    return (status("VmHWM") - before) / 1024


@pytest.mark.parametrize(
    ("size", "tile"), [(2048, "none"), (4096, "none"), (4096, "128"), (4096, "1024")]
)
def test_a_forged_small_model_of_a_large_input_costs_little(folder, size, tile):
    load_detector(folder, device="cpu")  # what is loaded once
    forge(folder, "vgg11", "features.1", size, 512, tile)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 200_000
    begin = time.process_time()
    assert peak(lambda: load_detector(folder, device="cpu")) < 256
    assert time.process_time() - begin < 10


def test_shapes_are_compared_before_anything_is_computed(folder, monkeypatch):
    forge(folder, "vgg11", "features.1", 64, 16)
    edit(folder, lambda r: r["options"].update(image_size="2048"))
    monkeypatch.setattr(Extractor, "__init__", lambda *a, **k: pytest.fail("a network was made"))
    with pytest.raises(ArtifactError, match=r"has shape \(64, 4, 4\), .* gives \(64, 128"):
        load_detector(folder, device="cpu")


@pytest.mark.parametrize("change", ["network", "scores"])
def test_a_large_input_is_checked_on_a_part_of_it(folder, change):
    forge(folder, "resnet18", "layer1", 2048, 512)
    load_detector(folder, device="cpu")
    if change == "network":  # finite weights whose features are not
        state = load_torch(folder / BACKBONE)
        save_torch({k: t * 0 + 1e30 for k, t in state.items()}, folder / BACKBONE)
    else:
        arrays = load_file(folder / STATISTICS)
        arrays["0.0.usual"][:] = 1e-38
        arrays["0.0.mean"][:] = 1e10
        save_file(arrays, folder / STATISTICS)
    hashes = {name: sha256(folder / name) for name in (STATISTICS, BACKBONE)}
    edit(folder, lambda r: r.update(sha256=hashes))
    with pytest.raises(ArtifactError, match="no finite score"):
        load_detector(folder, device="cpu")


@pytest.mark.parametrize("name", [DETECTOR, STATISTICS, BACKBONE])
def test_what_is_no_regular_file_is_not_waited_for(folder, name):
    (folder / name).unlink()
    (folder / name).symlink_to("/dev/zero")
    with pytest.raises(ArtifactError, match=f"{name} cannot be read .no regular file"):
        load_detector(folder, device="cpu")
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(ArtifactError, match=f"{name} cannot be read .no regular file"):
        load_detector(folder, device="cpu")


@pytest.mark.parametrize("name", [DETECTOR, STATISTICS, BACKBONE])
def test_a_file_with_a_hole_of_100_gb_is_not_read(folder, name):
    os.truncate(folder / name, 100 * 2**30)
    with pytest.raises(ArtifactError, match=f"{name} has 107374182400 bytes, more than the limit"):
        load_detector(folder, device="cpu")


def test_no_more_is_read_than_a_file_may_have(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)
    assert artifact_files.read_file(path, 100) == b"x" * 100
    with pytest.raises(ArtifactError, match="has 100 bytes, more than the limit of 99"):
        artifact_files.read_file(path, 99)


@pytest.mark.parametrize("error", [MemoryError, RuntimeError("DefaultCPUAllocator: no memory")])
def test_a_full_memory_is_one_sentence(folder, monkeypatch, error):
    def fail(*given, **named):
        raise error

    monkeypatch.setattr(Extractor, "__init__", fail)
    with pytest.raises(ArtifactError, match="cannot be built .*free some memory"):
        load_detector(folder, device="cpu")
