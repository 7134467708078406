"""What start-up may load: seen in a process of its own, by what it has imported."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration  # a process for each test

# The compiler and its company, and what only reports, metrics of masks or scikit-learn's users need
HEAVY = {"matplotlib", "onnx", "scipy.ndimage", "scipy.stats", "sklearn", "sympy", "timm"} | {
    f"torch.{name}" for name in ("_dynamo", "_inductor", "fx.experimental.symbolic_shapes")
}


def loaded(code):
    code = f"import json, sys; {code}; print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_help_loads_no_network_and_no_tracking():
    code = "from click.testing import CliRunner; from dfm_mlflow.cli import cli; "
    found = loaded(code + "assert CliRunner().invoke(cli, ['train', '--help']).exit_code == 0")
    assert not found & (HEAVY | {"torch", "mlflow", "pandas", "scipy", "torchvision"})


def test_train_score_and_serve_load_neither_torchvision_nor_the_compiler():
    jobs = ("jobs.train", "jobs.score", "serving.pyfunc")
    found = loaded("import " + ", ".join(f"dfm_mlflow.{job}" for job in jobs))
    assert "dfm_mlflow.network.vision" in found
    assert not found & (HEAVY | {"torchvision"})


def test_networks_are_built_and_cut_without_the_compiler():
    build = "from dfm_mlflow.network.backbones import build_backbone as build; "
    cut = "('stride:8', 'stride:16'), (64, 64))"
    found = loaded(f"{build}build('resnet18', {cut}; build('efficientnet_lite0', {cut}")
    assert not found & HEAVY


def test_models_are_loaded_and_score_without_the_compiler():
    folder = Path(__file__).parents[1] / "fixtures/format1/one-class/dfm"
    code = "import numpy; from dfm_mlflow.artifact.save_load import load_detector; "
    score = "score([numpy.zeros((64, 64, 3), numpy.uint8)])"
    found = loaded(f"{code}load_detector(__import__('pathlib').Path('{folder}')).{score}")
    assert not found & HEAVY


def test_the_compiler_is_whole_once_somebody_asks_for_it():
    code = """
import sys
from dfm_mlflow.network.vision import models
from torchvision.ops import roi_align
assert 'torch._dynamo.utils' not in sys.modules
supported = roi_align.__globals__['is_compile_supported']
assert 'torch._dynamo' not in sys.modules
answer = supported('cpu')
import torch._dynamo.utils
assert answer == torch._dynamo.utils.is_compile_supported('cpu')
assert torch._dynamo.utils.__file__
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=300)
