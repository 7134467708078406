"""A whole model on a GPU: what it promises there, and what another device makes of it."""

import logging

import numpy as np
import pytest
import torch

from dfm_mlflow.artifact.save_load import load_detector
from dfm_mlflow.core.cells import crossfit_cells
from dfm_mlflow.detector.grid import Grid
from dfm_mlflow.detector.layer_fit import cell_blocks
from dfm_mlflow.errors import ArtifactError, DeviceError
from dfm_mlflow.mlflow_plugin.flavor import save_model
from dfm_mlflow.mlflow_plugin.golden import COLUMNS, LOOSE_TOLERANCE
from dfm_mlflow.network.device import choose_device

from ..detectors import fit, pictures

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

KINDS = {
    "pictures": {"subspace": "picture"},
    "cells": {"subspace": "cell"},
    "likelihood": {"score": "nll"},
    "copies": {"augment": "rotations"},
}
NEW = pictures(6, 1) + pictures(6, 2, defect=True)


def loaded(detector, folder, device, **more):
    save_model(detector, folder / "model")
    return load_detector(folder / "model" / "dfm", device=device, **more)


def apart(a, b):
    """Largest deviation of the scores, as promotion counts that of golden pictures."""
    largest = 0.0
    for column in COLUMNS:
        old, new = a[column].to_numpy(float), b[column].to_numpy(float)
        assert np.isfinite([old, new]).all()
        unit = np.maximum(np.abs(old), np.median(np.abs(old)))
        largest = max(largest, float((np.abs(new - old) / unit).max()))
    return largest


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_a_gpu_scores_alike_on_a_cpu(kind, tmp_path):
    detector = fit(device="cuda:0", **KINDS[kind])
    there = detector.score(NEW)
    here = loaded(detector, tmp_path, "cpu").score(NEW)
    again = load_detector(tmp_path / "model" / "dfm", device="cuda:0").score(NEW)
    assert apart(there, again) < 1e-4
    assert apart(there, here) < LOOSE_TOLERANCE
    assert (there.predicted_class == here.predicted_class).all()


@pytest.mark.parametrize("kind", KINDS)
def test_both_devices_fit_the_same(kind):
    there, here = fit(device="cuda:0", **KINDS[kind]), fit(**KINDS[kind])
    assert apart(here.score(NEW), there.score(NEW)) < LOOSE_TOLERANCE
    for a, b in zip(here.classes[0].layers, there.classes[0].layers, strict=True):
        np.testing.assert_allclose(b.subspace.variances[0], a.subspace.variances[0], rtol=0.02)
        assert b.explained_share == pytest.approx(a.explained_share, abs=0.02)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_keeps_its_own_calibration(precision, tmp_path):
    detector = fit(device="cuda:0", precision=precision)
    there = detector.score(pictures(30, 3))
    again = loaded(detector, tmp_path, "cuda:0")
    assert again.extractor.precision == precision
    assert apart(there, again.score(pictures(30, 3))) < 1e-4
    assert (there.p_value < 0.5).mean() == pytest.approx(0.5, abs=0.35)  # good pictures stay good
    with pytest.raises(ArtifactError, match=f"calibrated in {precision} and precision=fp32"):
        load_detector(tmp_path / "model" / "dfm", device="cuda:0", precision="fp32")


def seen_by_the_network(device):
    extractor, seen = fit(device=device).extractor, []
    real = extractor._network.maps

    def maps(pixels):
        seen.append(pixels.cpu())
        return real(pixels)

    extractor._network.maps = maps
    extractor.extract(NEW)
    return torch.cat(seen)


def test_every_device_sees_the_same_pixels():
    assert torch.equal(seen_by_the_network("cuda:0"), seen_by_the_network("cpu"))


def test_cells_are_fitted_where_they_are():
    rng = torch.Generator().manual_seed(0)
    feature = torch.randn(8, 16, 6, 6, generator=rng) * torch.linspace(3, 0.1, 16)[:, None, None]
    grid = Grid((16, 6, 6), np.ones((6, 6), bool), rows_are="cell")
    cells = next(cell_blocks(feature.to("cuda:0"), grid))
    assert cells.is_cuda
    folds = np.arange(8) % 4
    ours, there = crossfit_cells(lambda: [cells], folds, 0.9)
    expected, here = crossfit_cells(lambda: [cells.cpu().numpy()], folds, 0.9)
    np.testing.assert_allclose(ours.final.variances, expected.final.variances, rtol=1e-5)
    np.testing.assert_allclose(there.maps, here.maps, rtol=1e-3, atol=1e-4)


def test_a_device_that_is_not_there_is_refused():
    missing = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(DeviceError, match=f"{missing} is requested and this machine has"):
        choose_device(missing)


def test_no_picture_is_lost_where_the_memory_ends(caplog):
    detector = fit(device="cuda:0")
    expected = detector.score(NEW)
    network = detector.extractor._network
    real, asked = network.maps, []

    def small(pixels):
        asked.append(len(pixels))
        if len(pixels) > 3:
            torch.empty(1 << 50, dtype=torch.uint8, device="cuda:0")  # a real refusal
        return real(pixels)

    network.maps = small
    with caplog.at_level(logging.WARNING):
        found = detector.score(NEW)
    assert max(asked) > 3
    assert "has no memory for" in caplog.text
    assert apart(expected, found) < 1e-4
