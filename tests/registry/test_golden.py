import mlflow
import numpy as np
import pandas as pd
import pytest

from dfm_mlflow.errors import PromotionError
from dfm_mlflow.mlflow_plugin.golden import GOLDEN, deviation, load_golden

from ..detectors import fit
from .test_promote import ask


def test_golden_pictures_must_be_there_and_score_as_in_training(registry, tmp_path):
    for kind in ("good", "bad"):
        mlflow.artifacts.download_artifacts(
            registry.zoo.runs[kind].model_uri, dst_path=str(tmp_path / kind)
        )
    registry.add_folder(tmp_path / "bad", "good")  # another model than the run's
    registry.add_folder(tmp_path / "good", None)
    with mlflow.start_run() as run:
        pass
    registry.client.create_model_version(registry.name, str(tmp_path / "good"), run.info.run_id)
    forced = {"force": "true", "reason": "in a hurry"}
    with pytest.raises(PromotionError, match="score otherwise than in training"):
        ask(registry, 1, **forced)
    with pytest.raises(PromotionError, match="names no run"):
        ask(registry, 2, **forced)
    with pytest.raises(PromotionError, match=f"{run.info.run_id} has no {GOLDEN}"):
        ask(registry, 3, **forced)
    assert registry.aliases == {}


def test_golden_pictures_are_what_the_network_saw(registry):
    good = registry.zoo.runs["good"]
    golden = load_golden(good.run_id)
    assert list(golden["split"]) == ["train"] * 4 + ["test"] * 4
    assert set(golden["label"]) == {"good", "hole"}
    assert set(golden["precision"]) == {"fp32"}
    path = mlflow.artifacts.download_artifacts(run_id=good.run_id, artifact_path="scores.parquet")
    known = pd.read_parquet(path)["anomaly_score"].to_numpy()
    for score in golden["anomaly_score"][4:]:
        assert np.abs(known / score - 1).min() < 1e-5
    assert deviation(good.detector, golden) == (pytest.approx(0, abs=1e-5), 1e-4)
    assert deviation(good.detector, golden.assign(device="cuda"))[1] == 2e-2
    moved = golden.assign(nll=golden["nll"] * 1.001)
    assert deviation(good.detector, moved)[0] == pytest.approx(1e-3, rel=0.1)
    assert len(load_golden(registry.zoo.runs["untested"].run_id)) == 8


def test_a_picture_that_nobody_reads_is_no_golden_one(tmp_path):
    from dfm_mlflow.data.item import Item
    from dfm_mlflow.registry.golden import golden_table

    (tmp_path / "a.png").write_bytes(b"noise")
    table = golden_table(fit(), [Item(tmp_path / "a.png", "stripes", "train", "good")])
    assert table.empty
