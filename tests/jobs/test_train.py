import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

import dfm_mlflow
from dfm_mlflow.config import Options
from dfm_mlflow.data.catalog import load_catalog
from dfm_mlflow.data.groups import groups_of
from dfm_mlflow.data.item import Item
from dfm_mlflow.errors import DataError, DfmError
from dfm_mlflow.jobs.train import train
from dfm_mlflow.network.extractor import Extractor
from dfm_mlflow.scores.evaluation import image_metrics, metric_name

SMALL = {"weights": "random", "image_size": "64", "backbone": "resnet18"}
CONTRACT = {
    "image_auroc",
    "image_auroc_fre",
    "image_auroc_nll",
    "image_average_precision",
    "image_f1_max",
    "image_f1",
    "precision",
    "recall",
    "false_positive_rate",
    "false_negative_rate",
    "image_auroc/hole",
    "threshold",
    "effective_fpr",
    "n_train",
    "n_test",
    "n_components",
    "extract_seconds",
    "fit_seconds",
    "images_per_second",
    "model_megabytes",
    "peak_memory_megabytes",
    "pixel_auroc",
    "pixel_aupro",
    "n_without_mask",
}


def options(data, category, **more):
    return Options.parse({"data": str(data), "category": category, **SMALL, **more})


def artifacts(run_id):
    return Path(mlflow.artifacts.download_artifacts(run_id=run_id))


@pytest.fixture(scope="module")
def opened():
    """Counts of opened files by path, while a test has set ``state["counts"]``."""
    state = {"counts": None}

    def hook(event, arguments):
        if event == "open" and state["counts"] is not None:
            state["counts"][str(arguments[0])] += 1

    sys.addaudithook(hook)  # there is no way to take it off again
    yield state
    state["counts"] = None


@pytest.mark.parametrize("cache", ["true", "false"])
def test_a_picture_is_opened_once(store, mvtec_like, tmp_path, opened, cache):
    """One read gives catalogue, cache and network what they need; what is shown is read again."""
    shutil.copytree(mvtec_like / "stripes", tmp_path / "stripes")
    opened["counts"] = counts = Counter()
    result = train(options(tmp_path, "stripes", cache=cache, precision="auto"))
    opened["counts"] = None
    dataset = mlflow.get_run(result.run_id).inputs.dataset_inputs[0].dataset
    assert dataset.digest == load_catalog(str(tmp_path), ["stripes"]).digest
    assert sum(json.loads(dataset.profile)["sizes"].values()) == 38
    times = [counts[str(p)] for p in sorted((tmp_path / "stripes/train/good").iterdir())]
    # the example, the golden pictures, and the usual and unusual ones in the report, which are
    # chosen after the fit, are opened for themselves
    assert len(times) == 24
    assert sum(n > 1 for n in times) <= 18
    assert min(times) == 1
    shown = result.run_id and [counts[str(p)] for p in (tmp_path / "stripes/test").rglob("*.png")]
    assert min(shown) == 1


