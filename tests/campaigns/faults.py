"""Training runs that are killed at random moments, and then run again.

    python -m tests.campaigns.faults --kills 50 --seed 1

After each ``kill -9``: every feature in the cache is whole and the one that an undisturbed run
computes, every registered version is a whole model, and nothing lies anywhere but in the tracking
store, the cache and ``$TMPDIR``. The run after it succeeds and gives the undisturbed run's scores.
"""

import argparse
import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

import mlflow
import numpy as np

import dfm_mlflow
from dfm_mlflow import cli
from dfm_mlflow.network.cache import FeatureCache

from ..conftest import write_category

MODEL = "dfm-stripes"
OPTIONS = (
    "--category=stripes",
    "--weights=random",
    "--image-size=64",
    "--layers=layer1",
    "--backbone=resnet18",
)
TIMED = ("seconds", "images_per_second", "megabytes")  # parts of names of metrics that vary

# Imports take most of the time of a small run, and leave nothing behind.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["dfm_mlflow.jobs.train", "mlflow.store.tracking.sqlalchemy_store"])


def _arguments(root: Path) -> list[str]:
    return ["train", *OPTIONS, f"--data={root / 'data'}"]


def _train(root: Path, environment: dict[str, str]) -> None:
    """Become what a shell would have started."""
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # so that $TMPDIR is read
    os.chdir(root / "work")
    with open(root / "said", "w") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    sys.argv = ["dfm-mlflow", *_arguments(root)]
    cli.main()


@dataclass
class Tally:
    """What was found."""

    kills: int = 0
    moments: list[float] = field(default_factory=list)  # seconds after the start
    finished: int = 0  # runs that were faster than their kill
    empty_models: int = 0  # registered names without a version yet
    temporary: int = 0  # files in $TMPDIR and hidden ones in the cache
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.kills} kills ({self.finished} after the end), {len(self.faults)} faults; "
            f"{self.empty_models} registered names without a version, {self.temporary} "
            "temporary files in the stated places"
        )


