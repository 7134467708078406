"""The story as a user lives it: real processes, a real store, real HTTP."""

import base64
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest

import dfm_mlflow

from .servers import post, serving

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parent.parent
MLFLOW = [sys.executable, "-m", "mlflow"]


@pytest.fixture(scope="module")
def story(tmp_path_factory, mvtec_like):
    """``mlflow run`` in a process of its own; gives its environment."""
    folder = tmp_path_factory.mktemp("story")
    # the project's command says `python`: it must be the one that runs the tests
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "DFM_CACHE_HOME": str(folder / "cache"),
        "PATH": path,
    }
    done = subprocess.run(
        [
            *MLFLOW,
            "run",
            str(ROOT),
            "--env-manager",
            "local",
            "-P",
            "category=stripes",
            "-P",
            f"data={mvtec_like}",
            "-P",
            "weights=random",
            "-P",
            "image_size=64",
            "-P",
            "fpr=5e-2",
        ],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return environment, folder


@pytest.fixture
def client(story, monkeypatch):
    environment, folder = story
    monkeypatch.chdir(folder)
    previous = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(environment["MLFLOW_TRACKING_URI"])
    yield mlflow.MlflowClient()
    mlflow.set_tracking_uri(previous)


@pytest.fixture(scope="module")
def server(story):
    environment, folder = story
    with serving("models:/dfm-stripes/1", folder / "server.log", environment=environment) as url:
        yield url


@pytest.fixture
def images(mvtec_like):
    folders = (mvtec_like / "stripes/test/good", mvtec_like / "stripes/test/hole")
    return [p.read_bytes() for f in folders for p in sorted(f.iterdir())[:2]]


def test_mlflow_run_makes_one_finished_run_with_raw_and_resolved_parameters(client):
    (run,) = client.search_runs(["0"])
    assert run.info.status == "FINISHED"
    assert (
        run.info.run_name == "stripes-resnet18-default-data0-image_size=64"
    )  # MLflow's was random
    assert (run.data.params["fpr"], run.data.params["resolved_fpr"]) == ("5e-2", "0.05")
    assert (run.data.params["layers"], run.data.params["resolved_layers"]) == (
        "auto",
        "layer2,layer3",
    )
    assert run.data.metrics["image_auroc"] > 0.9
    assert client.get_model_version("dfm-stripes", "1").run_id == run.info.run_id


def test_every_way_of_scoring_gives_the_same(client, server, story, images, tmp_path):
    native = dfm_mlflow.load_model("models:/dfm-stripes/1").score(images)
    expected = native["anomaly_score"].to_numpy()
    coded = [base64.b64encode(i).decode() for i in images]
    parquet = io.BytesIO()
    pd.DataFrame({"image": images}).to_parquet(parquet)
    requests = {
        "dataframe_records": {"dataframe_records": [{"image": c} for c in coded]},
        "dataframe_split": {
            "dataframe_split": {"columns": ["image"], "data": [[c] for c in coded]}
        },
        "instances": {"instances": [{"image": c} for c in coded]},
        "inputs": {"inputs": {"image": coded}},
        "inputs list": {"inputs": coded},
    }
    answers = {name: post(server, body) for name, body in requests.items()}
    answers["parquet"] = post(server, parquet.getvalue(), "application/vnd.apache.parquet")
    for name, (status, answer) in answers.items():
        assert status == 200, (name, answer)
        scores = [row["anomaly_score"] for row in answer["predictions"]]
        np.testing.assert_allclose(scores, expected, rtol=1e-5, err_msg=name)
    assert list(answers["inputs"][1]["predictions"][0]) == list(native.columns)

    generic = mlflow.pyfunc.load_model("models:/dfm-stripes/1")
    scored = generic.predict(pd.DataFrame({"image": images}))
    np.testing.assert_allclose(scored["anomaly_score"], expected, rtol=1e-5)

    (tmp_path / "in.json").write_text(json.dumps(requests["dataframe_split"]))
    subprocess.run(
        [
            *MLFLOW,
            "models",
            "predict",
            "-m",
            "models:/dfm-stripes/1",
            "--env-manager",
            "local",
            "-i",
            str(tmp_path / "in.json"),
            "-o",
            str(tmp_path / "out.json"),
        ],
        env=story[0],
        cwd=story[1],
        check=True,
        capture_output=True,
        timeout=120,
    )
    predicted = json.loads((tmp_path / "out.json").read_text())["predictions"]
    np.testing.assert_allclose([r["anomaly_score"] for r in predicted], expected, rtol=1e-5)


def test_parameters_and_mistakes_over_http(server, images):
    coded = [base64.b64encode(i).decode() for i in images]
    records = [{"image": coded[0]}, {"image": base64.b64encode(b"noise").decode()}]
    status, answer = post(server, {"dataframe_records": records})
    assert status == 400
    assert answer["message"].startswith("Row 1: ")
    assert "noise" not in answer["message"]
    asked = {"on_error": "report", "anomaly_map": True, "fpr": 0.5}
    status, answer = post(server, {"dataframe_records": records, "params": asked})
    assert status == 200
    first, second = answer["predictions"]
    assert base64.b64decode(first["anomaly_map"]).startswith(b"\x89PNG")
    assert first["error"] is None
    assert second["anomaly_score"] is None
    assert "not a picture" in second["error"]


@pytest.mark.slow
@pytest.mark.skipif("DFM_TEST_UV" not in os.environ, reason="set DFM_TEST_UV=1: installs torch")
def test_a_model_is_served_in_a_fresh_environment(story, images, tmp_path):
    body = {"inputs": {"image": [base64.b64encode(i).decode() for i in images]}}
    (tmp_path / "in.json").write_text(json.dumps(body))
    subprocess.run(
        [
            *MLFLOW,
            "models",
            "predict",
            "-m",
            "models:/dfm-stripes/1",
            "--env-manager",
            "uv",
            "-i",
            str(tmp_path / "in.json"),
            "-o",
            str(tmp_path / "out.json"),
        ],
        env=story[0],
        cwd=story[1],
        check=True,
        timeout=1800,
    )
    assert len(json.loads((tmp_path / "out.json").read_text())["predictions"]) == 4
