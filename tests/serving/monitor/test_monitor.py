"""What a server does beside answering, in this process."""

import hashlib
import time

import pandas as pd
import pytest
from mlflow.exceptions import MlflowException

from dfm_mlflow.config.serving import ServingSettings
from dfm_mlflow.errors import ConfigError
from dfm_mlflow.serving.engine import Version
from dfm_mlflow.serving.monitor import monitor as module
from dfm_mlflow.serving.monitor.memory import memory_of
from dfm_mlflow.serving.monitor.messages import cautious_p_values
from dfm_mlflow.serving.monitor.monitor import Monitor
from dfm_mlflow.serving.pyfunc import PyfuncModel, _read_parquet

from ...detectors import fit, pictures
from ...servers import free_port
from .test_metrics import scrape

pytestmark = pytest.mark.integration  # whole jobs, one after the other

GOOD, BAD = pictures(6, 7), pictures(3, 8, defect=True)
VERSION = Version("ab" * 32, "screws", "3")


@pytest.fixture(scope="module")
def banded():
    return fit({"stripes": pictures(60)}, fpr="0.02", retest="0.5")


@pytest.fixture
def served(monkeypatch, banded):
    """A model in a process that says that it is MLflow's server."""
    monkeypatch.setenv("__pyfunc_model_path__", "model")
    monkeypatch.setattr(module, "_LAST_SECONDS", 30.0)
    ends = []
    monkeypatch.setattr(module._compat, "on_shutdown", ends.append)

    def serve(**given):
        settings = ServingSettings(**given)
        monitor = Monitor.of(settings)
        model = PyfuncModel(banded, settings, version=VERSION, monitor=monitor)
        model.warm_up()
        return model, monitor.begin(model.engines), lambda: [ends.pop()() for _ in list(ends)]

    yield serve
    for end in ends:
        end()


def frame(images):
    return pd.DataFrame({"image": images})


def test_off_it_is_not_there(monkeypatch):
    assert Monitor.of(ServingSettings(metrics_port=9100)) is None  # no server
    monkeypatch.setenv("__pyfunc_model_path__", "model")
    assert Monitor.of(ServingSettings()) is None
    assert Monitor.of(ServingSettings(metrics_port=9100)) is not None


def test_every_answer_is_in_the_log_and_the_pictures_that_are_kept(served, tmp_path):
    model, says, end = served(log_to=str(tmp_path), keep="retest")
    assert says == f"; version 3 of screws, log to {tmp_path}, keep retest"
    answer = model.predict(frame([*GOOD, *BAD]))
    with pytest.raises(MlflowException):
        model.predict(frame([GOOD[0], b"noise"]))
    reported = model.predict(frame([b"noise", GOOD[1]]), {"on_error": "report"})
    end()
    table = pd.read_parquet(tmp_path / "scores")
    assert len(table) == 9 + 1 + 2
    first = table[:9]
    for column in ("anomaly_score", "p_value", "predicted_class", "decision"):
        assert first[column].tolist() == answer[column].tolist()
    assert first["is_anomaly"].tolist() == answer["is_anomaly"].tolist()
    digests = [hashlib.sha256(i).hexdigest() for i in [*GOOD, *BAD]]
    assert first["sha256"].tolist() == digests
    assert table["model_version"].unique().tolist() == ["3"]
    assert table["time"].is_monotonic_increasing
    assert (table["latency_ms"] > 0).all()
    assert table["error"][9].startswith("Row 1: The bytes are not")
    assert table["error"][10] == reported["error"][0]
    assert table["decision"][11] in ("pass", "retest", "reject")
    asked_for = first[first["decision"] != "pass"]
    assert set(asked_for["decision"]) == {"reject", "retest"}
    kept = {p.stem: p.read_bytes() for p in (tmp_path / "kept").rglob("*.png")}
    wanted = set(asked_for["sha256"]) | set(table["sha256"][11:][table["decision"][11:] != "pass"])
    assert set(kept) == wanted
    assert all(hashlib.sha256(data).hexdigest() == name for name, data in kept.items())


def test_only_flagged_pictures_are_kept_where_that_is_asked(served, tmp_path):
    model, _, end = served(log_to=str(tmp_path), keep="flagged")
    answer = model.predict(frame([*GOOD, *BAD]))
    end()
    flagged = answer["is_anomaly"].to_numpy(bool)
    digests = [hashlib.sha256(i).hexdigest() for i in [*GOOD, *BAD]]
    kept = {p.stem for p in (tmp_path / "kept").rglob("*.png")}
    assert kept == {d for d, f in zip(digests, flagged, strict=True) if f}


