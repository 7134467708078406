import numpy as np
import pandas as pd
import pytest

from dfm_mlflow.errors import DataError
from dfm_mlflow.scores.served import is_log, measure_log, read_log
from dfm_mlflow.serving.monitor.log_store import LogStore
from dfm_mlflow.storage.served_log import COLUMNS

from ..detectors import fit, pictures


@pytest.fixture(scope="module")
def detector():
    return fit({"stripes": pictures(60)}, fpr="0.05")


def rows_of(scores, version="3"):
    nothing = (None,) * 5
    return [
        [1e9 + i, version, "ab" * 32]
        + list(
            nothing
            if row.error
            else (row.anomaly_score, row.p_value, bool(row.is_anomaly), row.predicted_class, "pass")
        )
        + [row.error, 2.0 + i, None]
        for i, row in enumerate(scores.itertuples())
    ]


def log_of(folder, rows):
    LogStore(str(folder), 5, 5, 1).add_rows(rows)
    return str(folder)


def test_a_log_says_what_the_pictures_would(detector, tmp_path):
    """The same numbers as if the pictures were scored again."""
    images = [*pictures(80, 9), b"noise"]
    scores = detector.score(images, on_error="report")
    address = log_of(tmp_path, rows_of(scores))
    assert is_log(address)
    table = read_log(address, "3")
    assert list(table) == list(COLUMNS)
    metrics, sentences, verdict, points = measure_log(detector, table)
    assert metrics["n_images"] == 80
    assert metrics["n_unreadable"] == 1
    assert metrics["drift_flagged"] == pytest.approx(scores["is_anomaly"].mean())
    p = np.sort(detector.classes[0].calibration.cautious_p_value(scores["anomaly_score"][:80]))
    distance = max(0, (np.arange(1, 81) / 80 - (p * 61 - 1) / 60).max())
    assert metrics["drift_ks"] == pytest.approx(distance)
    assert metrics["drift_significance"] > 0.01
    assert metrics["latency_ms_p50"] == pytest.approx(42.0)
    assert "80 pictures were answered" in sentences[1]
    assert verdict.sentence
    assert [p.fpr for p in points if p.current] == [0.05]


def test_darker_pictures_show_in_the_log(detector, tmp_path):
    scores = detector.score(pictures(80, 9, shift=-40))
    metrics, *_ = measure_log(detector, read_log(log_of(tmp_path, rows_of(scores))))
    assert metrics["drift_significance"] < 0.01


def test_rows_of_other_versions_are_left_out_or_refused(detector, tmp_path):
    scores = detector.score(pictures(5))
    address = log_of(tmp_path, rows_of(scores) + rows_of(scores, "4") + rows_of(scores, "4"))
    assert len(read_log(address)) == 15
    assert len(read_log(address, "4")) == 10
    with pytest.raises(DataError, match="of the versions 3, 4 and none of 7"):
        read_log(address, "7")
    nameless = log_of(tmp_path / "b", rows_of(scores, None))
    assert len(read_log(nameless, "7")) == 5  # whose log it is nobody noted


def test_what_says_nothing_is_one_sentence(detector, tmp_path):
    for address in ("elpv", "auto", str(tmp_path), str(tmp_path / "none"), "a.csv", "s3://"):
        assert not is_log(address)
    scores = detector.score([b"noise"], on_error="report")
    with pytest.raises(DataError, match="None of 1 rows of the log was scored"):
        measure_log(detector, read_log(log_of(tmp_path, rows_of(scores))))
    other = pd.DataFrame(rows_of(detector.score(pictures(2))), columns=list(COLUMNS))
    with pytest.raises(DataError, match="has pictures of screws, which the model does not have"):
        measure_log(detector, other.assign(predicted_class="screws"))
