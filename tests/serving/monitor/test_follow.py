"""A server's way from version to version, with a real registry."""

import os
import shutil
import threading
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient

import dfm_mlflow
from dfm_mlflow.config.serving import ServingSettings
from dfm_mlflow.data.item import Item
from dfm_mlflow.registry.golden import log_golden
from dfm_mlflow.serving.engine import Engine, Engines, Observers, Version
from dfm_mlflow.serving.monitor import follow as module
from dfm_mlflow.serving.monitor import memory
from dfm_mlflow.serving.monitor.follow import Follower, sweep

from ...detectors import fit, pictures

pytestmark = pytest.mark.integration  # whole jobs, one after the other

NAME = "screws"


@pytest.fixture(scope="module")
def other():
    return fit({"stripes": pictures(20, 50)})


@pytest.fixture(scope="module")
def detector():
    return fit()


@pytest.fixture
def registry(store, detector, other, tmp_path):
    """Versions 1 and 2, and where the files of each are."""
    folder = tmp_path / "golden"
    folder.mkdir()
    for i, image in enumerate(pictures(3, 9)):
        (folder / f"{i}.png").write_bytes(image)
    items = [Item(path, "stripes", "train", "good") for path in sorted(folder.iterdir())]
    for model in (detector, other):
        with mlflow.start_run():
            dfm_mlflow.log_model(model, name="model", registered_model_name=NAME)
            log_golden(model, items, [])
    point(1)


def point(number):
    MlflowClient().set_registered_model_alias(NAME, "production", str(number))


class Server:
    """A follower, looked at one step at a time."""

    def __init__(self, detector, version):
        settings = ServingSettings(follow=f"models:/{NAME}@production", follow_seconds=0.1)
        self.engines = Engines(Engine(detector, settings, version))
        self.looks, self.changes = [], []
        self.follower = Follower(
            settings,
            self.engines,
            Observers(),
            lambda engine: self.changes.append(engine.version.number),
            lambda *seen: self.looks.append(seen),
        )

    def look(self):
        self.follower.look()
        return self.looks[-1]

    @property
    def number(self):
        return self.engines.current.version.number

    def scores(self, images):
        with self.engines.lease() as engine, engine.admit():
            return engine.score(images)["anomaly_score"].to_numpy()


@pytest.fixture
def server(registry, detector):
    digest = read_digest(1)
    return Server(detector, Version(digest, NAME, "1"))


def read_digest(number):
    root = mlflow.artifacts.download_artifacts(f"models:/{NAME}/{number}")
    return module.read_mlmodel(Path(root)).sha256


def files_of(number):
    uri = MlflowClient().get_model_version(NAME, str(number)).source
    if uri.startswith("models:/"):
        uri = MlflowClient().get_logged_model(uri.removeprefix("models:/")).artifact_location
    return Path(uri.removeprefix("file://"))


def test_it_goes_where_the_alias_points(server, other, detector, caplog):
    caplog.set_level("INFO")
    images = pictures(4, 7)
    assert server.look() == (None, True)
    point(2)
    assert server.look() == ("swapped", True)
    assert server.number == "2"
    assert server.changes == ["2"]
    expected = other.score(images)["anomaly_score"]
    np.testing.assert_allclose(server.scores(images), expected, rtol=1e-4)
    assert server.look() == (None, True)
    point(1)
    assert server.look() == ("swapped", True)
    expected = detector.score(images)["anomaly_score"]
    np.testing.assert_allclose(server.scores(images), expected, rtol=1e-4)
    assert "Version 2 of screws answers in place of 1" in caplog.text
    assert "golden" not in caplog.text  # they were reached, and agree
    assert not list(Path(module.tempfile.gettempdir()).glob(f"dfm-follow-{os.getpid()}-*"))


def test_a_model_that_came_without_a_number_gets_it_and_is_not_loaded_again(registry, detector):
    server = Server(detector, Version(read_digest(1)))
    before = server.engines.current
    assert server.look() == (None, True)
    assert server.engines.current is before
    assert server.number == "1"
    assert server.changes == ["1"]