def test_every_picture_that_could_be_scored_is_kept_where_that_is_asked(served, tmp_path):
    model, _, end = served(log_to=str(tmp_path), keep="all")
    answer = model.predict(frame([*GOOD, *BAD, b"noise"]), {"on_error": "report"})
    end()
    assert (answer["decision"] == "pass").any()
    digests = {hashlib.sha256(i).hexdigest() for i in [*GOOD, *BAD]}
    assert {p.stem for p in (tmp_path / "kept").rglob("*.*")} == digests


def test_without_keep_no_picture_is_anywhere(served, tmp_path):
    model, _, end = served(log_to=str(tmp_path))
    model.predict(frame([*GOOD, *BAD]))
    end()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["scores"]
    (part,) = (tmp_path / "scores").iterdir()
    assert not any(image[:200] in part.read_bytes() for image in (*GOOD, *BAD))


def test_metrics_say_what_the_answers_said(served, tmp_path):
    port = free_port()
    model, _, _ = served(metrics_port=port, log_to=str(tmp_path), drift_alarm=0.01)
    answer = model.predict(frame([*GOOD, *BAD]))
    with pytest.raises(MlflowException):
        model.predict(frame([b"noise"]))
    with pytest.raises(MlflowException):
        model.predict(frame(GOOD), {"fpr": 7.0})
    model.predict(frame([b"noise"]), {"on_error": "report"})
    found = scrape(port)
    assert found["dfm_pictures_total",] == 9
    assert found["dfm_flagged_total",] == answer["is_anomaly"].sum()
    assert found["dfm_requests_total",] == 4
    assert found["dfm_errors_total", ("kind", "picture")] == 2
    assert found["dfm_errors_total", ("kind", "request")] == 1
    assert found["dfm_decode_seconds_count",] == 11
    assert found["dfm_batch_pictures_sum",] == 9
    assert found["dfm_p_value_count",] == 9
    assert found["dfm_model_version",] == 3
    assert found["dfm_alarm", ("kind", "drift")] == 0
    assert found["dfm_device_memory_bytes", ("kind", "resident")] > 1e8


def test_a_body_that_is_no_request_is_counted(served):
    port = free_port()
    model, _, _ = served(metrics_port=port)
    with pytest.raises(MlflowException, match="not a whole parquet"):
        _read_parquet(b"PAR1", ServingSettings(), model._monitor)
    assert scrape(port)["dfm_errors_total", ("kind", "request")] == 1


def test_a_mistake_of_ours_costs_no_answer(served, tmp_path, monkeypatch, caplog):
    model, _, _ = served(log_to=str(tmp_path))
    monkeypatch.setattr(module, "cautious_p_values", lambda *_: 1 / 0)
    for _ in range(3):
        assert len(model.predict(frame(GOOD))) == 6
    assert caplog.text.count("but is not in metrics and log") == 1


def test_an_alarm_that_cannot_be_stops_the_start():
    model = PyfuncModel(fit({"stripes": pictures(2)}, fpr="0.7"))
    with pytest.raises(ConfigError, match="none is left to watch"):
        Monitor(ServingSettings(drift_alarm=0.01)).begin(model.engines)


def test_a_share_that_is_less_than_promised_is_said(served, caplog):
    served(drift_alarm=0.01, expected_flagged=0.001)
    assert "expected_flagged=0.001 is less than the 0.0164" in caplog.text
    assert "drift_alarm without log_to forgets" in caplog.text


def test_tests_are_fed_with_cautious_p_values(banded):
    scores = banded.score([*GOOD, b"noise"], on_error="report")
    values = scores["anomaly_score"].to_numpy(float)
    found = cautious_p_values(banded, values, scores["predicted_class"].tolist())
    calibration = banded.classes[0].calibration
    assert found[:6] == [("stripes", p) for p in calibration.cautious_p_value(values[:6])]
    assert found[6] == (None, 1.0)


def test_memory_is_that_of_this_process(banded):
    found = memory_of(banded.extractor.device)
    assert 5e7 < found["resident"] < 1e11


def test_rows_go_out_before_the_answer(served, tmp_path):
    """What a client has been told is with the writer, whatever happens next."""
    model, _, _ = served(log_to=str(tmp_path))
    model.predict(frame(GOOD))
    channel = model._monitor._channel
    assert channel._sent == 6
    end = time.monotonic() + 20
    while channel._taken < 6:
        assert time.monotonic() < end
        time.sleep(0.05)
