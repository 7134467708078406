"""What MLflow's pages need: names, links from metrics to model and data, curves, tables."""

import json
import os
from pathlib import Path

import mlflow
import pytest
import yaml
from botocore.exceptions import NoCredentialsError

from dfm_mlflow.config import EvaluateOptions
from dfm_mlflow.errors import TrackingError
from dfm_mlflow.jobs.evaluate import evaluate
from dfm_mlflow.mlflow_plugin import _compat
from dfm_mlflow.scores.evaluation import STEPS
from dfm_mlflow.tracking.run import log_parameters, run_of

from ..conftest import in_store
from ..jobs.test_train import CONTRACT, artifacts

ROOT = Path(__file__).parents[2]
CURVES = {
    "curve/roc_true_positive_rate",
    "curve/precision_at_recall",
    "curve/measured_false_positive_rate",
}


@pytest.fixture
def trained(train_once, tmp_path):
    """With what a run is named by."""
    database, result = train_once(pca_level="0.9", fpr="0.2")
    with in_store(database, tmp_path):
        yield result


def test_every_metric_names_its_model_and_dataset(trained):
    run = mlflow.get_run(trained.run_id)
    (used,) = run.inputs.dataset_inputs
    model = mlflow.get_logged_model(trained.model_uri.removeprefix("models:/"))
    linked = {m.key: m for m in model.metrics}
    assert set(linked) >= CONTRACT
    assert set(run.data.metrics) == set(linked) | CURVES
    for metric in linked.values():
        assert (metric.dataset_name, metric.dataset_digest) == ("stripes", used.dataset.digest)
        assert metric.value == run.data.metrics[metric.key]
    result = evaluate(EvaluateOptions.parse({"model": trained.model_uri}))
    judged = mlflow.get_run(result.run_id)
    model = mlflow.get_logged_model(trained.model_uri.removeprefix("models:/"))
    both = [m for m in model.metrics if m.key == "image_auroc"]
    assert {m.run_id for m in both} == {trained.run_id, result.run_id}
    assert {m.dataset_digest for m in both} == {used.dataset.digest}
    (of_model,) = judged.inputs.model_inputs
    assert of_model.model_id == model.model_id


def test_curves_have_a_bounded_number_of_steps(trained):
    client = mlflow.MlflowClient()
    for name in CURVES:
        history = client.get_metric_history(trained.run_id, name)
        assert [m.step for m in history] == list(STEPS)
        assert all(0 <= m.value <= 1 for m in history)
    (last,) = client.get_metric_history(trained.run_id, "curve/roc_true_positive_rate")[-1:]
    assert last.value == 1


def test_the_worst_cases_are_a_table_with_pictures(trained, zoo):
    # one that is clean has no worst case, and no table
    clean = {p.name for p in artifacts(trained.run_id).iterdir()}
    table = evaluate(EvaluateOptions.parse({"model": trained.model_uri})).run_id
    wrong = mlflow.get_run(table).data.metrics["false_positive_rate"] > 0
    assert ("worst_cases.json" in clean) == wrong
    mlflow.set_tracking_uri(zoo.uri)
    run = evaluate(
        EvaluateOptions.parse({"model": zoo.runs["bad"].model_uri, "data": zoo.clean})
    ).run_id
    rows = mlflow.load_table("worst_cases.json", run_ids=[run])
    assert (rows["case"] == "miss").all()
    assert rows["anomaly_score"].is_monotonic_increasing
    stored = json.loads((artifacts(run) / "worst_cases.json").read_text())
    picture = stored["data"][0][stored["columns"].index("picture")]
    assert (artifacts(run) / picture["filepath"]).is_file()
    mlflow.delete_run(run)


def test_parameters_are_the_same_whichever_door_the_run_came_through(trained):
    known = mlflow.get_run(trained.run_id).data.params
    point = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]["main"]
    assert set(point["parameters"]) <= set(known)  # as `mlflow run` logs them
    assert known["image_size"] == "64"
    assert (known["cache"], known["fpr"]) == ("true", "0.2")
    assert "experiment" not in known


def test_runs_are_named_by_what_tells_them_apart(trained):
    run = mlflow.get_run(trained.run_id)
    assert run.info.run_name == "stripes-resnet18-default-data0-image_size=64-pca_level=0.9"
    assert run.data.tags["dfm.job"] == "train"
    assert run.data.tags["dfm.category"] == "stripes"
    assert "The model finds" in run.data.tags["mlflow.note.content"]
    found = mlflow.search_runs(
        filter_string="metrics.image_auroc > 0.5 and params.resolved_backbone = 'resnet18' and "
        "params.resolved_pca_level = '0.9' and tags.\"dfm.job\" = 'train'",
        output_format="list",
    )
    assert [r.info.run_id for r in found] == [trained.run_id]


@pytest.mark.parametrize(("given", "kept"), [(None, False), ("mine", True)])
def test_a_run_taken_over_keeps_the_name_and_tags_that_somebody_gave(
    store, monkeypatch, given, kept
):
    run = mlflow.MlflowClient().create_run("0", run_name=given, tags={"dfm.category": "theirs"})
    assert _compat.is_random_name(run.info.run_name) == (not kept)
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)  # as `mlflow run` does
    with run_of("telling", {"dfm.job": "train", "dfm.category": "ours"}) as taken:
        assert taken.info.run_id == run.info.run_id
    assert "MLFLOW_RUN_ID" not in os.environ  # MLflow used it up
    with mlflow.start_run(run_id=run.info.run_id), run_of("another", {"dfm.job": "evaluate"}):
        pass
    after = mlflow.get_run(run.info.run_id)
    assert after.info.run_name == ("mine" if kept else "telling")
    assert after.data.tags["dfm.category"] == "theirs"
    assert after.data.tags["dfm.job"] == "train"
    assert not _compat.is_random_name("stripes-resnet18-default")
    assert not _compat.is_random_name("")


def test_a_run_that_the_store_fails_is_marked(store):
    with pytest.raises(TrackingError, match="artifact store .*credentials"), run_of("name", {}):
        raise NoCredentialsError
    (run,) = mlflow.MlflowClient().search_runs(["0"])
    assert run.info.status == "FAILED"
    assert mlflow.active_run() is None


def test_a_run_of_somebody_else_goes_on(store):
    with mlflow.start_run() as theirs:
        with pytest.raises(TrackingError), run_of("name", {}):
            raise NoCredentialsError
        assert mlflow.active_run().info.run_id == theirs.info.run_id


def test_no_git_costs_no_run(store, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with run_of("name", {}) as run:
        log_parameters(run.info.run_id, {"a": 1})
    logged = mlflow.get_run(run.info.run_id)
    assert logged.data.params == {"a": "1"}
    assert "dfm.git_commit" not in logged.data.tags
