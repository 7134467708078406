"""What a shell offers, asked through a real bash."""

import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
import torchvision
from click.shell_completion import ShellComplete

from dfm_mlflow.cli import cli
from dfm_mlflow.console.complete import BACKBONES


def offered(words, start):
    complete = ShellComplete(cli, {}, "dfm-mlflow", "_DFM_MLFLOW_COMPLETE")
    return [item.value for item in complete.get_completions(words, start)]


def test_backbones_are_those_of_torchvision():
    known = set(torchvision.models.list_models(module=torchvision.models))
    transformers = {name for name in known if name.startswith(("swin", "maxvit"))}
    assert set(BACKBONES) - {"efficientnet_lite0"} == known - transformers


def test_values_are_completed():
    assert offered(["train", "--backbone"], "resnet1") == ["resnet101", "resnet152", "resnet18"]
    assert "fine" in offered(["train", "--preset"], "")
    assert offered(["train", "--normalize"], "po") == ["position"]
    assert offered(["promote", "--alias"], "pro") == ["production"]
    assert "--no-cache" in offered(["train"], "--no")


def test_registered_models_are_completed(store, monkeypatch):
    client = mlflow.MlflowClient()
    client.create_registered_model("dfm-caps")
    client.create_model_version("dfm-caps", "file:///nowhere")
    client.set_registered_model_alias("dfm-caps", "production", "1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow.get_tracking_uri())
    expected = ["models:/dfm-caps@production", "models:/dfm-caps/1"]
    assert offered(["score", "--model"], "models:/") == expected
    assert offered(["describe"], "models:/dfm-caps@")[0] == expected[0]
    assert "dfm-caps" in offered(["train", "--registered-model"], "dfm")


def test_nothing_is_made_where_there_is_no_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert [v for v in offered(["describe"], "models:/") if v.startswith("models:/d")] == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")
def test_bash_completes_what_holds_a_colon(tmp_path):
    """bash takes models:/a for three words, and puts what is offered after the last colon."""
    program = Path(sys.executable).parent / "dfm-mlflow"
    if not program.exists():
        pytest.skip("dfm-mlflow is not installed")
    script = f"""
eval "$(_DFM_MLFLOW_COMPLETE=bash_source {program})"
COMP_WORDS=(dfm-mlflow train --device cuda : ""); COMP_CWORD=5
set -- {program} "" :
_dfm_mlflow_completion {program}
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0"]