class Place:
    """A folder with data, an empty store, a cache and temporary files, all of its own."""

    def __init__(self, root: Path, empty_store: Path):
        self.root = root
        for name in ("work", "cache", "tmp", "home"):
            (root / name).mkdir(parents=True)
        write_category(root / "data", "stripes", n_train=12)
        # MLflow makes the tables of a new store one by one, and cannot open one half made
        shutil.copy(empty_store, root / "work/mlflow.db")
        with contextlib.closing(sqlite3.connect(root / "work/mlflow.db")) as base, base:
            base.execute(
                "UPDATE experiments SET artifact_location = ?", [str(root / "work/mlruns/0")]
            )
        self.uri = f"sqlite:///{root / 'work/mlflow.db'}"

    def start(self) -> BaseProcess:
        """Start a training run in a process that has imported everything already."""
        process = _FORKS.Process(target=_train, args=(self.root, self._environment()))
        process.start()
        return process

    def run(self) -> str:
        """Train to the end; gives why it failed, or nothing."""
        process = self.start()
        process.join(600)
        return (self.root / "said").read_text()[-2000:] if process.exitcode else ""

    def run_anew(self, *before: str, **environment: str) -> str:
        """Train in a new interpreter, under another command where one is given, as `run`."""
        done = subprocess.run(
            [*before, sys.executable, "-m", "dfm_mlflow", *_arguments(self.root)],
            cwd=self.root / "work",
            env={**self._environment(), **environment},
            capture_output=True,
            text=True,
            timeout=600,
        )
        return done.stderr[-2000:] if done.returncode else ""

    def _environment(self) -> dict[str, str]:
        given = {
            "MLFLOW_TRACKING_URI": self.uri,
            "DFM_CACHE_HOME": str(self.root / "cache"),
            "TMPDIR": str(self.root / "tmp"),
            "HOME": str(self.root / "home"),
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        return {**os.environ, **given}

    def features(self) -> dict[str, list[np.ndarray]]:
        """Everything that the cache gives out, by key; nothing for a damaged entry."""
        paths = [p for p in (self.root / "cache").rglob("*.safetensors") if p.name[0] != "."]
        caches = {p: FeatureCache(p.parent.parent) for p in paths}
        return {p.stem: cache.get(p.stem) or [] for p, cache in caches.items()}

    def temporary(self) -> list[Path]:
        """Files in the places where a killed process may leave some."""
        hidden = (self.root / "cache").rglob(".tmp-*")
        return [*hidden, *(p for p in (self.root / "tmp").rglob("*") if p.is_file())]

    def strays(self) -> list[Path]:
        """Files that lie anywhere else."""
        known = {"mlflow.db", "mlflow.db-journal", "mlflow.db-wal", "mlflow.db-shm", "mlruns"}
        here = [p for p in (self.root / "work").iterdir() if p.name not in known]
        cached = [
            p
            for p in (self.root / "cache").rglob("*")
            if p.is_file() and p.suffix != ".safetensors" and not p.name.startswith(".tmp-")
        ]
        return here + cached

    def versions(self) -> list:
        client = mlflow.MlflowClient(self.uri)
        return list(client.search_model_versions(f"name='{MODEL}'"))

    def metrics(self) -> dict[str, float]:
        """Metrics of the newest registered version's run."""
        newest = max(self.versions(), key=lambda v: int(v.version))
        run = mlflow.MlflowClient(self.uri).get_run(newest.run_id)
        return {k: v for k, v in run.data.metrics.items() if not any(t in k for t in TIMED)}


def kill_runs(kills: int, seed: int, root: Path, empty_store: Path) -> Tally:
    """Kill so many runs, and let one finish after each."""
    tally, rng = Tally(), random.Random(seed)
    whole = Place(root / "whole", empty_store)
    imports = _FORKS.Process()  # the first waits for them
    imports.start()
    imports.join()
    begin = time.monotonic()
    if why := whole.run():
        tally.faults.append(f"the undisturbed run: {why}")
        return tally
    seconds = time.monotonic() - begin
    features, metrics = whole.features(), whole.metrics()
    for i in range(kills):
        # the cache of a run that finished would leave nothing to disturb
        place = Place(root / f"kill{i}", empty_store)
        process = place.start()
        moment = seconds * rng.uniform(0, 1.0)
        process.join(moment)
        tally.finished += process.exitcode is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        tally.kills += 1
        tally.moments.append(moment)
        found = _look(place, features, tally)
        if why := place.run():
            found.append(f"the next run failed: {why}")
        else:
            found += [
                f"{k} is {v}, not {metrics[k]}"
                for k, v in place.metrics().items()
                if not np.isclose(v, metrics[k], rtol=1e-5)
            ]
            found += _look(place, features, tally)
        tally.faults += [f"kill {i} after {moment:.1f} s: {what}" for what in found]
        if not found:
            shutil.rmtree(place.root)
    return tally


def _look(place: Place, features: dict, tally: Tally) -> list[str]:
    found = [f"{path} lies around" for path in place.strays()]
    tally.temporary += len(place.temporary())
    for key, arrays in place.features().items():
        known = features.get(key, [])
        same = len(arrays) == len(known) and all(map(np.array_equal, arrays, known))
        if not (known and same):
            found.append(f"the cache holds other features under {key}")
    client = mlflow.MlflowClient(place.uri)
    named = [m.name for m in client.search_registered_models()]
    versions = place.versions()
    tally.empty_models += bool(named) and not versions
    for version in versions:
        mlflow.set_tracking_uri(place.uri)
        try:
            dfm_mlflow.load_model(f"models:/{MODEL}/{version.version}", device="cpu")
        except Exception as error:
            found.append(f"version {version.version} does not load: {error}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        store = Path(name) / "empty.db"
        mlflow.MlflowClient(f"sqlite:///{store}").search_experiments()
        tally = kill_runs(given.kills, given.seed, Path(name), store)
    print(tally, *tally.faults, sep="\n")
    sys.exit(bool(tally.faults))


if __name__ == "__main__":
    main()