def test_a_run_holds_what_it_promises(store, mvtec_like):
    result = train(options(mvtec_like, "stripes"))
    run = mlflow.get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert set(run.data.metrics) >= CONTRACT
    assert run.data.metrics["image_auroc"] > 0.9  # a black square on stripes
    assert (run.data.metrics["n_train"], run.data.metrics["n_test"]) == (24, 14)
    assert run.data.metrics["pixel_auroc"] > 0.85
    assert run.data.metrics["n_without_mask"] == 1
    params = run.data.params
    assert params["resolved_backbone"] == "resnet18"
    assert params["resolved_layers"] == "layer2,layer3"
    assert params["weights_id"] == "random:42"
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, len(used.dataset.digest)) == ("stripes", 16)
    folder = artifacts(result.run_id)
    page = (folder / "report/report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    assert f"{run.data.metrics['image_auroc']:.3f}" in page

    overlays = sorted((folder / "report/overlays").iterdir())
    assert {Image.open(p).size for p in overlays} == {(64, 64)}

    table = pd.read_parquet(folder / "scores.parquet")
    assert len(table) == 14
    again = dfm_mlflow.load_model("models:/dfm-stripes/1").score([Path(p) for p in table["path"]])
    np.testing.assert_allclose(again["anomaly_score"], table["anomaly_score"], rtol=1e-5)
    area = roc_auc_score(table["defective"], table["anomaly_score"])
    assert area == pytest.approx(run.data.metrics["image_auroc"])
    (model,) = mlflow.search_logged_models(output_format="list")
    assert "image_auroc" in {m.key for m in model.metrics}
    assert result.registered_version == 1 or result.registered_version == "1"


def test_a_flat_folder_of_good_images_is_enough(store, mvtec_like):
    result = train(options(mvtec_like / "stripes/train/good", "stripes", registered_model="none"))
    metrics = mlflow.get_run(result.run_id).data.metrics
    assert not any("auroc" in name for name in metrics)
    assert metrics["n_test"] == 0
    assert metrics["threshold"] > 0
    assert (artifacts(result.run_id) / "report/report.html").is_file()
    assert mlflow.MlflowClient().search_registered_models() == []
    assert dfm_mlflow.load_model(result.model_uri).thresholds() == result.detector.thresholds()


def test_two_categories_make_one_class_conditional_model(store, mvtec_like):
    result = train(options(mvtec_like, "stripes,bands"))
    metrics = mlflow.get_run(result.run_id).data.metrics
    assert {"image_auroc/stripes", "image_auroc/bands/hole", "threshold/bands"} <= set(metrics)
    assert result.detector.class_names == ("stripes", "bands")
    (registered,) = mlflow.MlflowClient().search_registered_models()
    assert registered.name == "dfm-stripes-bands"


def test_a_second_run_uses_the_cache_and_gives_the_same(store, mvtec_like, monkeypatch):
    first = train(options(mvtec_like, "bands", pca_level="0.9"))
    run = Extractor.run_batch

    def guarded(extractor, batch):
        # MLflow's check of the input example loads the model, which has no cache
        return pytest.fail("the network ran") if extractor.cache else run(extractor, batch)

    monkeypatch.setattr(Extractor, "run_batch", guarded)
    second = train(options(mvtec_like, "bands", pca_level="0.9"))
    same = ("image_auroc", "threshold", "n_components")
    assert [first.metrics[k] for k in same] == [second.metrics[k] for k in same]


def test_a_bad_training_picture_is_reported_and_many_stop_the_run(
    store, mvtec_like, tmp_path, caplog
):
    root = tmp_path / "data"
    shutil.copytree(mvtec_like / "stripes", root / "stripes")
    broken = root / "stripes/train/good/000.png"
    broken.write_bytes(b"noise")
    result = train(options(root, "stripes"))
    assert result.metrics["n_train"] == 23
    assert result.metrics["n_unreadable"] == 1
    assert f"Left out {broken}" in caplog.text
    for i in range(1, 4):
        (root / f"stripes/train/good/{i:03d}.png").write_bytes(b"noise")
    with pytest.raises(DataError, match="4 of 24 training pictures cannot be read, more than 5%"):
        train(options(root, "stripes"))
    client = mlflow.MlflowClient()
    assert len(client.search_model_versions("name='dfm-stripes'")) == 1
    assert [r.info.status for r in client.search_runs(["0"])] == ["FAILED", "FINISHED"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"layers": "layer9"},
        {"weights": "/nowhere/w.pth"},
        {"device": "cuda:99"},
        {"backbone": "resnet19"},
        {"category": "gears"},
    ],
)
def test_what_cannot_work_starts_no_run(store, mvtec_like, wrong):
    with pytest.raises(DfmError):
        train(options(mvtec_like, "stripes").model_copy(update=wrong))
    assert mlflow.MlflowClient().search_runs(["0"]) == []


