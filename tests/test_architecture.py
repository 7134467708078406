"""What docs/extending.md says of the package: its recipes work, on a copy."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests"
# Trains by four recipes at once, asks the other two, and says what came of it.
TRAIN = """
import json, sys
from types import SimpleNamespace
from dfm_mlflow.config import Options
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.scores.evaluation import image_metrics, score_items
from dfm_mlflow.data.catalog import load_catalog
from dfm_mlflow.network.builder import build_extractor

options = Options.parse({"backbone": "two_convolutions", "layers": "2", "pooling": "1",
                         "image_size": "64", "score": "rms", "weights": "random",
                         "category": "stripes", "data": "good:" + sys.argv[1] + "/train"}).resolve()
train = load_catalog(options.data, options.categories).train
extractor, weights, options = build_extractor(options, train)
extraction = extractor.extract([item.path for item in train])
detector = AnomalyDetector.fit(options, extractor, extraction, ["stripes"] * len(train), weights)
test = load_catalog(sys.argv[1] + "/..", ["stripes"]).test
metrics = image_metrics(score_items(detector, test).table)

from pathlib import Path
from dfm_mlflow.data.layouts import recognise
from dfm_mlflow.registry.all_gates import STEPS
from dfm_mlflow.storage.walk import File

files = [File((), Path(name)) for name in ("a_ok.png", "b.png")]
metrics["recognised"] = list(recognise(Path("."), files).roles)
case = SimpleNamespace(version=SimpleNamespace(description=""))
metrics["refused"] = [gate.name for gate in STEPS[4].gates(case) if not gate.passed]
print(json.dumps(metrics))
"""


def recipes():
    text = (ROOT / "docs/extending.md").read_text()
    for block in re.findall(r"```diff\n(.*?)```", text, re.DOTALL):
        for part in re.split(r"^--- ", block, flags=re.MULTILINE)[1:]:
            name, _, lines = part.partition("\n")
            yield name.strip(), lines.splitlines()


def apply(recipe, file):
    """Replace the one place that the context and the removed lines name."""
    before = "".join(line[1:] + "\n" for line in recipe if line[0] in " -")
    after = "".join(line[1:] + "\n" for line in recipe if line[0] in " +")
    text = file.read_text()
    assert text.count(before) == 1, f"{file} has {text.count(before)} times\n{before}"
    file.write_text(text.replace(before, after))


@pytest.fixture
def changed_package(tmp_path):
    shutil.copytree(
        ROOT / "dfm_mlflow", tmp_path / "dfm_mlflow", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name, recipe in recipes():
        apply(recipe, tmp_path / name)
    return tmp_path


def test_recipes_are_whole(changed_package, mvtec_like):
    assert len(list(recipes())) == 8
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, mvtec_like / "stripes"],
        cwd=changed_package,
        env={**os.environ, "PYTHONPATH": str(changed_package)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = json.loads(done.stdout.splitlines()[-1])
    assert 0 < metrics["flagged_share"] < 1
    assert metrics["image_auroc"] > 0.5
    assert metrics["recognised"] == ["a_ok.png"]
    assert metrics["refused"] == ["described"]


def test_recipes_are_short():
    for name, recipe in recipes():
        assert sum(line[0] == "+" for line in recipe) <= 5, name


def test_import_is_light():
    code = (
        "import sys, time; t = time.perf_counter(); import dfm_mlflow; "
        "t = time.perf_counter() - t; "
        "print(sorted({'torch', 'mlflow', 'numpy'} & set(sys.modules)), t < 0.3)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] True"
