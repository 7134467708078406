import shutil

import mlflow
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dfm_mlflow.config import EvaluateOptions
from dfm_mlflow.errors import DataError, DfmError
from dfm_mlflow.jobs import evaluate as job
from dfm_mlflow.jobs.evaluate import evaluate
from dfm_mlflow.jobs.train import train

from ..conftest import texture
from .test_train import artifacts, options

pytestmark = pytest.mark.integration  # whole jobs, one after the other


def ask(**given):
    return evaluate(EvaluateOptions.parse({"model": "models:/dfm-stripes/1", **given}))


def new_pictures(folder, n=60, darker=0.0, moved=0):
    """Good pictures of the camera that the model knows, or of one that changed."""
    folder.mkdir()
    rng = np.random.default_rng(7)
    for i in range(n):
        image = np.roll(texture(rng) * (1 - darker), moved, axis=(0, 1))
        Image.fromarray(image.astype(np.uint8)).save(folder / f"{i:03d}.png")
    return str(folder)


def test_labelled_pictures_give_the_metrics_of_the_training_run(trained):
    result = ask()
    for name in ("image_auroc", "image_f1", "threshold", "pixel_aupro", "false_positive_rate"):
        assert result.metrics[name] == pytest.approx(trained.metrics[name], abs=1e-6)
    run = mlflow.get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["image_auroc"] == result.metrics["image_auroc"]
    assert run.data.params["resolved_model"] == "models:/dfm-stripes/1"
    (used,) = run.inputs.dataset_inputs
    assert [t.value for t in used.tags] == ["evaluation"]
    assert "is promised" in run.data.tags["calibration"]
    model = mlflow.get_logged_model(trained.model_uri.removeprefix("models:/"))
    assert sum(m.key == "image_auroc" for m in model.metrics) == 2  # training and evaluation


def test_an_alias_that_moves_during_the_job_moves_nothing(trained, mvtec_like, monkeypatch):
    client = mlflow.MlflowClient()
    train(options(mvtec_like, "stripes", fpr="0.1", seed="1"))
    client.set_registered_model_alias("dfm-stripes", "production", "1")
    load = job.load_model

    def moves(uri):
        detector = load(uri)
        client.set_registered_model_alias("dfm-stripes", "production", "2")
        return detector

    monkeypatch.setattr(job, "load_model", moves)
    result = ask(model="models:/dfm-stripes@production")
    run = mlflow.get_run(result.run_id)
    assert run.data.params["resolved_model"] == "models:/dfm-stripes/1"
    (used,) = run.inputs.model_inputs
    assert used.model_id == trained.model_uri.removeprefix("models:/")


def test_new_good_pictures_are_no_drift_and_a_changed_camera_is(trained, tmp_path):
    calm = ask(data=new_pictures(tmp_path / "calm"))
    assert calm.metrics["drift_ks"] < 0.3
    assert calm.metrics["drift_significance"] > 0.001
    assert calm.metrics["drift_flagged"] <= 0.3
    assert not any("auroc" in name for name in calm.metrics)
    for name, change in (("dark", {"darker": 0.1}), ("moved", {"moved": 3})):
        changed = ask(data=new_pictures(tmp_path / name, **change))
        assert max(changed.metrics["drift_ks"], changed.metrics["drift_appearance"]) > 0.5
        assert changed.metrics["drift_significance"] < 1e-6
        assert "look at camera, lamp and product" in changed.sentences[-1]
    folder = artifacts(changed.run_id)
    assert (pd.read_parquet(folder / "scores.parquet")["label"] == "unlabelled").all()
    assert "Most unusual pictures" in (folder / "report/report.html").read_text()


def test_test_pictures_alone_are_enough_and_nothing_is_an_error(trained, mvtec_like, tmp_path):
    shutil.copytree(mvtec_like / "stripes/test", tmp_path / "data/stripes/test")
    assert ask(data=str(tmp_path / "data")).metrics["n_test"] == 14
    (tmp_path / "empty/stripes/test/good").mkdir(parents=True)
    with pytest.raises(DataError, match="holds no pictures"):
        ask(data=str(tmp_path / "empty"))
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "a.png").write_bytes(b"noise")
    with pytest.raises(DataError, match="None of 1 pictures can be read"):
        ask(data=str(broken))
    with pytest.raises((DfmError, mlflow.MlflowException)):
        ask(model="models:/dfm-none/1")


def test_a_server_s_log_is_evaluated_without_its_pictures(trained, tmp_path):
    import io

    from dfm_mlflow.serving.monitor.log_store import LogStore

    rng = np.random.default_rng(3)
    images = []
    for _ in range(20):
        buffer = io.BytesIO()
        Image.fromarray(texture(rng)).save(buffer, format="PNG")
        images.append(buffer.getvalue())
    scores = trained.detector.score(images)
    rows = [
        [1e9 + i, "1", "ab" * 32, r.anomaly_score, r.p_value, bool(r.is_anomaly), r.predicted_class]
        + ["pass", None, 3.0, None]
        for i, r in enumerate(scores.itertuples())
    ]
    LogStore(str(tmp_path / "log"), 5, 5, 1).add_rows(rows)
    result = ask(data=str(tmp_path / "log"))
    assert result.metrics["n_images"] == 20
    assert result.metrics["drift_flagged"] == pytest.approx(scores["is_anomaly"].mean())
    run = mlflow.get_run(result.run_id)
    assert run.data.metrics["drift_ks"] == result.metrics["drift_ks"]
    assert run.data.params["resolved_data"] == str(tmp_path / "log")
    path = mlflow.artifacts.download_artifacts(f"runs:/{result.run_id}/scores.parquet")
    assert len(pd.read_parquet(path)) == 20
