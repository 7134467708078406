"""Models of each format, written when it was new, load and score for ever."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest

import dfm_mlflow

FIXTURES = Path(__file__).with_name("fixtures")
FORMAT1 = FIXTURES / "format1"
MODELS = sorted(path.with_suffix("") for path in FIXTURES.glob("format?/*.json"))
NUMBERS = ["anomaly_score", "fre", "nll"]


@pytest.mark.parametrize("model", MODELS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_it_gives_the_recorded_scores(model):
    paths = sorted((model.parent / "pictures").iterdir())
    images = {path.name: path.read_bytes() for path in paths}
    expected = pd.DataFrame(json.loads(Path(f"{model}.json").read_text())).T.loc[list(images)]
    assert json.loads((model / "dfm/detector.json").read_text())["format"] == int(
        model.parent.name[-1]
    )
    native = dfm_mlflow.load_model(str(model), device="cpu").score(list(images.values()))
    generic = mlflow.pyfunc.load_model(str(model), model_config={"device": "cpu"})
    served = generic.predict(pd.DataFrame({"image": list(images.values())}))
    for table in (native, served):
        for column in NUMBERS:  # other processors and versions of torch round otherwise
            np.testing.assert_allclose(
                table[column].astype(float), expected[column].astype(float), rtol=5e-3
            )
        assert table["predicted_class"].tolist() == expected["predicted_class"].tolist()
        assert table["is_anomaly"].tolist() == expected["is_anomaly"].tolist()


def test_the_fixtures_are_small_and_hold_no_pickle_and_no_code():
    assert [path.name for path in MODELS] == [
        *("likelihood", "one-class", "two-classes"),
        *("cells", "groups", "scales-and-copies"),
    ]
    for path in (p for model in MODELS for p in model.rglob("*") if p.is_file()):
        data = path.read_bytes()
        assert len(data) < 300_000
        assert path.suffix in ("", ".json", ".safetensors", ".yaml", ".txt"), path
        assert not data.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK"))


def test_those_of_format_1_are_never_written_anew():
    done = subprocess.run(
        [sys.executable, "-m", "tests.fixtures.make_format1"],
        text=True,
        capture_output=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 1
    assert "never written again" in done.stderr


def test_a_native_load_runs_no_code_of_the_model(tmp_path):
    """What MLmodel names as loader or brings as code is for pyfunc; the native load reads data."""
    model = shutil.copytree(FORMAT1 / "one-class", tmp_path / "model")
    (model / "code").mkdir()
    (model / "code/evil.py").write_text("raise SystemExit('code of the model was run')")
    text = (model / "MLmodel").read_text()
    text = text.replace("loader_module: dfm_mlflow", "loader_module: evil\n    code: code")
    (model / "MLmodel").write_text(text)
    with pytest.raises(SystemExit, match="was run"):  # so it is MLflow that must not be let
        mlflow.pyfunc.load_model(str(model))
    before = list(sys.path)
    assert dfm_mlflow.load_model(str(model), device="cpu").class_names == ("dark",)
    assert sys.path == before
    sys.modules.pop("evil", None)
