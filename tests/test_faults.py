"""Full disks, a home that cannot be written, no network, a tracking server that goes away."""

import hashlib
import shutil
import signal
import subprocess
import tarfile
from contextlib import contextmanager

import mlflow
import numpy as np
import pytest

from dfm_mlflow.artifact.save_load import save_detector
from dfm_mlflow.config import Options
from dfm_mlflow.data import mvtec
from dfm_mlflow.errors import ArtifactError, DataError, TrackingError
from dfm_mlflow.jobs import train as train_module
from dfm_mlflow.jobs.train import train
from dfm_mlflow.network.cache import FeatureCache
from dfm_mlflow.tracking.kept import log_kept

from .campaigns.faults import MODEL, Place
from .detectors import fit, pictures
from .servers import free_port, stop, tracking_server

pytestmark = pytest.mark.integration


@contextmanager
def mounted(folder, size, *options):
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *options]), "tmpfs", folder]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB."""
    with mounted(tmp_path / "small", "1m") as folder:
        yield folder


def fill(folder, left):
    """Leave so many bytes free."""
    free = shutil.disk_usage(folder).free
    (folder / "filler").write_bytes(b"x" * (free - left))


def test_a_full_disk_while_saving_leaves_nothing(small_disk):
    detector = fit({"stripes": pictures(8)})
    with pytest.raises(ArtifactError, match=r"cannot be written to .*free some space"):
        save_detector(detector, small_disk / "model/dfm")
    assert list((small_disk / "model").iterdir()) == []


def test_a_full_disk_while_caching_costs_no_run(small_disk, caplog):
    cache = FeatureCache(small_disk / "cache")
    arrays = [np.zeros(100_000, np.float32)]
    for i in range(6):
        cache.put(f"{i:064x}", arrays)
    assert caplog.text.count("cannot be written") == 1
    kept = [cache.get(f"{i:064x}") for i in range(6)]
    assert all(k is None or np.array_equal(k[0], arrays[0]) for k in kept)
    assert kept[0] is not None
    assert kept[-1] is None
    assert not list(small_disk.rglob(".tmp-*"))


def test_a_full_disk_while_unpacking_leaves_nothing(small_disk, tmp_path, monkeypatch):
    member = tmp_path / "a.png"
    member.write_bytes(bytes(3 * 2**19))  # small in the archive, too large for the disk
    archive = tmp_path / "a.tar.xz"
    with tarfile.open(archive, "w:xz") as tar:
        tar.add(member, "bottle/train/good/000.png")
    monkeypatch.setenv("DFM_DATA_HOME", str(small_disk))
    monkeypatch.setenv("DFM_MVTEC_URL", archive.as_uri())
    monkeypatch.setattr(mvtec, "SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(mvtec, "UNPACKED_BYTES", 900_000)  # so that it is tried
    with pytest.raises(DataError, match=r"cannot be put there .*No space left"):
        mvtec.mvtec_ad()
    left = {p.name for p in small_disk.iterdir()} - {".mvtec_ad.lock", ".mvtec_ad-licence-shown"}
    assert left == set()
    assert archive.exists()


def test_an_archive_that_unpacks_to_more_than_it_may_is_stopped(tmp_path, monkeypatch):
    bomb = tmp_path / "zeros"
    with open(bomb, "wb") as file:
        file.truncate(50 * 2**20)
    archive = tmp_path / "a.tar.xz"
    with tarfile.open(archive, "w:xz") as tar:
        tar.add(bomb, "bottle/train/good/000.png")
    assert archive.stat().st_size < 100_000
    home = tmp_path / "home"
    monkeypatch.setenv("DFM_DATA_HOME", str(home))
    monkeypatch.setenv("DFM_MVTEC_URL", archive.as_uri())
    monkeypatch.setattr(mvtec, "SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(mvtec, "UNPACKED_BYTES", 2**20)
    with pytest.raises(DataError, match=r"cannot be unpacked safely \(.* more than"):
        mvtec.mvtec_ad()
    assert not list(home.rglob("*.png"))


def test_a_full_disk_under_the_store_is_one_sentence(tmp_path, empty_store):
    place = Place(tmp_path / "place", empty_store)
    with mounted(tmp_path / "place/work/mlruns", "100k"):
        said = place.run()
    assert "Traceback" not in said, said
    assert "No space left" in said
    assert place.versions() == []
    assert place.strays() == []
    assert place.run() == ""


def test_a_home_that_cannot_be_written_costs_no_run(tmp_path, empty_store):
    place = Place(tmp_path / "place", empty_store)
    with mounted(tmp_path / "home", "1m", "ro") as home:
        said = place.run_anew(HOME=str(home), DFM_CACHE_HOME="")
    assert said == ""
    assert [v.version for v in place.versions()] == [1]


def test_a_run_needs_no_network(tmp_path, empty_store):
    apart = ["unshare", "--net"]
    done = subprocess.run([*apart, "true"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no network namespace can be made here: {done.stderr.strip()}")
    place = Place(tmp_path / "place", empty_store)
    assert place.run_anew(*apart) == ""


@pytest.mark.slow
def test_a_tracking_server_down_at_the_start_and_in_the_middle(
    tmp_path, empty_store, mvtec_like, monkeypatch
):
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    port = free_port()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    previous = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"http://127.0.0.1:{port}")
    options = Options.parse(
        {
            "data": str(mvtec_like),
            "category": "stripes",
            "weights": "random",
            "image_size": "64",
            "layers": "layer1",
        }
    )
    store, log = f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "server.log"
    fit_it = train_module._fit
    try:
        with pytest.raises(TrackingError, match=r"The tracking server .* run the command again"):
            train(options)
        with tracking_server(store, log, port=port) as server:
            mlflow.set_experiment("through the server")

            def fit_while_the_server_dies(*arguments):
                stop(server.process, signal.SIGKILL)
                return fit_it(*arguments)

            monkeypatch.setattr(train_module, "_fit", fit_while_the_server_dies)
            with pytest.raises(
                TrackingError, match=r"`dfm-mlflow resume-logging .*` logs and registers"
            ):
                train(options)
        (folder,) = (tmp_path / "dfm-kept").iterdir()
        with tracking_server(store, log, port=port):
            logged = log_kept(str(folder))
            assert logged.model_uri == f"models:/{MODEL}/1"
            run = mlflow.get_run(logged.run_id)
            assert run.data.metrics["image_auroc"] > 0.5
    finally:
        mlflow.set_tracking_uri(previous)
