"""Real servers that are watched, followed, stopped and killed."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient

import dfm_mlflow

from ..detectors import fit, pictures
from ..servers import PARQUET, ServerError, free_port, parquet, post, started, stop, wait_for
from .monitor.test_metrics import samples
from .monitor.test_webhook import listener

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parent.parent.parent
DASHBOARD = ROOT / "docs/grafana-dashboard.json"
GOOD = pictures(40, 7)
MODEL = {"fpr": "0.05"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("monitored") / "model"
    dfm_mlflow.save_model(fit({"stripes": pictures(120)}, **MODEL), path)
    return path


@contextmanager
def served(model, log, workers=1, environment=(), **keys):
    """Serve with keys as variables of the environment; gives the address."""
    variables = {f"DFM_{key.upper()}": str(value) for key, value in keys.items()}
    command = ["models", "serve", "-m", str(model), "--env-manager", "local", "-w", str(workers)]
    everything = {**os.environ, "OMP_NUM_THREADS": "1", **dict(environment), **variables}
    with started(command, "/ping", log, everything) as url:
        yield url


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.1)
    return found


def metrics_of(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        return samples(answer.read().decode())


def rows_of(folder):
    scores = Path(folder) / "scores"
    return pd.read_parquet(scores) if any(scores.glob("part-*")) else pd.DataFrame({"sha256": []})


def named(i):
    """A picture that no other request sends: the same bytes but for a number at the end."""
    return GOOD[i % len(GOOD)] + b"%d" % i


class Load:
    """Clients that ask for one picture after another until they are stopped."""

    def __init__(self, url, clients):
        self.url, self.answered, self.failed = url, [], []
        self._stop, self._next, self._lock = threading.Event(), iter(range(10**9)), threading.Lock()
        self._pool = ThreadPoolExecutor(clients)
        self._running = [self._pool.submit(self._ask) for _ in range(clients)]

    def _ask(self):
        while not self._stop.is_set():
            with self._lock:
                i = next(self._next)
            image = named(i)
            try:
                status, answer = post(self.url, parquet([image]), PARQUET)
            except Exception as error:  # the server is gone
                self.failed.append((i, error))
                time.sleep(0.05)
                continue
            if status == 200:
                self.answered.append((hashlib.sha256(image).hexdigest(), answer["predictions"]))
            else:
                self.failed.append((i, status))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._pool.shutdown()


def children(pid):
    """Processes below one, at any depth."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    direct = [int(line) for line in found.stdout.split()]
    return direct + [p for child in direct for p in children(child)]


def command_of(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def workers_of(process):
    """The server processes that scored; with several workers uvicorn spawns them."""
    return [p for p in children(process.pid) if "spawn_main" in command_of(p)]


def writers():
    found = subprocess.run(
        ["pgrep", "-f", "dfm_mlflow.serving.monitor.writer"], capture_output=True
    )
    return {int(pid) for pid in found.stdout.split()}


@pytest.mark.slow
def test_prometheus_sees_a_lamp_that_fades(saved, tmp_path, capsys):
    """Good pictures, then darker ones: the alarm is a metric, a line, a row and a message."""
    if not shutil.which("prometheus"):
        pytest.skip("Prometheus is not installed")
    log, folder, port = tmp_path / "server.log", tmp_path / "log", free_port()
    with (
        listener([]) as (hook, taken),
        served(
            saved,
            log,
            metrics_port=port,
            log_to=folder,
            keep="flagged",
            drift_alarm=0.01,
            alarm_webhook=f"http://127.0.0.1:{hook}/s3cret",
        ) as url,
        prometheus(port, tmp_path) as ask,
    ):
        assert "alarm watching" in log.read_text()
        for i in range(20):
            assert post(url, parquet(pictures(25, 1000 + i)), PARQUET)[0] == 200
        time.sleep(2)
        before = metrics_of(port)
        assert before["dfm_alarm", ("kind", "drift")] == 0
        assert before["dfm_alarm", ("kind", "flagged")] == 0
        n, begun = 0, time.monotonic()
        while not taken:
            assert n < 2000
            assert post(url, parquet(pictures(10, 3000 + n, shift=-12)), PARQUET)[0] == 200
            n += 10
        seconds = time.monotonic() - begun
        found = until(lambda: max(ask("dfm_alarm").values(), default=0) == 1 and ask("dfm_alarm"))
        assert ask("dfm_pictures_total") == {(): 500 + n}
        assert sum(found.values()) >= 1
        for title, expression in expressions():
            assert ask(expression) or title in EMPTY, f"{title}: {expression}"
    message = taken[0][1]
    assert message["alarm"] in ("flagged", "drift")
    assert message["category"] == "stripes"
    text = until(lambda: len(rows_of(folder)) == 500 + n and log.read_text())
    assert f"Alarm ({message['alarm']}) of stripes" in text
    assert "s3cret" not in text
    rows = rows_of(folder)
    assert message["alarm"] in ",".join(rows["alarm"].dropna())
    with capsys.disabled():
        print(
            f"\n12 levels darker after 500 good pictures: alarm ({message['alarm']}) after at most "
            f"{n} pictures, {seconds:.1f} s; "
            f"{rows['is_anomaly'][500:].mean():.0%} of them were flagged, "
            f"{rows['is_anomaly'][:500].mean():.1%} of the good ones."
        )


# Nothing of it has happened in the test.
EMPTY = {"Versions that were followed", "What the log lost"}


def expressions():
    dashboard = json.loads(DASHBOARD.read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield (
                panel["title"],
                target["expr"].replace("$__rate_interval", "1m").replace("$job", "dfm"),
            )


@contextmanager
def prometheus(port, folder):
    """A Prometheus that scrapes the port every second; gives a function to ask it."""
    own = free_port()
    (folder / "prometheus.yml").write_text(
        f"""
global: {{scrape_interval: 1s}}
scrape_configs:
  - job_name: dfm
    static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
"""
    )
    with (folder / "prometheus.log").open("w") as file:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/tsdb",
                f"--web.listen-address=127.0.0.1:{own}",
            ],
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{own}"

    def ask(expression):
        query = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"{url}/api/v1/query?{query}", timeout=20) as answer:
            data = json.load(answer)
        assert data["status"] == "success", data
        return {
            tuple(
                (k, v)
                for k, v in sorted(r["metric"].items())
                if k not in ("__name__", "instance", "job")
            ): float(r["value"][1])
            for r in data["data"]["result"]
        }

    ask.url = url
    try:
        wait_for(f"{url}/-/ready", process, folder / "prometheus.log")
        until(lambda: ask('up{job="dfm"}').get(()) == 1)
        yield ask
    finally:
        stop(process)


