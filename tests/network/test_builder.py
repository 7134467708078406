import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from dfm_mlflow.config import Options
from dfm_mlflow.data.catalog import load_catalog
from dfm_mlflow.errors import DataError, FitError
from dfm_mlflow.network import builder as module
from dfm_mlflow.network import reading
from dfm_mlflow.network.builder import build_extractor, load_roi, precision_change, read_sample


@pytest.fixture
def given(mvtec_like):
    options = Options(
        category="stripes",
        data=str(mvtec_like),
        backbone="resnet18",
        weights="random",
        image_size="64",
        layers="layer2",
        pooling="2",
        cache=False,
        device="cpu",
    ).resolve()
    return options, load_catalog(options.data, options.categories).train


@pytest.fixture
def bf16(monkeypatch):
    monkeypatch.setattr(module, "half_precision", lambda device: "bf16")


def test_auto_takes_half_precision_where_scores_stand_it(given, bf16, monkeypatch, caplog):
    options, items = given
    monkeypatch.setattr(module, "MAX_CHANGE", 0.2)  # drawn stripes are all alike
    with caplog.at_level("INFO"):
        extractor, _, resolved = build_extractor(options, items)
    assert extractor.precision == resolved.precision == "bf16"
    assert "held-out scores of good pictures change by" in caplog.text


def test_auto_falls_back_where_they_do_not(given, bf16, monkeypatch, caplog):
    options, items = given
    original = module.Extractor.run_batch

    def coarse(self, pixels):
        maps = original(self, pixels)
        if self.precision == "fp32":
            return maps
        return [m + 0.3 * m.std() * torch.randn(m.shape) for m in maps]

    monkeypatch.setattr(module.Extractor, "run_batch", coarse)
    with caplog.at_level("INFO"):
        assert build_extractor(options, items)[0].precision == "fp32"
    assert "precision=auto takes fp32" in caplog.text


def test_auto_is_fp32_without_pictures_or_with_few(given, bf16):
    options, items = given
    assert build_extractor(options)[0].precision == "fp32"
    assert build_extractor(options, items[:7])[0].precision == "fp32"


def test_what_is_asked_for_is_taken(given, bf16):
    options, items = given
    asked = options.model_copy(update={"precision": "fp32"})
    assert build_extractor(asked, items)[0].precision == "fp32"


def test_the_same_network_changes_nothing(given):
    options, items = given
    extractor = build_extractor(options)[0]
    assert precision_change(extractor, extractor, read_sample(items), 0.97) == 0


def test_pictures_that_are_all_the_same_say_nothing(given, tmp_path):
    options, items = given
    extractor = build_extractor(options)[0]
    copies = []
    for i in range(10):
        shutil.copy(items[0].path, tmp_path / f"{i}.png")
        copies.append(replace(items[0], path=tmp_path / f"{i}.png"))
    with pytest.raises(FitError, match="too alike"):
        precision_change(extractor, extractor, read_sample(copies), 0.97)


@pytest.mark.parametrize("cache", [True, False])
def test_measured_pictures_are_not_run_again(given, bf16, monkeypatch, tmp_path, cache):
    monkeypatch.setattr(module, "MAX_CHANGE", 1.0)
    monkeypatch.setenv("DFM_CACHE_HOME", str(tmp_path))
    options, items = given
    options = options.model_copy(update={"cache": cache})
    measured = [i.path for i in items[: module.N_MEASURED]]
    extractor = build_extractor(options, items)[0]
    with monkeypatch.context() as patch:
        patch.setattr(extractor, "run_batch", lambda pixels: pytest.fail("the network ran"))
        found = extractor.extract(measured).features[0]
    alone = build_extractor(options.model_copy(update={"precision": "bf16", "cache": False}))[0]
    torch.testing.assert_close(found, alone.extract(measured).features[0])
    if cache:  # the measurement is kept, too
        monkeypatch.setattr(module, "crossfit", lambda *a: pytest.fail("it measured again"))
        again = build_extractor(options, items)[0]
        assert again.precision == "bf16"
        monkeypatch.setattr(reading, "read_picture", lambda *a: pytest.fail("it read them again"))
        torch.testing.assert_close(again.extract(measured).features[0], found)


SQUARE = np.zeros((80, 80), dtype=np.uint8)
SQUARE[20:60, 20:60] = 255


def saved(path, image, **how):
    image.save(path, **how)
    return str(path)


def test_a_region_is_read_as_masks_are_and_its_share_is_said(tmp_path, caplog):
    clear = np.dstack([SQUARE * 0 + 255] * 3 + [SQUARE])
    regions = [
        saved(tmp_path / "grey.png", Image.fromarray(SQUARE)),
        saved(tmp_path / "alpha.png", Image.fromarray(clear, "RGBA")),
        saved(tmp_path / "noisy.jpg", Image.fromarray(SQUARE), quality=60),
    ]
    with caplog.at_level("INFO"):
        for region in regions:
            np.testing.assert_array_equal(load_roi(region), SQUARE > 0)
            assert f"roi={region}: 25 % of the picture counts" in caplog.text
    assert "cut at half of the largest value" in caplog.records[-1].getMessage()
    assert {r.levelname for r in caplog.records} == {"INFO"}


@pytest.mark.parametrize("marked", [1, 80 * 80])
def test_a_region_of_nearly_nothing_or_of_everything_is_warned_of(tmp_path, caplog, marked):
    spot = np.zeros(80 * 80, dtype=np.uint8)
    spot[:marked] = 255
    region = saved(tmp_path / "spot.png", Image.fromarray(spot.reshape(80, 80)))
    assert load_roi(region).sum() == marked
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "is that the region that was meant?" in record.getMessage()


def test_a_region_that_cannot_be_is_named_in_full(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "black.png", Image.fromarray(SQUARE * 0))
    assert load_roi("none") is None
    for name, words in {"black.png": "no nonzero pixel", "gone.png": "cannot be read"}.items():
        with pytest.raises(DataError, match=f"roi={tmp_path}/{name} (has )?{words}"):
            load_roi(name)
