"""A small registered model with its data and new pictures, made once a module."""

import csv
import hashlib
import json
import os
import shutil
from pathlib import Path

import mlflow
import numpy as np
import pytest
from PIL import Image

from dfm_mlflow.config import Options, UpdateOptions
from dfm_mlflow.jobs.learned_set import TRAINING
from dfm_mlflow.jobs.train import train
from dfm_mlflow.jobs.update import update
from dfm_mlflow.registry import cost_gates
from dfm_mlflow.storage.store import read_address

from .zoo import SMALL


def digest(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


class Line:
    """A registered model with its data, and new pictures of which the last three are defective."""

    def __init__(self, root):
        from .conftest import texture, write_category

        self.root, self.data, self.client = root, root / "data", mlflow.MlflowClient()
        write_category(self.data, "stripes", n_train=20)
        rng = np.random.default_rng(7)
        (root / "new").mkdir()
        for i in range(8):
            picture = Image.fromarray(texture(rng, defect=i > 4))
            picture.save(root / f"new/n{i}.png")
        self.first = train(
            Options.parse({**SMALL, "data": str(self.data), "registered_model": "auto"})
        )

    def new(self, i):
        return self.root / f"new/n{i}.png"

    def old(self, i, split="train/good"):
        return self.data / f"stripes/{split}/{i:03d}.png"

    def say(self, *said, name="v.csv", columns=("who",), more=("ann",)):
        """Write verdicts: pairs of a path or digest and a verdict, its defect after a colon."""
        with open(self.root / name, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["sha256", "verdict", "path", "defect", *columns])
            for what, verdict in said:
                verdict, _, defect = verdict.partition(":")
                known = isinstance(what, str)
                sha = what if known else digest(what)
                writer.writerow([sha, verdict, "" if known else what, defect, *more])
        return str(self.root / name)

    def update(self, *said, model="models:/dfm-stripes/1", **given):
        if said:
            given["verdicts"] = self.say(*said)
        return update(UpdateOptions.parse({"model": model, **given}))

    def versions(self):
        return sorted(
            int(v.version) for v in self.client.search_model_versions("name='dfm-stripes'")
        )

    def listed(self, result):
        text = read_address(f"runs:/{result.trained.run_id}/{TRAINING}").decode()
        return list(csv.DictReader(text.splitlines()))


@pytest.fixture(scope="module")
def made_line(tmp_path_factory, empty_store):
    """The line, made once; each test gets a copy of its store."""
    root = tmp_path_factory.mktemp("line")
    previous, here = mlflow.get_tracking_uri(), os.getcwd()
    shutil.copy(empty_store, root / "mlflow.db")
    os.chdir(root)
    mlflow.set_tracking_uri(f"sqlite:///{root / 'mlflow.db'}")
    line = Line(root)
    os.chdir(here)
    mlflow.set_tracking_uri(previous)
    shutil.copy(root / "mlflow.db", root / "made.db")
    shutil.copytree(root / "data", root / "made-data")
    return line


@pytest.fixture
def line(made_line, monkeypatch):
    # one round of timing: registry/test_cost_gates says what more are for
    monkeypatch.setattr(cost_gates, "_ROUNDS", 1)
    monkeypatch.setattr(cost_gates, "_LEAST_ROUNDS", 1)
    shutil.copy(made_line.root / "made.db", made_line.root / "mlflow.db")
    shutil.rmtree(made_line.data, ignore_errors=True)
    shutil.copytree(made_line.root / "made-data", made_line.data)
    monkeypatch.chdir(made_line.root)
    uri = f"sqlite:///{made_line.root / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    previous = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    made_line.client = mlflow.MlflowClient()
    yield made_line
    while mlflow.active_run():
        mlflow.end_run()
    mlflow.set_tracking_uri(previous)


def files_of(uri):
    root = Path(mlflow.artifacts.download_artifacts(uri))
    record = json.loads((root / "dfm/detector.json").read_text())
    for name in ("data", "registered_model", "group_by", "exclude", "cache"):
        record["options"].pop(name)
    return (
        record,
        digest(root / "dfm/statistics.safetensors"),
        digest(root / "dfm/backbone.safetensors"),
    )
