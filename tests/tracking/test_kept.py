import mlflow
import pytest
from botocore.exceptions import NoCredentialsError
from requests import ConnectionError

from dfm_mlflow.config import EvaluateOptions
from dfm_mlflow.errors import TrackingError
from dfm_mlflow.jobs import evaluate as evaluate_module
from dfm_mlflow.jobs import recalibrate as recalibrate_module
from dfm_mlflow.tracking import kept
from dfm_mlflow.tracking.lineage import RECALIBRATED_FROM

from ..jobs.test_evaluate import new_pictures
from ..jobs.test_recalibrate import ask as recalibrate
from ..jobs.test_train import artifacts

pytestmark = pytest.mark.integration  # whole jobs, one after the other


def fail_once(monkeypatch, module, name):
    """Let a function of a job fail as it does where the server has gone away, the first time."""
    whole = getattr(module, name)

    def fail(*given, **named):
        monkeypatch.setattr(module, name, whole)
        raise ConnectionError("the server has gone away")

    monkeypatch.setattr(module, name, fail)


def kept_folder(tmp_path):
    (folder,) = (tmp_path / kept.KEPT).iterdir()
    return folder


def test_results_that_cannot_be_kept_leave_nothing_and_the_first_sentence(store, tmp_path, caplog):
    def fail(run_id):
        raise OSError("disk full")

    with (
        pytest.raises(TrackingError, match="then run the command again"),
        kept.kept_on_outage("abc", "name", {}, fail),
    ):
        raise NoCredentialsError
    assert not list((tmp_path / kept.KEPT).iterdir())
    assert "cannot be kept" in caplog.text
    assert "disk full" in caplog.text
    assert mlflow.get_tracking_uri() == store


def test_an_evaluation_is_kept_and_logged_as_it_would_have_been(trained, tmp_path, monkeypatch):
    asked = EvaluateOptions.parse({"model": "models:/dfm-stripes/1"})
    plain = evaluate_module.evaluate(asked)
    fail_once(monkeypatch, evaluate_module, "log_results")
    with pytest.raises(TrackingError, match=r"`dfm-mlflow resume-logging .*` logs and registers"):
        evaluate_module.evaluate(asked)
    folder = kept_folder(tmp_path)
    result = kept.log_kept(str(folder))
    assert result.model_uri == "models:/dfm-stripes/1"
    first, later = mlflow.get_run(plain.run_id), mlflow.get_run(result.run_id)
    same = {k: v for k, v in first.data.metrics.items() if k != "images_per_second"}
    assert later.data.metrics.items() >= same.items()
    assert later.data.params == first.data.params
    assert later.info.run_name == first.info.run_name
    assert later.data.tags.items() >= {"dfm.kept_run": folder.name, "dfm.job": "evaluate"}.items()
    assert later.inputs.model_inputs[0].model_id == first.inputs.model_inputs[0].model_id
    names = [{p.name for p in artifacts(r.info.run_id).iterdir()} for r in (first, later)]
    assert names[0] == names[1]
    model = mlflow.get_logged_model(trained.model_uri.removeprefix("models:/"))
    ours = {m.key for m in model.metrics if m.run_id == result.run_id}
    assert ours == {m.key for m in model.metrics if m.run_id == plain.run_id}
    assert len(mlflow.MlflowClient().search_model_versions("")) == 1  # nothing is registered


def test_a_recalibration_is_kept_and_registered_later(trained, tmp_path, monkeypatch):
    images = new_pictures(tmp_path / "dark", n=30, darker=0.1)
    plain = recalibrate(images)
    fail_once(monkeypatch, recalibrate_module, "log_golden")
    with pytest.raises(TrackingError, match=r"`dfm-mlflow resume-logging .*` logs and registers"):
        recalibrate(images)
    result = kept.log_kept(str(kept_folder(tmp_path)))
    assert result.model_uri == "models:/dfm-stripes/3"
    version = mlflow.MlflowClient().get_model_version("dfm-stripes", "3")
    assert version.tags[RECALIBRATED_FROM] == "models:/dfm-stripes/1"
    assert version.tags["dfm.fpr"] == "0.1"
    detector = kept.load_model(result.model_uri)
    assert detector.thresholds() == pytest.approx(plain.detector.thresholds())
    assert mlflow.get_run(result.run_id).data.metrics["n_calibration"] == 30
    first, later = (mlflow.models.Model.load(f"models:/dfm-stripes/{number}") for number in (2, 3))
    assert later.metadata == first.metadata
    assert later.flavors["python_function"]["config"] == first.flavors["python_function"]["config"]


def test_a_recalibration_without_a_name_is_not_registered_later(trained, tmp_path, monkeypatch):
    fail_once(monkeypatch, recalibrate_module, "log_golden")
    with pytest.raises(TrackingError):
        recalibrate(new_pictures(tmp_path / "dark", n=8), registered_model="none")
    result = kept.log_kept(str(kept_folder(tmp_path)))
    assert len(mlflow.MlflowClient().search_model_versions("")) == 1
    assert result.model_uri.startswith("models:/m-")