@pytest.mark.slow
def test_every_answered_row_is_in_the_log_whatever_ends_the_server(saved, tmp_path):
    """Two workers: one is killed and replaced, then all are stopped, under load."""
    log, folder, port = tmp_path / "server.log", tmp_path / "log", free_port()
    before = writers()
    with served(saved, log, 2, metrics_port=port, log_to=folder, drift_alarm=0.01) as url:
        until(lambda: log.read_text().count("dfm model on") == 2, 180)
        first = workers_of(url.process)
        assert len(first) == 2
        with Load(url, 8) as load:
            until(lambda: len(load.answered) > 60)
            os.kill(first[0], signal.SIGKILL)
            until(lambda: len(set(workers_of(url.process)) - {first[0]}) == 2, 180)
            until(lambda: log.read_text().count("dfm model on") == 3, 180)
            n = len(load.answered)
            until(lambda: len(load.answered) > n + 60)
            found = metrics_of(port)  # whoever answered before
            assert found["dfm_pictures_total",] >= len(load.answered) - 16
            os.kill(url.process.pid, signal.SIGTERM)  # MLflow's parent, as a supervisor does
            url.process.wait(60)
            until(lambda: load.failed and len(load.failed) > 20)
        until(lambda: not writers() - before, 60)
    logged = set(rows_of(folder)["sha256"])
    answered = {digest for digest, _ in load.answered}
    assert len(answered) > 120
    assert answered <= logged
    assert len(logged - answered) <= 16  # scored, and cut off on the way
    states = [json.loads(p.read_text()) for p in (folder / "_state").glob("worker-*.json")]
    assert len(states) == 2
    text = log.read_text()
    assert "could not" not in text
    assert "Traceback" not in text


@pytest.fixture
def registry(store, tmp_path):
    """Versions 1 and 2 of a model, 3 that is broken, and the alias on 1."""
    detectors = [fit(MODEL and {"stripes": pictures(30, seed)}) for seed in (0, 50)]
    for detector in (*detectors, detectors[0]):
        with mlflow.start_run():
            info = dfm_mlflow.log_model(detector, name="m", registered_model_name="screws")
    logged = MlflowClient().get_logged_model(info.model_id)
    broken = Path(logged.artifact_location.removeprefix("file://")) / "dfm/statistics.safetensors"
    broken.write_bytes(broken.read_bytes()[:1000])
    point(1)
    scores = [d.score(GOOD)["anomaly_score"].to_numpy() for d in detectors]
    return {"1": scores[0], "2": scores[1]}


def point(number):
    MlflowClient().set_registered_model_alias("screws", "production", str(number))


def resident(process):
    return sum(
        int(Path(f"/proc/{p}/statm").read_text().split()[1]) * 4096
        for p in children(process.pid)
        if "uvicorn" in command_of(p)
    )


