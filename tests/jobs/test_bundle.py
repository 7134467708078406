"""A bundle is collected from a small index, and installs without any other."""

import subprocess
import sys
import zipfile

import pytest

from dfm_mlflow.config import BundleOptions
from dfm_mlflow.errors import ConfigError, DataError
from dfm_mlflow.jobs.bundle import bundle
from dfm_mlflow.mlflow_plugin.flavor import save_model

from ..detectors import fit

pytestmark = pytest.mark.integration  # whole jobs, one after the other


def wheel(folder, name, body):
    """Write a wheel of one module."""
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}.py", body)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture
def index(tmp_path, monkeypatch):
    folder = tmp_path / "index"
    folder.mkdir()
    wheel(folder, "tiny_one", "x = 1")
    wheel(folder, "tiny_two", "x = 2")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def model(tmp_path):
    save_model(fit(), tmp_path / "model", pip_requirements=["tiny_one==1.0"])
    needed = tmp_path / "model/requirements.txt"  # without MLflow, which the index lacks
    lines = [line for line in needed.read_text().splitlines() if not line.startswith("mlflow")]
    needed.write_text("\n".join(lines))
    return tmp_path / "model"


def options(model, output, **more):
    return BundleOptions.parse({"model": str(model), "output": str(output), **more})


def test_a_bundle_holds_model_packages_and_how_to_install(index, model, tmp_path):
    result = bundle(options(model, tmp_path / "out", extras="tiny_two"))
    names = {p.name.partition("-")[0] for p in (tmp_path / "out/packages").iterdir()}
    assert {"tiny_one", "tiny_two"} <= names
    assert result.n_packages == len(names)
    assert (tmp_path / "out/model/MLmodel").is_file()
    needed = (tmp_path / "out/requirements.txt").read_text()
    if "wheels/" in (model / "requirements.txt").read_text():  # from a checkout
        assert "./model/wheels/dfm_mlflow-" in needed
    target = tmp_path / "installed"
    command = ["-m", "pip", "install", "-q", "--no-index", "--find-links", "packages"]
    done = subprocess.run(
        [sys.executable, *command, "--target", str(target), "-r", "requirements.txt"],
        cwd=tmp_path / "out",
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert {"tiny_one.py", "tiny_two.py"} <= {p.name for p in target.iterdir()}
    checked = subprocess.run(["sh", "-n", str(tmp_path / "out/install.sh")])
    assert checked.returncode == 0


def test_what_pip_cannot_find_is_said_and_leaves_nothing(index, model, tmp_path):
    with pytest.raises(DataError, match="pip cannot collect .*tiny_three"):
        bundle(options(model, tmp_path / "out", extras="tiny_three"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="exists and is not empty"):
        bundle(options(model, index))
