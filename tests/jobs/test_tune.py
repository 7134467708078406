import io
import shutil

import mlflow
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import dfm_mlflow
from dfm_mlflow.config import Options
from dfm_mlflow.data.catalog import load_catalog
from dfm_mlflow.errors import BackboneError, DfmError
from dfm_mlflow.jobs import tune as job
from dfm_mlflow.jobs.train import train
from dfm_mlflow.jobs.tune import candidate_table, search, tune
from dfm_mlflow.tuning.candidates import SEARCHED

from ..conftest import in_store

pytestmark = pytest.mark.integration  # whole jobs, one after the other

SMALL = {"weights": "random", "image_size": "64", "backbone": "resnet18", "category": "stripes"}
SMALL |= {"augment": "none"}


@pytest.fixture(autouse=True)
def _few_defects(monkeypatch):
    monkeypatch.setattr(job, "N_DEFECTS", 42)


def options(root, **more):
    return Options.parse(SMALL | {"data": str(root)} | more)


def files(run_id):
    client = mlflow.MlflowClient()
    return {f.path for f in client.list_artifacts(run_id)}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, empty_store, mvtec_like):
    """One search of the whole grid in a store of its own."""
    with (
        in_store(empty_store, tmp_path_factory.mktemp("tuned")),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(job, "N_DEFECTS", 42)
        yield tune(options(mvtec_like))


def test_every_candidate_is_a_child_with_its_synthetic_auroc_alone(tuned):
    client = mlflow.MlflowClient()
    parent = client.get_run(tuned.trained.run_id)
    runs = client.search_runs([parent.info.experiment_id], max_results=1000)
    children = [r for r in runs if r.info.run_id != parent.info.run_id]
    assert len(children) == len(tuned.scored) == 3
    for child in children:
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.info.status == "FINISHED"
        assert child.data.metrics
        assert all(name.startswith("synthetic_auroc") for name in child.data.metrics)
        assert {f"resolved_{name}" for name in SEARCHED} <= set(child.data.params)
    (chosen,) = [c for c in children if c.data.tags["dfm.chosen"] == "true"]
    for name in SEARCHED:
        assert chosen.data.params[f"resolved_{name}"] == parent.data.params[f"resolved_{name}"]
    best = {c.data.tags["dfm.place"]: c.data.metrics["synthetic_auroc"] for c in children}
    assert max(best.values()) == best["1"]


def test_the_parent_holds_what_a_training_run_holds(tuned, mvtec_like):
    parent = mlflow.get_run(tuned.trained.run_id)
    assert {
        "image_auroc",
        "pixel_aupro",
        "threshold",
        "n_train",
        "synthetic_auroc",
        "synthetic_auroc_preset",
        "model_megabytes",
    } <= set(parent.data.metrics)
    assert parent.data.metrics["n_candidates"] == len(tuned.scored)
    assert {
        "candidates.json",
        "candidates.csv",
        "synthetic_defects.png",
        "report",
        "scores.parquet",
    } <= files(parent.info.run_id)
    assert parent.data.tags["dfm.choice"] == tuned.choice.sentence
    (version,) = mlflow.MlflowClient().search_model_versions("name='dfm-stripes'")
    assert version.run_id == parent.info.run_id
    # the winner is what train makes of its options
    detector = dfm_mlflow.load_model(tuned.trained.registered_uri)
    chosen = tuned.scored[tuned.choice.index].options
    given = {name: getattr(chosen, name) for name in SEARCHED}
    again = train(options(mvtec_like, registered_model="none", **given))
    assert again.detector.thresholds() == detector.thresholds()
    assert again.metrics["image_auroc"] == parent.data.metrics["image_auroc"]


def test_the_table_and_the_sheet_of_defects(tuned, monkeypatch):
    run_id = tuned.trained.run_id
    table = pd.read_csv(
        io.StringIO(
            mlflow.artifacts.load_text(f"{mlflow.get_run(run_id).info.artifact_uri}/candidates.csv")
        )
    )
    assert len(table) == len(tuned.scored)
    assert table["synthetic_auroc"].is_monotonic_decreasing
    assert table["chosen"].sum() == table["preset"].sum() == 1
    kinds = [c for c in table if c.startswith("synthetic_auroc/")]
    assert {"synthetic_auroc/scar", "synthetic_auroc/small", "synthetic_auroc/faint"} <= set(kinds)
    np.testing.assert_allclose(  # plans are dealt evenly, so all is the mean of the strengths
        table[["synthetic_auroc/faint", "synthetic_auroc/strong"]].mean(axis=1),
        table["synthetic_auroc"],
    )
    monkeypatch.setattr("mlflow.tracking.fluent._active_experiment_id", None)  # of another test
    shown = mlflow.load_table("candidates.json", run_ids=[run_id])
    assert len(shown) == len(table)
    sheet = mlflow.artifacts.download_artifacts(
        run_id=run_id, artifact_path="synthetic_defects.png"
    )
    with Image.open(sheet) as picture:
        assert min(picture.size) > 500


def choice_of(root, **more):
    given = options(root, **more)
    return search(given, load_catalog(given.data, given.categories).train)


def same(a, b):
    assert a.choice == b.choice
    pd.testing.assert_frame_equal(candidate_table(a), candidate_table(b))


def test_the_test_folder_is_never_looked_at(store, mvtec_like, tmp_path):
    few = {"layers": "layer2", "pca_level": "0.9"}
    with_tests = choice_of(mvtec_like, **few)
    absent = tmp_path / "absent"
    shutil.copytree(mvtec_like / "stripes/train", absent / "stripes/train")
    same(with_tests, choice_of(absent, **few))
    poisoned = tmp_path / "poisoned"
    shutil.copytree(mvtec_like / "stripes", poisoned / "stripes")
    for path in (poisoned / "stripes/test").rglob("*.png"):
        path.write_bytes(b"no picture")
    for path in (poisoned / "stripes/ground_truth").rglob("*.png"):
        path.write_bytes(b"no mask")
    swapped = poisoned / "stripes/test"
    (swapped / "good").rename(swapped / "was_good")
    (swapped / "hole").rename(swapped / "good")
    same(with_tests, choice_of(poisoned, **few))
    result = tune(options(absent, registered_model="none", **few))
    metrics = mlflow.get_run(result.trained.run_id).data.metrics
    assert not any(name.startswith("image_auroc") for name in metrics)
    assert metrics["n_test"] == 0
    same_tables = candidate_table(with_tests)["synthetic_auroc"].max()
    assert max(s.auroc for s in result.scored) == same_tables


def test_no_test_picture_is_read_during_the_search(mvtec_like, monkeypatch):
    read = []
    original = type(mvtec_like).read_bytes
    monkeypatch.setattr(
        type(mvtec_like), "read_bytes", lambda self: read.append(str(self)) or original(self)
    )
    choice_of(mvtec_like, layers="layer2", pca_level="0.9", normalize="none", cache="false")
    pictures = [p for p in read if p.endswith(".png")]
    assert pictures
    assert not [p for p in pictures if "/test/" in p or "/ground_truth/" in p]


def test_the_same_seed_chooses_the_same(mvtec_like):
    few = {"layers": "layer2", "pooling": "stride:16"}
    same(choice_of(mvtec_like, **few), choice_of(mvtec_like, **few))
    other = choice_of(mvtec_like, seed="7", **few)
    assert [s.auroc for s in other.scored] != [s.auroc for s in choice_of(mvtec_like, **few).scored]


def test_defects_stay_inside_the_region_of_interest(mvtec_like, tmp_path):
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[:, :32] = 255
    Image.fromarray(mask).save(tmp_path / "roi.png")
    more = {"roi": str(tmp_path / "roi.png"), "layers": "layer2", "pca_level": "0.9"}
    for size, resize in (("64", "stretch"), ("64x96", "stretch"), ("64x96", "keep")):
        found = choice_of(mvtec_like, image_size=size, resize=resize, **more)
        assert found.examples
        for _, _, drawn in found.examples:
            assert drawn[:, : drawn.shape[1] // 2].any()
            assert not drawn[:, drawn.shape[1] // 2 :].any()


def test_two_classes_are_searched_together(store, mvtec_like):
    given = {"category": "stripes,bands", "layers": "layer2", "pca_level": "0.9"}
    result = tune(options(mvtec_like, registered_model="none", **given))
    assert result.trained.detector.class_names == ("stripes", "bands")
    assert all(len(s.good) == 48 for s in result.scored)
    assert all(len(s.defects) == 84 for s in result.scored)


def test_presets_with_layers_of_their_own_and_likelihoods(mvtec_like):
    found = choice_of(mvtec_like, preset="anomalib-0.3", pca_level="0.9")
    assert found.scored[0].options.layers == "avgpool"
    assert found.scored[0].options.normalize == "none"
    assert len(found.scored) >= 2
    layer3 = choice_of(mvtec_like, preset="anomalib", pca_level="0.9", aggregate="sum")
    assert layer3.scored[0].options.pooling == "2"
    nll = choice_of(mvtec_like, score="nll", pca_level="0.9", pooling="stride:16")
    assert {s.options.aggregate for s in nll.scored} == {"sum"}
    assert all(np.isfinite(s.good).all() and np.isfinite(s.defects).all() for s in nll.scored)


def test_a_depth_that_was_guessed_is_searched_and_trained_alike(store, mvtec_like, tmp_path):
    """Of the same pictures, in 12 of 16 bits: read as 16 bits they would be nearly black."""
    for path in (mvtec_like / "stripes/train/good").glob("*.png"):
        values = np.asarray(Image.open(path).convert("L")).astype(float) / 255 * 4095
        wide = tmp_path / "stripes/train/good" / path.name
        wide.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values.round().astype(np.uint16)).save(wide)
    few = {"layers": "layer2", "pca_level": "0.9", "augment": "none", "registered_model": "none"}
    plain, wide = (tune(options(root, **few)) for root in (mvtec_like, tmp_path))
    assert wide.trained.detector.extractor.decoder.depth.bits == 12
    for one, other in zip(plain.scored, wide.scored, strict=True):
        assert abs(one.auroc - other.auroc) < 0.05


def test_unreadable_pictures_are_left_out(mvtec_like, tmp_path):
    shutil.copytree(mvtec_like / "stripes/train", tmp_path / "stripes/train")
    (tmp_path / "stripes/train/good/000.png").write_bytes(b"noise")
    found = choice_of(tmp_path, layers="layer2", pca_level="0.9")
    assert len(found.scored[0].good) == 23


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"layers": "layer9"}, BackboneError),
        ({"category": "gears"}, DfmError),
        ({"weights": "/nowhere/w.pth"}, DfmError),
    ],
)
def test_what_cannot_work_starts_no_run(store, mvtec_like, wrong, error):
    with pytest.raises(error):
        tune(options(mvtec_like).model_copy(update=wrong))
    assert mlflow.MlflowClient().search_runs(["0"]) == []
