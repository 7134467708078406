import base64

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.models import MetricThreshold, make_metric
from mlflow.models.evaluation.validation import ModelValidationFailedException

import dfm_mlflow
from dfm_mlflow.config import EvaluateOptions
from dfm_mlflow.data.catalog import load_catalog
from dfm_mlflow.errors import ConfigError, DataError
from dfm_mlflow.images.decode import decode_image
from dfm_mlflow.jobs.evaluate import evaluate as evaluate_job
from dfm_mlflow.jobs.evaluator import _labels

from ..conftest import in_store, write_category
from ..detectors import fit

pytestmark = pytest.mark.integration  # whole jobs, one after the other


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    root = write_category(tmp_path_factory.mktemp("line"), "stripes", n_train=24)
    catalog = load_catalog(str(root), ("stripes",))
    return root, fit(
        {"stripes": [i.path.read_bytes() for i in catalog.train]}, fpr="0.1", data=str(root)
    )


@pytest.fixture(scope="module")
def registered(tmp_path_factory, empty_store, line):
    """A store with a registered version; its URI is that of the logged model."""
    root = tmp_path_factory.mktemp("store")
    with in_store(empty_store, root):
        with mlflow.start_run():
            info = dfm_mlflow.log_model(line[1], name="model", registered_model_name="dfm-stripes")
        mlflow.MlflowClient().set_registered_model_alias("dfm-stripes", "production", "1")
        yield root, info.model_uri


@pytest.fixture
def model(registered, monkeypatch):
    monkeypatch.chdir(registered[0])
    yield registered[1]
    while mlflow.active_run():
        mlflow.end_run()


@pytest.fixture
def pictures(line):
    return mlflow.data.from_image_folder(line[0])


def table_of(pictures, **columns):
    items = pictures.to_score
    return pd.DataFrame(
        {"image": [i.path.read_bytes() for i in items], "label": [i.label for i in items]} | columns
    )


def evaluate(model, data, **more):
    return mlflow.models.evaluate(model, data, model_type="dfm", evaluators="dfm", **more)


@pytest.fixture(scope="module")
def whole(registered, line):
    """Metrics of the folder."""
    found = evaluate(registered[1], mlflow.data.from_image_folder(line[0])).metrics
    while mlflow.active_run():
        mlflow.end_run()
    return found


def untimed(metrics):
    return {k: v for k, v in metrics.items() if k != "images_per_second"}


def test_the_numbers_are_those_of_the_job(model, pictures, line):
    job = evaluate_job(EvaluateOptions.parse({"model": model, "data": str(line[0])}))
    with mlflow.start_run() as run:
        result = evaluate(model, pictures)
    assert result.run_id == run.info.run_id
    ours, theirs = untimed(result.metrics), untimed(job.metrics)
    assert len(ours.keys() ^ theirs.keys()) <= 1  # files that were not used: a matter of folders
    shared = ours.keys() & theirs.keys()
    assert {n: ours[n] for n in shared} == pytest.approx({n: theirs[n] for n in shared}, abs=1e-9)
    assert result.metrics["pixel_aupro"] > 0.5
    stored = mlflow.get_run(run.info.run_id)
    for name, value in result.metrics.items():
        assert stored.data.metrics[name] == pytest.approx(value)
    (used,) = stored.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("stripes", pictures.digest)
    # once, and linked to the model and the data
    logged = mlflow.get_logged_model(model.removeprefix("models:/"))
    (point,) = [m for m in logged.metrics if m.key == "image_auroc" and m.run_id == run.info.run_id]
    assert (point.dataset_name, point.dataset_digest) == ("stripes", pictures.digest)
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "image_auroc")
    assert len(history) == 1
    assert "is promised" in stored.data.tags["calibration"]


