"""The story on real stores: ``mlflow server`` on PostgreSQL, artifacts on S3, and what can fail."""

import base64
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import mlflow
import numpy as np
import pytest

import dfm_mlflow
from dfm_mlflow import cli
from dfm_mlflow.config import Options
from dfm_mlflow.errors import DataError, TrackingError
from dfm_mlflow.jobs.train import train
from dfm_mlflow.tracking.kept import log_kept

from . import stack
from .servers import post, serving
from .stores import Traffic, proxy

psycopg2 = pytest.importorskip("psycopg2")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(stack.find_postgres() is None, reason="PostgreSQL is not installed"),
]

WRITTEN = (
    "runs",
    "params",
    "tags",
    "metrics",
    "latest_metrics",
    "inputs",
    "logged_models",
    "registered_models",
    "model_versions",
)
SMALL = {"weights": "random", "image_size": "64", "backbone": "resnet18", "category": "stripes"}
SMALL |= {"augment": "none"}
TIMED = {
    "extract_seconds",
    "fit_seconds",
    "images_per_second",
    "peak_memory_megabytes",
    "model_megabytes",
}
SOON = 60  # seconds; that something has to happen within


@pytest.fixture(scope="module")
def stores(s3_server, tmp_path_factory):
    """PostgreSQL, and MLflow's server behind a proxy."""
    folder = tmp_path_factory.mktemp("stack")
    environment = stack.MOTO_KEYS | {"AWS_ENDPOINT_URL": s3_server[0]}
    stack.make_bucket(environment, stack.BUCKET)
    traffic: list[Traffic] = [Traffic()]
    with (
        stack.postgres() as database,
        stack.mlflow_server(database.url, stack.BUCKET, environment, folder / "log") as direct,
        proxy(int(direct.rpartition(":")[2]), traffic) as url,
    ):
        environment = {
            **environment,
            "MLFLOW_TRACKING_URI": url,
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
            "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
            "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
        }
        # A server that has not seen its database yet tries to reach it for minutes.
        client = mlflow.MlflowClient(url)
        client.search_experiments()
        client.search_registered_models()
        yield SimpleNamespace(
            database=database, environment=environment, traffic=traffic, folder=folder
        )


@pytest.fixture
def server(stores, monkeypatch, tmp_path, request):
    """The stack, with a registered model's name of this test's own."""
    monkeypatch.chdir(tmp_path)
    for name, value in stores.environment.items():
        monkeypatch.setenv(name, value)
    previous = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(stores.environment["MLFLOW_TRACKING_URI"])
    mlflow.set_experiment(experiment_id="0")  # a test before may have chosen another
    stores.traffic.append(Traffic())
    yield Server(stores, "dfm-" + "".join(c if c.isalnum() else "-" for c in request.node.name))
    stores.traffic.pop()
    while mlflow.active_run():
        mlflow.end_run()
    mlflow.set_tracking_uri(previous)


@pytest.fixture(scope="module")
def plain(mvtec_like, tmp_path_factory):
    """What a run without a fault finds, in a store of its own."""
    previous = mlflow.get_tracking_uri()
    folder = tmp_path_factory.mktemp("plain")
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    here = Path.cwd()
    os.chdir(folder)
    result = train(Options.parse(SMALL | {"data": str(mvtec_like), "registered_model": "none"}))
    name = mlflow.get_run(result.run_id).info.run_name
    files = {a.path for a in mlflow.MlflowClient().list_artifacts(result.run_id)}
    os.chdir(here)
    mlflow.set_tracking_uri(previous)
    return SimpleNamespace(name=name, metrics=result.metrics, files=files, detector=result.detector)


class Server:
    def __init__(self, stores, name):
        self.stores, self.name, self.client = stores, name, mlflow.MlflowClient()
        self.database, self.faults = stores.database, stores.traffic[-1].faults

    def options(self, data, **more):
        return SMALL | {"data": str(data), "registered_model": self.name} | more

    def train(self, data, **more):
        return train(Options.parse(self.options(data, **more)))

    def versions(self):
        """Versions of this test's model; every one in the registry must be whole."""
        for version in self.client.search_model_versions(f"name='{self.name}'"):
            assert version.status == "READY"
            dfm_mlflow.load_model(f"models:/{self.name}/{version.version}")
            run = self.client.get_run(version.run_id)
            assert run.data.metrics["n_train"] == 24
            yield int(version.version)

    def statuses(self):
        everywhere = [e.experiment_id for e in self.client.search_experiments()]
        mine = f"params.resolved_registered_model = '{self.name}'"
        runs = self.client.search_runs(everywhere, mine)
        return sorted(run.info.status for run in runs)

    def connect(self):
        return closing(psycopg2.connect(self.database.url.replace("+psycopg2", "")))

    def wait_for_writers(self, n):
        """Wait until so many transactions are stopped by the lock."""
        with self.connect() as watching:
            watching.autocommit = True
            cursor = watching.cursor()
            deadline = time.monotonic() + SOON
            while time.monotonic() < deadline:
                cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type='Lock'")
                if cursor.fetchone()[0] >= n:
                    return
                time.sleep(0.02)
        raise AssertionError("nobody writes")

    def restart_within(self, place):
        """Restart PostgreSQL within the transaction of a request; the second try finds it up."""
        up = threading.Event()

        def restart(connection):
            self.wait_for_writers(1)
            self.database.restart("immediate")
            connection.close()
            up.set()

        def begin():
            connection = psycopg2.connect(self.database.url.replace("+psycopg2", ""))
            connection.cursor().execute(f"LOCK TABLE {', '.join(WRITTEN)} IN EXCLUSIVE MODE")
            threading.Thread(target=restart, args=(connection,), daemon=True).start()

        return [("POST", place, begin), ("POST", place, lambda: up.wait(SOON))]


