"""What ARCHITECTURE.md says of the package: its recipes work, on a copy, and tests mirror it."""

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
# Modules without a test file of their name, and the file that tests them with others.
TESTED_BY = {
    "artifact.files": "artifact/test_cost.py",
    "artifact.record": "artifact/test_save_load.py",
    "artifact.statistics": "artifact/test_save_load.py",
    "console.options": "test_cli.py",
    "console.verb": "test_cli.py",
    "columns": "detector/test_decision.py",
    "config.combination": "config/test_train.py",
    "config.presets": "config/test_train.py",
    "data.folder": "data/test_layouts.py",
    "data.exclude": "jobs/test_training_look.py",
    "data.item": "jobs/test_train.py",
    "data.roles": "data/test_layouts.py",
    "jobs.fit": "jobs/test_train.py",
    "report.look": "jobs/test_training_look.py",
    "scores.copies": "jobs/test_training_look.py",
    "scores.tables": "jobs/test_training_look.py",
    "scores.training": "jobs/test_training_look.py",
    "tuning.drawn": "jobs/test_training_look.py",
    "detector.grid": "detector/test_class_model.py",
    "images.foreign": "images/test_decode_table.py",
    "images.inflate": "images/test_fast.py",
    "images.limits": "images/test_decode_table.py",
    "images.tiff": "images/test_decode_table.py",
    "mlflow_plugin.golden": "registry/test_golden.py",
    "serving.inputs": "serving/test_pyfunc.py",
    "serving.refusal": "serving/test_pyfunc.py",
    "serving.monitor.memory": "serving/monitor/test_follow.py",
    "serving.monitor.messages": "serving/monitor/test_monitor.py",
    "serving.monitor.shared": "serving/monitor/test_metrics.py",
    "spark.blocks": "spark/test_class_passes.py",
    "spark.layer_passes": "spark/test_class_passes.py",
}
# Trains by all four recipes at once, and says what came of it.
TRAIN = """
import json, sys
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
print(json.dumps(image_metrics(score_items(detector, test).table)))
"""


def recipes():
    text = (ROOT / "ARCHITECTURE.md").read_text()
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


def test_recipes_add_a_backbone_a_source_a_score_and_a_metric(changed_package, mvtec_like):
    assert len(list(recipes())) == 5
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


def modules():
    """Names of the modules, without the package's own, and where a test of each would be."""
    for path in sorted((ROOT / "dfm_mlflow").rglob("*.py")):
        place = path.relative_to(ROOT / "dfm_mlflow")
        if not path.name.startswith("_"):
            yield (
                ".".join(place.with_suffix("").parts),
                TESTS / place.with_name(f"test_{path.name}"),
            )


@pytest.mark.parametrize(("name", "file"), modules(), ids=[name for name, _ in modules()])
def test_tests_mirror_the_package(name, file):
    if name not in TESTED_BY:
        assert file.is_file(), f"{name} has no {file.relative_to(ROOT)}"
        return
    assert not file.exists(), f"{name} has a file of its own and stands in TESTED_BY"
    text = (TESTS / TESTED_BY[name]).read_text()
    assert re.search(rf"\b{name.rpartition('.')[2]}\b", text), f"{TESTED_BY[name]} has no {name}"


def test_nothing_else_is_told_to_be_tested():
    assert set(TESTED_BY) <= {name for name, _ in modules()}
