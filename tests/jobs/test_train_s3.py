"""Training from S3 gives what training from a folder gives."""

import mlflow
import numpy as np
import pandas as pd
import pytest

from dfm_mlflow.config import Options
from dfm_mlflow.errors import DataError
from dfm_mlflow.jobs.train import train

pytestmark = pytest.mark.integration  # whole jobs, one after the other

SMALL = {
    "weights": "random",
    "image_size": "64",
    "backbone": "resnet18",
    "category": "stripes",
    "augment": "none",
    "registered_model": "none",
}


def options(data, **more):
    return Options.parse({"data": str(data), **SMALL, **more})


def scores(result):
    path = mlflow.artifacts.download_artifacts(run_id=result.run_id, artifact_path="scores.parquet")
    return pd.read_parquet(path)


@pytest.fixture
def uri(s3_store, mvtec_like):
    return s3_store.upload(mvtec_like / "stripes", "mvtec/stripes").rpartition("/")[0]


def test_a_run_from_s3_equals_one_from_a_folder(store, s3_store, uri, mvtec_like, pauses):
    s3_store.faults = [
        ("GET", "train/good/003.png", "503"),
        ("GET", "hole/001.png", ("cut", 1000)),
        ("GET", "list-type", "503"),
    ]
    remote = train(options(uri, cache="false"))
    assert s3_store.faults == []
    n_read = len(s3_store.gets())
    assert n_read == 24 + 14 + 5 + 2  # pictures and masks once each, and two failures
    local = train(options(mvtec_like, cache="false"))
    ours, theirs = scores(remote), scores(local)
    np.testing.assert_array_equal(ours["anomaly_score"], theirs["anomaly_score"])
    np.testing.assert_array_equal(ours["p_value"], theirs["p_value"])
    assert list(ours["path"]) == [p.replace(str(mvtec_like), uri) for p in theirs["path"]]
    timings = ("seconds", "per_second", "megabytes")
    assert {k: v for k, v in remote.metrics.items() if not k.endswith(timings)} == {
        k: v for k, v in local.metrics.items() if not k.endswith(timings)
    }
    (used,) = mlflow.get_run(remote.run_id).inputs.dataset_inputs
    (local_used,) = mlflow.get_run(local.run_id).inputs.dataset_inputs
    assert (used.dataset.source_type, used.dataset.digest) == ("s3", local_used.dataset.digest)
    assert uri in used.dataset.source


def test_an_object_that_changes_in_the_run_stops_it(store, s3_store, uri):
    key = "mvtec/stripes/train/good/007.png"
    s3_store.faults = [("GET", key, lambda: s3_store.put(key, b"other"))]
    with pytest.raises(DataError, match="good/007.png changed after it was listed"):
        train(options(uri))
    client = mlflow.MlflowClient()
    assert all(run.info.status == "FAILED" for run in client.search_runs(["0"]))
    assert client.search_registered_models() == []
