import http.server
import threading

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


class Answers(http.server.BaseHTTPRequestHandler):
    """Always the same status, type and body."""

    status, kind, body = 200, "text/html", b""

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.send_response(self.status)
        self.send_header("Content-Type", self.kind)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    do_POST = do_GET  # noqa: N815


PAGE = b"<!DOCTYPE html>\n<html><title>Sign in</title></html>"
CREDENTIALS = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"


@pytest.mark.parametrize(
    ("status", "kind", "body", "words"),
    [
        (401, "text/plain", b"You are not authenticated.", ["does not know who asks", CREDENTIALS]),
        (403, "text/plain", b"Permission denied", ["does not let this user", CREDENTIALS]),
        (
            403,
            "application/json",
            b'{"error_code": "PERMISSION_DENIED", "message": "not yours"}',
            ["does not let this user do that (403, ", "not yours", CREDENTIALS],
        ),
        (200, "text/html", PAGE, ["No MLflow server answers at", "correct MLFLOW_TRACKING_URI"]),
        (404, "text/html", PAGE, ["No MLflow server answers at", "correct MLFLOW_TRACKING_URI"]),
    ],
)
def test_who_does_not_answer_or_does_not_let_in(monkeypatch, status, kind, body, words):
    answers = type("Given", (Answers,), {"status": status, "kind": kind, "body": body})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), answers) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        uri = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: uri)
        for ask in ("search_experiments", "search_registered_models"):
            with pytest.raises(MlflowException) as caught:
                getattr(mlflow.MlflowClient(uri, uri), ask)()
            for found in (outage(caught.value), refusal(caught.value)):
                assert uri in str(found)
                assert all(word in str(found) for word in words)
                assert "\n" not in str(found)
        server.shutdown()


def test_a_deleted_experiment_is_named_with_the_way_back(store):
    client = mlflow.MlflowClient()
    number = client.create_experiment("line 4's")
    client.delete_experiment(number)
    back = f"line 4's is deleted: `mlflow experiments restore --experiment-id {number}` brings"
    with pytest.raises(MlflowException) as caught:
        mlflow.set_experiment("line 4's")
    assert back in str(refusal(caught.value))
    with pytest.raises(MlflowException) as caught:
        mlflow.start_run(experiment_id=number)
    assert back in str(refusal(caught.value))
