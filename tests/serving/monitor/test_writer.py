"""The writer, in this process and as the process that it is."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from dfm_mlflow.serving.monitor.wire import pair, receive, send
from dfm_mlflow.serving.monitor.writer import Writer

CONFIG = {
    "log_to": None,
    "log_megabytes": 10,
    "keep_megabytes": 10,
    "drift_alarm": None,
    "expected_flagged": None,
    "alarm_webhook": None,
    "workers": 1,
    "seconds": 1000,
}
MODEL = {
    "kind": "model",
    "digest": "d1",
    "version": "3",
    "name": "screws",
    "classes": {"c": [200, 0, 0.05]},
}


def rows(n, p=None, model="d1", first=0, pictures=()):
    """Of good pictures, whose p-values are spread out, or of pictures with one p-value."""
    ranks = [(37 * (first + i)) % 180 + 15 for i in range(n)]
    given = [p or rank / 201 for rank in ranks]
    row = ["3", None, 1.0]
    return {
        "kind": "rows",
        "model": model,
        "rows": [
            [1e9 + first + i, *row, q, q <= 0.05, "c", "pass", None, 2.0]
            for i, q in enumerate(given)
        ],
        "cautious": [["c", q] for q in given],
        "pictures": list(pictures),
    }


def writer_of(**config):
    ours, theirs = pair()
    ours.settimeout(5)
    return Writer(theirs, CONFIG | config), ours


def test_an_alarm_is_a_log_line_a_row_and_a_status(tmp_path, caplog):
    writer, ours = writer_of(log_to=str(tmp_path), drift_alarm=0.01)
    writer._last_life.ready.wait(10)
    writer.take(MODEL, [])
    writer.take(rows(100), [])
    writer.take(rows(30, p=1 / 201, first=100), [])
    writer.tick()
    status, _ = receive(ours)
    assert status["alarm"]["flagged"]["alarm"] == 1
    assert status["alarm"]["drift"]["alarm"] == 0
    assert status["received"] == 130
    writer.take(rows(5, first=130), [])
    writer.finish()
    table = pd.read_parquet(tmp_path / "scores")
    assert len(table) == 135
    assert table["alarm"].notna().sum() == 1
    assert table["alarm"].dropna().tolist() == ["flagged"]
    assert caplog.text.count("Alarm (flagged) of c, model version 3: 30 of 130 pictures") == 1
    state = json.loads((tmp_path / "_state/worker-0.json").read_text())
    assert list(state["tests"]) == ["d1"]


def test_a_life_goes_on_in_the_next_process_and_the_alarm_stands(tmp_path):
    for n in range(2):
        writer, ours = writer_of(log_to=str(tmp_path), drift_alarm=0.01)
        writer._last_life.ready.wait(10)
        writer.take(MODEL, [])
        if not n:
            writer.take(rows(40, p=1 / 201), [])
        writer.tick()
        assert receive(ours)[0]["alarm"]["flagged"]["alarm"] == 1
        writer.finish()
        writer._last_life.slot.release()


def test_two_workers_promise_half_each():
    for workers in (1, 2):
        writer, _ = writer_of(drift_alarm=0.02, workers=workers)
        writer.take(MODEL, [])
        assert writer._watch._tests["d1"]["c"].promise == 0.02 / workers


def test_rows_of_the_version_before_are_logged_and_not_watched(tmp_path):
    writer, ours = writer_of(log_to=str(tmp_path), drift_alarm=0.01)
    writer._last_life.ready.wait(10)
    writer.take(MODEL, [])
    writer.take(rows(60, p=1 / 201, model="d0"), [])
    writer.tick()
    assert receive(ours)[0]["alarm"]["flagged"]["alarm"] == 0
    writer.finish()
    assert len(pd.read_parquet(tmp_path / "scores")) == 60


def test_a_calibration_that_is_too_small_is_said_and_the_log_goes_on(tmp_path, caplog):
    writer, _ = writer_of(log_to=str(tmp_path), drift_alarm=0.01)
    writer._last_life.ready.wait(10)
    writer.take(MODEL | {"classes": {"c": [1, 0, 0.5]}}, [])
    writer.take(rows(3), [])
    writer.finish()
    assert "Version 3 has no alarm." in caplog.text
    assert len(pd.read_parquet(tmp_path / "scores")) == 3


def test_a_damaged_state_is_said_and_begins_anew(tmp_path, caplog):
    (tmp_path / "_state").mkdir()
    (tmp_path / "_state/worker-0.json").write_text("{not JSON")
    writer, _ = writer_of(log_to=str(tmp_path), drift_alarm=0.01)
    writer._last_life.ready.wait(10)
    writer.take(MODEL, [])
    writer.tick()
    assert "The state of the alarm is damaged" in caplog.text
    writer.finish()
    assert json.loads((tmp_path / "_state/worker-0.json").read_text())["tests"]["d1"]


def test_it_needs_neither_torch_nor_mlflow():
    code = (
        "import sys; import dfm_mlflow.serving.monitor.writer; "
        "print(sorted({'torch', 'mlflow', 'sklearn', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class Worker:
    """A process that hands rows over, and its writer."""

    def __init__(self, tmp_path, **config):
        self.ours, theirs = pair()
        self.ours.settimeout(60)
        self.log = tmp_path / "stderr"
        with theirs, self.log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dfm_mlflow.serving.monitor.writer", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stderr=file,
            )
        send(self.ours, CONFIG | {"log_to": str(tmp_path / "log")} | config)
        send(self.ours, MODEL)
        assert receive(self.ours)[0]["kind"] == "status"


@pytest.fixture
def worker(tmp_path):
    worker = Worker(tmp_path)
    yield worker
    worker.process.kill()
    worker.process.wait()


def test_the_process_ends_at_the_end_of_its_socket_alone_and_has_written_all(worker, tmp_path):
    digest = "ab" * 32
    for i in range(50):
        blobs = [b"\x89PNG" + bytes(200_000)] if i == 7 else []
        message = rows(3, first=3 * i, pictures=[digest] * len(blobs))
        while True:
            try:
                send(worker.ours, message, blobs)
                break
            except BlockingIOError:
                time.sleep(0.01)
    for signal in (2, 15, 1):
        os.kill(worker.process.pid, signal)
    assert worker.process.poll() is None
    worker.ours.close()
    assert worker.process.wait(60) == 0
    table = pd.read_parquet(tmp_path / "log/scores")
    times = sorted(t.timestamp() - 1e9 for t in table["time"])
    np.testing.assert_array_equal(times, np.arange(150))
    (kept,) = (tmp_path / "log/kept").rglob("*.png")
    assert kept.relative_to(tmp_path / "log") == type(kept)(f"kept/ab/{digest}.png")
    assert kept.stat().st_size == 200_004


@pytest.mark.integration
def test_a_process_killed_in_a_flush_leaves_whole_parts_alone(tmp_path):
    scores = tmp_path / "log/scores"
    for i in range(2):
        worker = Worker(tmp_path, seconds=0.02)
        wanted, n = len(list(scores.glob("part-*"))) + 1 + i, 0
        while len(list(scores.glob("part-*"))) < wanted:
            try:
                send(worker.ours, rows(20, first=n))
                n += 20
            except BlockingIOError:
                time.sleep(0.001)
        worker.process.kill()
        worker.process.wait()
        worker.ours.close()
    parts = list(scores.glob("part-*.parquet"))
    assert len(parts) >= 3
    assert min(len(pd.read_parquet(part)) for part in parts) > 0  # each can be read
    assert len(pd.read_parquet(tmp_path / "log/scores")) > 0  # drafts do not disturb
