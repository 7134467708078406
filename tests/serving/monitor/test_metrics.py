"""Numbers of one worker, and of several that share them."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from dfm_mlflow.errors import ConfigError
from dfm_mlflow.serving.monitor import shared as module
from dfm_mlflow.serving.monitor.metrics import Metrics, Window
from dfm_mlflow.serving.monitor.shared import prepare_folder

from ...servers import free_port

# A worker as uvicorn starts it: answers so many requests, then waits for its end.
WORKER = """
import sys, time
from dfm_mlflow.serving.monitor.metrics import Metrics
port, n = map(int, sys.argv[1:])
metrics = Metrics(2)
for _ in range(n):
    metrics.answered([0.01, 0.5, 0.9], [True, False, False], 0.02)
metrics.serves("screws", str(n), "cpu", "fp32", "ab" * 32)
metrics.alarm.labels("drift").set(n == 7)
metrics.expose(port, "127.0.0.1")
print("ready", flush=True)
time.sleep(600)
"""
# The process that starts workers; it ends with its input.
SUPERVISOR = """
import subprocess, sys, json
workers = []
for line in sys.stdin:
    words = line.split()
    if words[0] == "start":
        workers.append(subprocess.Popen([sys.executable, "-c", sys.argv[1], *words[1:]],
                                        stdout=subprocess.PIPE, text=True))
        workers[-1].stdout.readline()
    else:
        workers[int(words[1])].kill()
        workers[int(words[1])].wait()
    print(json.dumps([w.pid for w in workers]), flush=True)
for worker in workers:
    worker.kill()
"""


def samples(text):
    return {
        (s.name, *sorted(s.labels.items())): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


def scrape(port):
    for _ in range(400):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                return samples(answer.read().decode())
        except OSError:
            time.sleep(0.05)
    raise AssertionError("nobody answers")


def test_windows_count_the_last_pictures_exactly():
    rng = np.random.default_rng(0)
    flagged = rng.random(500) < 0.3
    window = Window((3, 50, 400))
    for i, value in enumerate(flagged, 1):
        window.add([value])
        for n, found in window.counts().items():
            assert found == (flagged[max(0, i - n) : i].sum(), min(i, n))


def test_one_worker_shows_what_it_did():
    metrics, port = Metrics(1), free_port()
    metrics.expose(port, "127.0.0.1")
    metrics.answered([0.004, 0.2], [True, False], 0.03)
    metrics.answered([0.7], [False], 0.3)
    metrics.batch(3, [0.001, 0.002], 0.05, 2)
    metrics.serves("screws", "3", "cpu", "fp32", "ab" * 32)
    metrics.serves("screws", "4", "cpu", "fp32", "cd" * 32)
    for total in (5, 9, 2):  # a writer that started over
        metrics.add_up("rows", metrics.logged, {"": total})
    metrics.add_up("dropped", metrics.dropped, {"target": 4})
    found = scrape(port)
    assert found["dfm_pictures_total",] == 3
    assert found["dfm_requests_total",] == 2
    assert found["dfm_request_seconds_bucket", ("le", "0.05")] == 1
    assert found["dfm_p_value_bucket", ("le", "0.005")] == 1
    assert found["dfm_batch_pictures_sum",] == 3
    assert found["dfm_queue_seconds_count",] == 2
    assert found["dfm_flagged_ratio", ("window", "100")] == pytest.approx(1 / 3)
    assert found["dfm_model_version",] == 4
    infos = {dict(key[1:])["version"]: v for key, v in found.items() if key[0] == "dfm_model_info"}
    assert infos == {"3": 0, "4": 1}
    assert found["dfm_log_rows_total",] == 11
    assert found["dfm_log_dropped_total", ("reason", "target")] == 4
    assert found["dfm_errors_total", ("kind", "late")] == 0


def test_a_port_is_bound_to_this_machine_and_a_taken_one_is_taken_over():
    port = free_port()
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        metrics = Metrics(1)
        metrics.expose(port, "127.0.0.1")
        time.sleep(0.3)
    assert scrape(port)["dfm_pictures_total",] == 0
    with socket.socket() as probe:  # no other address of this machine answers
        probe.settimeout(1)
        assert probe.connect_ex(("127.0.0.2", port)) != 0


@pytest.fixture
def supervisor(tmp_path):
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    environment.pop(module.FOLDER, None)
    process = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, WORKER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )

    def tell(line):
        process.stdin.write(line + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    yield tell
    process.stdin.close()
    process.wait(20)


@pytest.mark.integration
def test_workers_share_their_numbers_and_the_port_and_keep_those_of_the_dead(supervisor, tmp_path):
    port = free_port()
    supervisor(f"start {port} 5")
    first, second = supervisor(f"start {port} 7")
    found = scrape(port)
    assert found["dfm_pictures_total",] == 36
    assert found["dfm_flagged_ratio", ("window", "1000")] == pytest.approx(1 / 3)
    assert found["dfm_window_pictures", ("window", "1000")] == 36
    versions = {
        dict(key[1:])["pid"]: v for key, v in found.items() if key[0] == "dfm_model_version"
    }
    assert versions == {str(first): 5, str(second): 7}
    assert found["dfm_alarm", ("kind", "drift")] == 1
    supervisor("kill 0")
    found = scrape(port)  # the other one has taken the port over
    assert found["dfm_pictures_total",] == 36  # a counter never falls
    assert found["dfm_window_pictures", ("window", "1000")] == 21
    assert [key for key in found if key[0] == "dfm_model_version"] == [
        ("dfm_model_version", ("pid", str(second)))
    ]
    supervisor(f"start {port} 1")
    assert scrape(port)["dfm_pictures_total",] == 39
    (folder,) = tmp_path.glob("dfm-metrics-*")
    assert folder.stat().st_mode & 0o777 == 0o700


def test_folders_of_servers_that_are_gone_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv(module.FOLDER, raising=False)
    monkeypatch.delitem(sys.modules, "prometheus_client.values")
    gone = tmp_path / f"dfm-metrics-{os.getuid()}-999999999-123"
    mine = tmp_path / f"dfm-metrics-{os.getuid()}-{os.getpid()}-{module._started(os.getpid())}"
    for folder in (gone, mine):
        folder.mkdir()
    prepare_folder(2)
    named = os.environ.pop(module.FOLDER)
    assert named.startswith(f"{tmp_path}/dfm-metrics-{os.getuid()}-{os.getppid()}-")
    assert not gone.exists()
    assert mine.exists()
    monkeypatch.setenv(module.FOLDER, "the operator's own")
    prepare_folder(2)
    assert os.environ[module.FOLDER] == "the operator's own"


def test_a_library_that_was_imported_before_is_said(monkeypatch, caplog):
    monkeypatch.delenv(module.FOLDER, raising=False)
    import prometheus_client  # noqa: F401

    prepare_folder(1)
    assert not caplog.text
    prepare_folder(2)
    assert "each worker shows its own numbers alone" in caplog.text
    assert module.FOLDER not in os.environ


def test_without_the_library_the_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ConfigError, match=r"pip install 'dfm-mlflow\[monitor\]'"):
        Metrics(1)
