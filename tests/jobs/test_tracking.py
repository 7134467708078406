import mlflow
import pytest
from botocore.exceptions import NoCredentialsError
from mlflow.exceptions import MlflowException, RestException

from dfm_mlflow.errors import DataError, TrackingError
from dfm_mlflow.jobs import kept
from dfm_mlflow.jobs.run import run_of
from dfm_mlflow.jobs.tracking import outage, refusal, server


@pytest.mark.parametrize(
    ("code", "message", "out"),
    [
        ("TEMPORARILY_UNAVAILABLE", "the database system is starting up", True),
        ("INTERNAL_ERROR", "anything", True),
        ("BAD_REQUEST", "closed (Background on this error at: https://sqlalche.me/e/20)", True),
        ("BAD_REQUEST", "no such thing", False),
        ("RESOURCE_DOES_NOT_EXIST", "No Experiment with id=7", False),
    ],
)
def test_a_server_that_fails_is_told_from_one_that_refuses(code, message, out):
    error = RestException({"error_code": code, "message": message})
    assert (outage(error) is not None) == out
    sentence = str(refusal(error))
    assert message in sentence
    assert ("look whether it and its database run" in sentence) == out


def test_other_errors_keep_their_traceback():
    for error in (ValueError("wrong"), DataError("wrong"), MlflowException("wrong")):
        assert outage(error) is None
    assert refusal(ValueError("wrong")) is None
    assert "MLflow refuses (INTERNAL_ERROR, " in str(refusal(MlflowException("wrong")))
    known = TrackingError("known")
    assert outage(known) is known


def test_a_password_is_not_told(monkeypatch):
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: "postgresql://me:secret@host:5/db")
    assert server() == "postgresql://host:5/db"


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