def test_a_region_of_interest_and_a_non_square_input(store, mvtec_like, tmp_path):
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[:, :40] = 255
    Image.fromarray(mask).save(tmp_path / "roi.png")
    roi = str(tmp_path / "roi.png")
    train(options(mvtec_like, "stripes", roi=roi, image_size="64x96", pooling="2"))
    loaded = dfm_mlflow.load_model("models:/dfm-stripes/1")
    assert [g.shape[1:] for g in loaded.grids] == [(4, 6), (2, 3)]
    assert loaded.grids[0].cells.sum() == 4 * 4  # 40 of 64 pixels touch 4 of 6 columns
    picture = np.full((64, 64, 3), 90, np.uint8)
    marked = picture.copy()
    marked[:, 40:] = 250
    pair = loaded.score([picture, marked])["anomaly_score"]
    assert pair[0] == pair[1]
    Image.fromarray(mask * 0).save(tmp_path / "black.png")
    for wrong, words in (("black.png", "no nonzero pixel"), ("none.png", "cannot be read")):
        with pytest.raises(DataError, match=words):
            train(options(mvtec_like, "stripes", roi=str(tmp_path / wrong)))


def test_group_by_is_used(store, mvtec_like):
    pattern = r"good/(\d\d)\d\.png"
    grouped = train(options(mvtec_like, "stripes", group_by=pattern))
    plain = train(options(mvtec_like, "stripes"))
    assert grouped.metrics["threshold"] != plain.metrics["threshold"]
    with pytest.raises(DataError, match="matches no training picture"):
        train(options(mvtec_like, "stripes", group_by="tray"))


def test_metrics_without_one_of_the_kinds():
    frame = pd.DataFrame(
        {
            "category": "a",
            "label": "good",
            "defective": False,
            "error": None,
            "anomaly_score": [1.0, 2.0],
            "fre": 1.0,
            "nll": 1.0,
            "is_anomaly": [True, False],
        }
    )
    metrics = image_metrics(frame)
    assert metrics["false_positive_rate"] == 0.5
    assert "image_auroc" not in metrics
    assert "recall" not in metrics
    assert image_metrics(frame.iloc[:0]) == {}
    assert metric_name("bent (left) & cut") == "bent _left_ _ cut"


@pytest.mark.slow
def test_a_training_says_each_fact_once_and_what_is_next(mvtec_like, tmp_path):
    """What a user sees, in a process of its own: the log, the result, and JSON for scripts."""

    def run(*more):
        given = options(mvtec_like, "stripes").model_dump()
        words = [f"--{k}={given[k]}" for k in ("data", "category", "weights", "image_size")]
        return subprocess.run(
            [sys.executable, "-m", "dfm_mlflow", "train", *words, *more],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
            env={k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")},
        )

    done = run()
    lines = done.stdout.splitlines() + done.stderr.splitlines()
    assert len(lines) < 60
    assert all(line.strip() for line in done.stderr.splitlines())
    said = [line.removeprefix("Warning: ") for line in lines if len(line) > 40]
    assert len(said) == len(set(said))
    assert "mlflow.store" not in done.stderr
    assert "Successfully registered" not in done.stderr
    after = done.stdout.split("\nNext\n")[1]
    for command in (
        "mlflow ui --backend-store-uri sqlite:///",
        "mlflow models serve -m models:/dfm-stripes/1",
        "dfm-mlflow score --model models:/dfm-stripes/1",
        "dfm-mlflow promote models:/dfm-stripes/1 --alias production",
    ):
        assert command in after
    report = re.search(r"report +(\S+)", after)[1]
    assert Path(report).is_file()
    assert "exports to ONNX" in done.stdout or "exported to ONNX" in done.stdout
    quiet = run("--quiet", "--json")
    record = json.loads(quiet.stdout)
    assert record["model_uri"] == "models:/dfm-stripes/2"
    assert 0 <= record["metrics"]["image_auroc"] <= 1
    assert not [line for line in quiet.stderr.splitlines() if not line.startswith("Warning")]


def test_groups_of_a_manifest_go_before_the_expression_on_the_path():
    def items(*groups):
        return [Item(Path(f"{i}.png"), "a", "train", "good", None, g) for i, g in enumerate(groups)]

    assert groups_of("none", items(None, None)) is None
    assert groups_of("none", items("x", None, "x")) == ["x", "1.png", "x"]
    assert groups_of(r"\.(png)", items("x", None, None)) == ["x", "png", "png"]