def test_the_report_and_the_scores_are_artifacts(model, pictures, tmp_path):
    result = evaluate(model, pictures)
    assert "<html" in result.artifacts["report"].content
    scores = mlflow.artifacts.download_artifacts(
        run_id=result.run_id, artifact_path="scores.parquet"
    )
    assert list(pd.read_parquet(scores)["anomaly_score"]) == list(
        result.artifacts["scores"].content["anomaly_score"]
    )
    result.save(tmp_path / "kept")
    again = mlflow.models.EvaluationResult.load(str(tmp_path / "kept"))
    assert again.metrics == pytest.approx(result.metrics)
    assert set(again.artifacts) == {"report", "scores"}


def test_an_alias_says_as_much_as_the_model(model, pictures):
    with mlflow.start_run() as run:
        result = evaluate("models:/dfm-stripes@production", pictures)
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "image_auroc")
    assert [m.value for m in history] == [result.metrics["image_auroc"]]
    logged = mlflow.get_logged_model(model.removeprefix("models:/"))
    assert "image_auroc" in {m.key for m in logged.metrics if m.run_id == run.info.run_id}


def test_a_table_gives_the_numbers_of_a_folder(model, pictures, whole):
    masks = [i.mask.files[0].read_bytes() if i.mask else None for i in pictures.to_score]
    rows = evaluate(model, table_of(pictures, mask=masks), targets="label").metrics
    assert untimed(rows) == pytest.approx(untimed(whole), abs=1e-9)
    text = table_of(pictures)
    text["image"] = [base64.b64encode(data).decode() for data in text["image"]]
    text["label"] = text["label"] != "good"
    coded = evaluate(model, text, targets="label").metrics
    assert coded["image_auroc/defective"] == whole["image_auroc/hole"]
    assert coded["image_auroc"] == whole["image_auroc"]
    dataset = mlflow.data.from_pandas(table_of(pictures), targets="label")
    assert evaluate(model, dataset).metrics["image_auroc"] == whole["image_auroc"]


def test_arrays_and_rows_without_a_picture_are_evaluated_too(model, pictures, whole):
    table = table_of(pictures)
    table["image"] = [decode_image(data) for data in table["image"]]
    assert evaluate(model, table, targets="label").metrics["image_auroc"] == whole["image_auroc"]
    table.loc[0, "image"] = None
    found = evaluate(model, table, targets="label").metrics
    assert (found["n_test"], found["n_unreadable"]) == (whole["n_test"] - 1, 1)
    table["image"] = [np.zeros((3, 8, 8)), *table["image"][1:]]
    with pytest.raises(DataError, match="Row 0 of the data: "):
        evaluate(model, table, targets="label")


def test_without_labels_there_is_drift_alone(model, pictures, line):
    flat = mlflow.data.from_image_folder(line[0] / "stripes/test/hole", "stripes")
    for data, n in ((flat, 6), (table_of(pictures).drop(columns="label"), 14)):
        metrics = evaluate(model, data).metrics
        assert metrics["n_images"] == n
        assert metrics["drift_flagged"] >= 6 / n
        assert 0 < metrics["drift_significance"] <= 1
        assert not any("auroc" in name or name == "recall" for name in metrics)


def test_validation_passes_and_fails(model, pictures):
    result = evaluate(model, pictures)
    good = {"image_auroc": MetricThreshold(threshold=0.7, greater_is_better=True)}
    mlflow.validate_evaluation_results(good, result)
    never = {"false_positive_rate": MetricThreshold(threshold=-1, greater_is_better=False)}
    with pytest.raises(ModelValidationFailedException, match="false_positive_rate"):
        mlflow.validate_evaluation_results(never, result)
    better = {"image_auroc": MetricThreshold(min_absolute_change=0.01, greater_is_better=True)}
    with pytest.raises(ModelValidationFailedException):
        mlflow.validate_evaluation_results(better, result, baseline_result=result)


