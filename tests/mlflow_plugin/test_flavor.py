import subprocess
import sys
import zipfile
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import yaml
from mlflow.models.utils import _validate_serving_input as validate_serving_input
from mlflow.utils.environment import _process_pip_requirements

import dfm_mlflow
from dfm_mlflow.errors import ArtifactError
from dfm_mlflow.mlflow_plugin import _compat
from dfm_mlflow.mlflow_plugin.flavor import get_default_pip_requirements

from ..detectors import pictures

IMAGES = pictures(2, 7) + pictures(2, 8, defect=True)


@pytest.fixture(scope="module")
def saved(detector, tmp_path_factory):
    path = tmp_path_factory.mktemp("flavor") / "model"
    dfm_mlflow.save_model(detector, path, metadata={"line": 3})
    return path


def test_mlmodel_says_what_it_is(saved):
    model = yaml.safe_load((saved / "MLmodel").read_text())
    section = model["flavors"]["dfm"]
    assert (section["backbone"], section["layers"], section["score"]) == (
        "resnet18",
        ["layer1", "layer2"],
        "fre",
    )
    assert (section["format_version"], section["image_size"]) == (2, [64, 64])
    assert section["classes"] == ["stripes"]
    assert len(section["sha256"]) == 64
    assert model["flavors"]["python_function"]["loader_module"] == "dfm_mlflow"
    assert model["metadata"] == {"line": 3}


def test_no_pickle_and_no_code(saved):
    files = [p for p in saved.rglob("*") if p.is_file()]
    assert {p.suffix for p in files} == {"", ".json", ".safetensors", ".yaml", ".txt", ".whl"}
    assert not (saved / "code").exists()
    for path in files:
        assert not path.read_bytes().startswith((b"\x80\x02", b"\x80\x04", b"\x80\x05")), path


def test_its_wheel_travels_and_is_named(saved):
    (wheel,) = (saved / "wheels").iterdir()
    for name in ("requirements.txt", "conda.yaml"):
        assert f"wheels/{wheel.name}" in (saved / name).read_text()
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "dfm_mlflow/detector/anomaly_detector.py" in names
    assert "dfm_mlflow/report/report.html.j2" in names


def test_user_requirements_are_kept_and_the_package_is_added(detector, tmp_path):
    dfm_mlflow.save_model(
        detector,
        tmp_path / "m",
        pip_requirements=["torch", "numpy"],
        model_config={"batch_size": 3},
    )
    lines = (tmp_path / "m/requirements.txt").read_text().splitlines()
    assert {"torch", "numpy"} <= set(lines)
    assert any(line.startswith("wheels/dfm_mlflow-") for line in lines)
    assert not any(line.startswith("torchvision") for line in lines)
    loaded = mlflow.pyfunc.load_model(str(tmp_path / "m")).get_raw_model()
    assert loaded.extractor.batch_size == 3
    with pytest.raises(ArtifactError, match="no colour"):
        dfm_mlflow.save_model(detector, tmp_path / "n", model_config={"colour": 1})


def test_default_requirements_pin_what_runs():
    requirements = dfm_mlflow.get_default_pip_requirements()
    assert f"dfm-mlflow=={dfm_mlflow.__version__}" in requirements
    assert all("==" in r for r in requirements)
    pip = dfm_mlflow.get_default_conda_env()["dependencies"][-1]["pip"]
    assert set(requirements) <= set(pip)


def test_default_requirements_are_what_mlflow_makes_of_them():
    own = get_default_pip_requirements()[:-1]
    expected = _process_pip_requirements(list(own))
    assert _compat.process_pip_requirements(list(own), None, None) == expected


def test_a_changed_model_is_refused_by_both_loaders(detector, tmp_path):
    dfm_mlflow.save_model(detector, tmp_path / "m")
    record = tmp_path / "m/dfm/detector.json"
    record.write_text(record.read_text().replace("stripes", "spirals"))
    for load in (dfm_mlflow.load_model, mlflow.pyfunc.load_model):
        with pytest.raises(ArtifactError, match="was changed"):
            load(str(tmp_path / "m"))


def test_log_and_register(detector, store):
    with mlflow.start_run():
        info = dfm_mlflow.log_model(
            detector,
            name="model",
            registered_model_name="dfm-stripes",
            tags={"line": "3"},
            input_example=pd.DataFrame({"image": IMAGES[:1]}),
        )
    loaded = dfm_mlflow.load_model("models:/dfm-stripes/1")
    assert loaded.thresholds() == detector.thresholds()
    assert mlflow.get_logged_model(info.model_id).tags["line"] == "3"
    payload = Path(
        mlflow.artifacts.download_artifacts(info.model_uri), "serving_input_example.json"
    )
    assert len(validate_serving_input(info.model_uri, payload.read_text())) == 1


def test_import_of_mlflow_stays_light_and_quiet():
    code = (
        "import warnings, sys; warnings.simplefilter('error', UserWarning); import mlflow; "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