@pytest.mark.slow
def test_train_compare_promote_serve_and_roll_back(server, mvtec_like, monkeypatch, capsys):
    first = server.train(mvtec_like)
    second = server.train(mvtec_like, seed="1")
    assert list(server.versions()) == [2, 1]
    named = f"params.resolved_registered_model = '{server.name}'"
    table = mlflow.search_runs(filter_string=named, search_all_experiments=True)
    assert set(table["run_id"]) == {first.run_id, second.run_id}
    assert (table["metrics.image_auroc"] > 0.9).all()
    assert set(table["params.resolved_seed"]) == {"42", "1"}

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["dfm-mlflow", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0
        return capsys.readouterr().out

    for version in ("1", "2"):
        model = f"models:/{server.name}/{version}"
        given = ("--alias", "production", "--max-slowdown", "100", "--min-images", "6")
        said = run("promote", model, *given)
        assert f"production of {server.name} points to version {version}" in said
    assert "passed  comparison" in said
    found = json.loads(run("describe", f"models:/{server.name}@production", "--json"))
    assert (found["version"], found["previous"]) == ("2", {"production": "1"})
    pictures = sorted((mvtec_like / "stripes/test/hole").iterdir())[:2]
    images = [path.read_bytes() for path in pictures]
    expected = second.detector.score(images)["anomaly_score"]
    np.testing.assert_allclose(serve_and_score(server, images), expected, rtol=1e-4)
    assert "points to version 1" in run("rollback", server.name)


def serve_and_score(server, images):
    path, log = f"models:/{server.name}@production", server.stores.folder / "serving.log"
    records = [{"image": base64.b64encode(image).decode()} for image in images]
    with serving(path, log) as url:
        status, answer = post(url, {"dataframe_records": records})
    assert status == 200, answer
    return [row["anomaly_score"] for row in answer["predictions"]]


def test_large_files_go_in_parts(server, mvtec_like, s3_server, tmp_path, monkeypatch):
    import boto3

    s3 = boto3.client("s3", endpoint_url=s3_server[0])

    def parts(uri):
        """S3 says in the ETag in how many parts an object arrived."""
        bucket, key = uri.removeprefix("s3://").split("/", 1)
        return int(s3.head_object(Bucket=bucket, Key=key)["ETag"].strip('"').partition("-")[2])

    result = server.train(mvtec_like, registered_model="none")
    model = server.client.get_logged_model(result.model_uri.removeprefix("models:/"))
    assert parts(f"{model.artifact_location}/dfm/backbone.safetensors") == 2  # 11 MB, of 8 MiB

    through = mlflow.create_experiment("through the server", "mlflow-artifacts:/through")
    monkeypatch.setenv("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "true")
    for name in ("MINIMUM_FILE_SIZE", "CHUNK_SIZE"):
        monkeypatch.setenv(f"MLFLOW_MULTIPART_UPLOAD_{name}", str(5 * 2**20))
    data = np.random.default_rng(0).bytes(12 * 2**20)
    (tmp_path / "large").write_bytes(data)
    with mlflow.start_run(experiment_id=through) as run:
        mlflow.log_artifact("large")
    uri = f"s3://{stack.BUCKET}/through/{run.info.run_id}/artifacts/large"
    assert parts(uri) == 3
    downloaded = mlflow.artifacts.download_artifacts(f"runs:/{run.info.run_id}/large")
    assert Path(downloaded).read_bytes() == data


@pytest.mark.slow
def test_two_processes_register_the_same_name_at_once(server, mvtec_like):
    options = [
        f"--{key.replace('_', '-')}={value}" for key, value in server.options(mvtec_like).items()
    ]
    command = [sys.executable, "-m", "dfm_mlflow", "train", *options]
    # Both arrive at the version's row before either may write it.
    barrier = threading.Barrier(2, timeout=SOON * 2)
    locked = psycopg2.connect(server.database.url.replace("+psycopg2", ""))

    def gather():
        if barrier.wait() == 0:
            locked.cursor().execute("LOCK TABLE model_versions IN EXCLUSIVE MODE")

            def release():
                server.wait_for_writers(2)
                locked.close()

            threading.Thread(target=release, daemon=True).start()
        barrier.wait()

    server.faults += [("POST", "model-versions/create", gather)] * 2
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in processes:
        _, errors = process.communicate(timeout=SOON * 3)
        assert process.returncode == 0, errors
    assert sorted(server.versions()) == [1, 2]
    runs = [
        server.client.get_run(server.client.get_model_version(server.name, v).run_id) for v in "12"
    ]
    assert runs[0].info.run_id != runs[1].info.run_id
    assert runs[0].data.metrics.keys() == runs[1].data.metrics.keys()
    assert server.statuses() == ["FINISHED", "FINISHED"]


def test_postgres_restarts_within_seven_transactions_of_one_run(server, mvtec_like):
    places = (
        "runs/create",
        "runs/log-batch",
        "runs/log-inputs",
        "logged-models",
        "registered-models/create",
        "model-versions/create",
        "runs/update",
    )
    for place in places:
        server.faults += server.restart_within(place)
    result = server.train(mvtec_like)
    assert not server.faults
    assert list(server.versions()) == [1]
    assert server.statuses() == ["FINISHED"]
    assert server.client.get_run(result.run_id).data.metrics.items() >= result.metrics.items()


@pytest.mark.parametrize("place", ["runs/create", "model-versions/create"])
def test_postgres_stays_away(server, mvtec_like, plain, place, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    server.faults.append(("POST", place, server.database.stop))
    options = [f"--{k.replace('_', '-')}={v}" for k, v in server.options(mvtec_like).items()]
    monkeypatch.setattr(sys, "argv", ["dfm-mlflow", "train", *options])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    server.database.start()
    assert ended.value.code == 1
    (sentence,) = [s for s in capsys.readouterr().err.splitlines() if s.startswith("Error: ")]
    assert "The tracking server http://127.0.0.1:" in sentence
    assert not list(server.versions())
    if place == "runs/create":
        assert sentence.endswith("then run the command again.")
        return
    (folder,) = (tmp_path / "dfm-kept").iterdir()
    assert f"`dfm-mlflow resume-logging {folder}` logs and registers" in sentence
    logged = log_kept(str(folder))
    assert logged.model_uri == f"models:/{server.name}/1"
    assert list(server.versions()) == [1]
    run = server.client.get_run(logged.run_id)
    assert (run.info.run_name, run.info.status) == (plain.name, "FINISHED")
    assert {a.path for a in server.client.list_artifacts(logged.run_id)} == plain.files
    assert run.data.metrics.keys() >= plain.metrics.keys()
    metrics = {key: value for key, value in plain.metrics.items() if key not in TIMED}
    assert run.data.metrics.items() >= metrics.items()
    assert run.inputs.dataset_inputs[0].dataset.name == "stripes"
    images = [path.read_bytes() for path in sorted((mvtec_like / "stripes/test/hole").iterdir())]
    np.testing.assert_allclose(
        dfm_mlflow.load_model(logged.model_uri).score(images)["anomaly_score"],
        plain.detector.score(images)["anomaly_score"],
        rtol=1e-4,
    )


def test_an_answer_that_is_lost_is_asked_for_again(server, mvtec_like):
    """What was committed already is committed twice: two versions, of one model, both whole."""
    places = ("registered-models/create", "model-versions/create", "runs/update")
    server.faults += [("POST", place, "lost") for place in places]
    assert server.train(mvtec_like).registered_version == "2"
    assert list(server.versions()) == [2, 1]
    sources = {server.client.get_model_version(server.name, v).source for v in "12"}
    assert len(sources) == 1
    assert server.statuses() == ["FINISHED"]


def test_a_bucket_that_is_not_there_gets_a_sentence(server, mvtec_like):
    experiment = mlflow.create_experiment("nowhere", "s3://no-such-bucket/here")
    mlflow.set_experiment(experiment_id=experiment)
    with pytest.raises(TrackingError, match=r"artifact store .*NoSuchBucket.*resume-logging"):
        server.train(mvtec_like)
    assert not list(server.versions())


def test_a_folder_without_kept_results_gets_a_sentence(tmp_path, empty_store):
    with pytest.raises(DataError, match="holds no results that were kept"):
        log_kept(str(tmp_path))
    shutil.copy(empty_store, tmp_path / "mlflow.db")  # a store, but of somebody else
    with pytest.raises(DataError, match="holds no results that were kept"):
        log_kept(str(tmp_path))


def test_the_password_is_not_in_the_process_list(server):
    listed = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True).stdout
    assert "mlflow" in listed
    assert server.database.password not in listed
    assert os.stat(server.database.folder).st_mode & 0o077 == 0