def test_metrics_of_the_users_own(model, pictures):
    gap = make_metric(
        eval_fn=lambda predictions, targets, metrics, scale: (
            scale * (predictions[targets == 1].mean() - predictions[targets == 0].mean())
        ),
        greater_is_better=True,
        name="gap",
    )
    result = evaluate(
        model,
        pictures,
        extra_metrics=[gap, mlflow.metrics.mse()],
        evaluator_config={"scale": 2.0},
        predictions="p_value",
    )
    table = result.artifacts["scores"].content
    means = table.groupby("defective")["p_value"].mean()
    assert result.metrics["gap"] == pytest.approx(2 * (means[True] - means[False]))
    squared = ((table["p_value"] - table["defective"]) ** 2).mean()
    assert result.metrics["mean_squared_error"] == pytest.approx(squared)
    assert mlflow.get_run(result.run_id).data.metrics["gap"] == pytest.approx(result.metrics["gap"])
    with pytest.raises(ConfigError, match="gap asks for scale"):
        evaluate(model, pictures, extra_metrics=[gap])
    with pytest.raises(ConfigError, match="predictions=score is not a column"):
        evaluate(model, pictures, extra_metrics=[gap], predictions="score")


@pytest.mark.parametrize(
    ("given", "labels"),
    [
        (["good", "hole "], ["good", "hole"]),
        ([True, np.False_], ["defective", "good"]),
        ([0, 1.0, np.int64(1)], ["good", "defective", "defective"]),
    ],
)
def test_labels_are_names_or_whether(given, labels):
    assert _labels(given) == labels


@pytest.mark.parametrize("label", ["", "0", "True", "nan", None, float("nan"), 2, -1])
def test_a_label_that_may_mean_two_things_is_refused(label):
    with pytest.raises(DataError, match="of row 1 says nothing: give 'good'"):
        _labels(["good", label])


def test_what_cannot_be_evaluated_is_refused_in_one_sentence(model, pictures):
    table = table_of(pictures)
    for data, more, words in (
        (np.zeros((3, 4)), {}, r"array of shape \(3, 4\): give a pandas DataFrame"),
        (
            table.rename(columns={"image": "picture"}),
            {"targets": "label"},
            "no column 'image', but picture",
        ),
        (table[["image"]][:0], {}, "no rows"),
    ):
        with pytest.raises(DataError, match=words):
            evaluate(model, data, **more)
    with pytest.raises(DataError, match="feature_names has no meaning"):
        evaluate(model, pictures, feature_names=["image"])
    with pytest.raises(ConfigError, match="no custom_artifacts"):
        evaluate(model, pictures, custom_artifacts=[print])
    with pytest.raises(ConfigError, match="no MLflow model: give the URI of a dfm model"):
        evaluate(lambda x: x, table)
    with pytest.raises(DataError, match="None of 2 pictures can be read"):
        evaluate(
            model,
            pd.DataFrame({"image": [b"noise", b""], "label": ["good", "hole"]}),
            targets="label",
        )


def test_other_peoples_models_are_evaluated_as_before(model):
    data = pd.DataFrame({"x": np.arange(6.0), "y": np.arange(6.0) + 1})

    def plus_one(table):
        return table["x"] + 1

    result = mlflow.models.evaluate(plus_one, data, targets="y", model_type="regressor")
    assert result.metrics["mean_absolute_error"] == 0
    worst = make_metric(
        eval_fn=lambda predictions, targets: float((predictions - targets).max()),
        greater_is_better=False,
        name="worst",
    )
    result = mlflow.models.evaluate(plus_one, data, targets="y", extra_metrics=[worst])
    assert result.metrics["worst"] == 0


def test_the_default_evaluator_reads_a_folder_too(model, pictures):
    """It asks the dataset for the bytes, and takes one column of the model's output."""
    largest = make_metric(
        eval_fn=lambda predictions: float(predictions.max()),
        greater_is_better=False,
        name="largest",
    )
    result = mlflow.models.evaluate(
        model, pictures, evaluators="default", extra_metrics=[largest], predictions="anomaly_score"
    )
    scores = dfm_mlflow.load_model(model).score([i.path for i in pictures.to_score])
    assert result.metrics["largest"] == pytest.approx(scores["anomaly_score"].max(), rel=1e-5)
