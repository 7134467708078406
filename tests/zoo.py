"""Models trained once, and registered again under a name of its own in every test."""

import re
from contextlib import nullcontext
from types import SimpleNamespace

import mlflow
import numpy as np
import pytest
from PIL import Image

from dfm_mlflow.config import Options

SMALL = {
    "weights": "random",
    "image_size": "64",
    "backbone": "resnet18",
    "category": "stripes",
    "augment": "none",
    "registered_model": "none",
}


def pictures(folder, n, defect=False, seed=0):
    from .conftest import texture

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(n):
        picture = Image.fromarray(texture(rng, defect=defect))
        picture.save(folder / f"{'hole' if defect else 'good'}{i:02d}.png")


@pytest.fixture(scope="session")
def zoo(tmp_path_factory, empty_store, mvtec_like, request):
    """Runs that made a good model, its twin, a large, a bad and an untested one."""
    from dfm_mlflow.jobs.train import train

    from .conftest import in_store
    from .drawing import drawn

    root = tmp_path_factory.mktemp("zoo")
    # takes holes for good, so that it ranks the true test pictures the wrong way round
    pictures(root / "bad/stripes/train/good", 20, defect=True, seed=3)
    mixed = root / "mixed/stripes/test"  # labels that say nothing: nobody is better than chance
    for label, n in (("good", 8), ("hole", 6)):
        pictures(mixed / label, n // 2, seed=n)
        pictures(mixed / label, n // 2, defect=True, seed=n + 1)
    given = {
        "good": {"data": str(mvtec_like)},
        "twin": {"data": str(mvtec_like), "seed": "1"},
        "large": {"data": str(mvtec_like), "image_size": "160", "layers": "layer2,layer3,layer4"},
        "bad": {"data": str(root / "bad")},
        "untested": {"data": str(mvtec_like / "stripes/train/good")},
    }
    # the browser's tests look at the reports
    shown = any("test_ui.py" in item.nodeid for item in request.session.items)
    with in_store(empty_store, root) as uri, drawn() if shown else nullcontext():
        runs = {name: train(Options.parse(SMALL | more)) for name, more in given.items()}
    return SimpleNamespace(
        root=root, uri=uri, runs=runs, mixed=str(root / "mixed"), clean=str(mvtec_like)
    )


@pytest.fixture
def registry(zoo, monkeypatch, request):
    """The zoo's store, with a registered model of this test's own."""
    from dfm_mlflow.registry import cost_gates

    monkeypatch.chdir(zoo.root)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", zoo.uri)
    # one round of timing: registry/test_cost_gates says what more are for
    monkeypatch.setattr(cost_gates, "_ROUNDS", 1)
    monkeypatch.setattr(cost_gates, "_LEAST_ROUNDS", 1)
    previous = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(zoo.uri)
    mlflow.set_experiment(experiment_id="0")
    yield Registry(zoo, "dfm-" + re.sub(r"\W+", "-", request.node.name))
    while mlflow.active_run():
        mlflow.end_run()
    mlflow.set_tracking_uri(previous)


class Registry:
    """A registered model, and short ways to ask about it."""

    def __init__(self, zoo, name):
        self.zoo, self.name, self.client = zoo, name, mlflow.MlflowClient()

    def add(self, *kinds):
        """Register models of the zoo as the next versions."""
        for kind in kinds:
            mlflow.register_model(self.zoo.runs[kind].model_uri, self.name)

    def add_folder(self, folder, kind):
        """Register a folder as the next version, as if the run of this kind had made it."""
        if not self.client.search_registered_models(f"name='{self.name}'"):
            self.client.create_registered_model(self.name)
        self.client.create_model_version(
            self.name, str(folder), kind and self.zoo.runs[kind].run_id
        )

    def point(self, alias, version):
        self.client.set_registered_model_alias(self.name, alias, str(version))

    @property
    def aliases(self):
        return {a: int(v) for a, v in self.client.get_registered_model(self.name).aliases.items()}

    def version(self, number):
        return self.client.get_model_version(self.name, str(number))

    def tags(self, number, prefix="dfm.promotion.production."):
        return {
            key.removeprefix(prefix): text
            for key, text in self.version(number).tags.items()
            if key.startswith(prefix)
        }

    def state(self):
        """Everything that a promotion could change."""
        model = self.client.get_registered_model(self.name)
        versions = self.client.search_model_versions(f"name='{self.name}'")
        return (
            model.aliases,
            model.tags,
            sorted((str(v.version), v.current_stage, tuple(v.tags.items())) for v in versions),
            len(self.client.search_registered_models()),
        )

    def runs(self):
        """Runs of promotions of this model, newest first."""
        return self.client.search_runs(["0"], f"params.resolved_model = '{self.name}'")