@pytest.mark.slow
def test_sixty_four_clients_and_twenty_swaps(registry, tmp_path, store, capsys):
    """Not one request is lost, each is answered by one version, and memory stays."""
    log, port = tmp_path / "server.log", free_port()
    environment = {"MLFLOW_TRACKING_URI": store}
    follow = "models:/screws@production"
    keys = {"metrics_port": port, "log_to": tmp_path / "log", "queue_size": 128}
    memory, stop_asking = {}, threading.Event()
    answers, failures = [], []

    def ask(k):
        rng = np.random.default_rng(k)
        while not stop_asking.is_set():
            chosen = rng.integers(0, len(GOOD), 3)
            status, answer = post(url, parquet([GOOD[i] for i in chosen]), PARQUET)
            if status == 200:
                answers.append((chosen, answer["predictions"]))
            else:
                failures.append((status, answer))

    with served(
        follow, log, environment=environment, follow=follow, follow_seconds=0.2, **keys
    ) as url:
        assert "version 1 of screws" in log.read_text()
        with ThreadPoolExecutor(64) as pool:
            running = [pool.submit(ask, k) for k in range(64)]
            for swap in range(1, 21):
                number = "12"[swap % 2]
                if swap == 10:
                    point(3)  # is broken: the old one goes on
                    until(lambda: metrics_of(port).get(("dfm_follow_total", ("result", "refused"))))
                    assert metrics_of(port)["dfm_follow_current",] == 0
                point(number)
                until(
                    lambda n=swap: (
                        metrics_of(port).get(("dfm_follow_total", ("result", "swapped"))) == n
                    ),
                    180,
                )
                if swap in (5, 20):
                    memory[swap] = resident(url.process)
            assert metrics_of(port)["dfm_follow_current",] == 1
            stop_asking.set()
            for future in running:
                future.result()
    assert failures == []
    for chosen, rows in answers:
        versions = {row["model_version"] for row in rows}
        assert len(versions) == 1
        found = [row["anomaly_score"] for row in rows]
        np.testing.assert_allclose(found, registry[versions.pop()][chosen], rtol=1e-3)
    assert {rows[0]["model_version"] for _, rows in answers} == {"1", "2"}
    assert "models:/screws/3 cannot be used" in log.read_text()
    until(lambda: len(rows_of(tmp_path / "log")) == 3 * len(answers))
    logged = rows_of(tmp_path / "log")
    counts = pd.Series([r["model_version"] for _, rows in answers for r in rows]).value_counts()
    assert logged["model_version"].value_counts().to_dict() == counts.to_dict()
    with capsys.disabled():
        print(
            f"\n20 swaps under 64 clients: {len(answers)} requests, none lost; resident memory "
            f"{memory[5] / 2**20:.0f} MB after swap 5, {memory[20] / 2**20:.0f} MB after swap 20."
        )
    assert memory[20] <= 1.1 * memory[5]


@pytest.mark.slow
def test_killed_in_a_swap_it_begins_again_with_what_the_alias_says(registry, tmp_path, store):
    log = tmp_path / "server.log"
    environment = {"MLFLOW_TRACKING_URI": store, "TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "tmp").mkdir()
    follow = "models:/screws@production"
    keys = {"follow": follow, "follow_seconds": 0.2, "log_to": tmp_path / "log"}
    try:
        with served(follow, log, environment=environment, **keys) as url:
            answered = [post(url, parquet([named(i)]), PARQUET)[0] for i in range(5)]
            assert answered == [200] * 5
            point(2)
            until(lambda: list((tmp_path / "tmp").glob("dfm-follow-*")))
            os.killpg(url.process.pid, signal.SIGKILL)
            url.process.wait()
    except ServerError:
        pass
    until(lambda: len(rows_of(tmp_path / "log")) == 5)
    with served(follow, log, environment=environment, **keys) as url:
        status, answer = post(url, parquet(GOOD[:3]), PARQUET)
        assert status == 200
        assert [row["model_version"] for row in answer["predictions"]] == ["2"] * 3
        np.testing.assert_allclose(
            [row["anomaly_score"] for row in answer["predictions"]], registry["2"][:3], rtol=1e-3
        )
        until(lambda: not list((tmp_path / "tmp").glob("dfm-follow-*")))


@pytest.mark.slow
def test_the_container_s_entry_that_the_page_shows(saved, tmp_path):
    """uvicorn itself as the first process: what it answered is in the log when it has ended."""
    page = (ROOT / "docs/monitoring.md").read_text()
    entry = "exec uvicorn --host 0.0.0.0 --port 8080 mlflow.pyfunc.scoring_server.app:app"
    assert entry in page
    port, folder = free_port(), tmp_path / "log"
    command = entry.replace("0.0.0.0", "127.0.0.1").replace("8080", str(port))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {
        **os.environ,
        "PATH": path,
        "__pyfunc_model_path__": str(saved),
        "DFM_LOG_TO": str(folder),
    }
    log = tmp_path / "server.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            ["sh", "-c", command], env=environment, stdout=file, stderr=file, start_new_session=True
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/ping", process, log)
        with Load(f"http://127.0.0.1:{port}", 4) as load:
            until(lambda: len(load.answered) > 30)
            process.terminate()
            process.wait(60)
            logged = set(rows_of(folder)["sha256"])  # at once: a container ends with it
    finally:
        stop(process)
    assert {digest for digest, _ in load.answered} <= logged