def test_a_broken_version_is_refused_once_and_the_next_one_taken(server, caplog):
    files = files_of(2)
    damaged = files / "dfm" / "statistics.safetensors"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-10])
    point(2)
    assert server.look() == ("refused", False)
    assert server.number == "1"
    for _ in range(3):
        assert server.look() == (None, False)  # no second download
    assert caplog.text.count("models:/screws/2 cannot be used") == 1
    assert "The previous version keeps serving" in caplog.text
    point(1)
    assert server.look() == (None, True)
    damaged.write_bytes(whole)


def test_a_version_whose_golden_pictures_score_otherwise_is_refused(server, monkeypatch, caplog):
    point(2)
    with monkeypatch.context() as patch:
        patch.setattr(module, "deviation", lambda *_: (0.3, 1e-4))
        assert server.look() == ("refused", False)
    assert "scores its golden pictures otherwise than its training did (by 0.3" in caplog.text
    assert server.number == "1"


def test_one_whose_run_cannot_be_reached_is_taken_and_said(server, caplog):
    caplog.set_level("INFO")
    MlflowClient().delete_run(MlflowClient().get_model_version(NAME, "2").run_id)
    shutil.rmtree(next(Path("mlruns").rglob("golden.parquet")).parent, ignore_errors=True)
    for path in Path("mlruns").rglob("golden.parquet"):
        path.unlink()
    point(2)
    assert server.look() == ("swapped", True)
    assert "is taken without a look at its golden pictures" in caplog.text


def test_a_registry_that_is_away_changes_nothing_and_is_said_once(server, monkeypatch, caplog):
    caplog.set_level("INFO")
    with monkeypatch.context() as patch:
        patch.setattr(
            module,
            "MlflowClient",
            lambda: (_ for _ in ()).throw(mlflow.MlflowException("s3cret@host is away")),
        )
        for _ in range(3):
            assert server.look() == ("unreachable", False)
    assert caplog.text.count("The registry could not be asked for models:/screws@production") == 1
    assert "s3cret" not in caplog.text
    assert server.look() == (None, True)
    assert "models:/screws@production points to the version that is served." in caplog.text
    MlflowClient().delete_registered_model_alias(NAME, "production")
    assert server.look() == ("unreachable", False)
    assert server.number == "1"


def test_too_little_memory_is_said_and_tried_again_later(server, monkeypatch, caplog):
    point(2)
    with monkeypatch.context() as patch:
        patch.setattr(memory, "free_memory", lambda: 50 << 20)
        assert server.look() == ("memory", False)
        assert "and 50 MB are free. The previous version keeps serving." in caplog.text
        assert server.look() == (None, False)  # not at once
    monkeypatch.setattr(server.follower, "_refused", {})
    assert server.look() == ("swapped", True)


def test_memory_that_runs_out_while_loading_ends_what_was_begun(server, monkeypatch):
    point(2)
    threads = {t.name for t in threading.enumerate()}

    def fail(self):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Engine, "warm_up", fail)
    assert server.look() == ("memory", False)
    assert {t.name for t in threading.enumerate()} == threads
    assert len(server.scores(pictures(2))) == 2


def test_room_is_asked_for_before_anything_is_loaded(registry, monkeypatch):
    declared = module.read_mlmodel(files_of(1))
    size = sum(f.stat().st_size for f in declared.files())
    cpu = torch.device("cpu")
    monkeypatch.setattr(memory, "free_memory", lambda: 3 * size + (256 << 20))
    assert memory.lack_of_room(declared, cpu) is None
    monkeypatch.setattr(memory, "free_memory", lambda: 3 * size + (256 << 20) - 1)
    assert "too little memory" in memory.lack_of_room(declared, cpu)


def test_downloads_of_killed_processes_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for pid in (os.getpid(), 999999999):
        (tmp_path / f"dfm-follow-{pid}-x").mkdir()
    sweep()
    assert [p.name for p in tmp_path.iterdir()] == [f"dfm-follow-{os.getpid()}-x"]
