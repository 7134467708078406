import mlflow
import pytest
from mlflow.exceptions import MlflowException, RestException

from dfm_mlflow.errors import DataError, TrackingError
from dfm_mlflow.tracking.outage import outage, refusal, server


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
