import shutil
from dataclasses import replace

import pytest
import torch

from dfm_mlflow.config import Options
from dfm_mlflow.data.catalog import load_catalog
from dfm_mlflow.errors import FitError
from dfm_mlflow.network import builder as module
from dfm_mlflow.network.builder import build_extractor, precision_change, read_sample


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
        assert build_extractor(options, items)[0].precision == "bf16"
