import pickle
from dataclasses import replace

import pandas as pd
import pytest

import dfm_mlflow
from dfm_mlflow.errors import ArtifactError
from dfm_mlflow.mlflow_plugin.bundle import Bundle

from ..detectors import pictures


@pytest.fixture(scope="module")
def bundle(detector, tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle") / "model"
    dfm_mlflow.save_model(detector, path)
    return Bundle.of(str(path))


def test_a_bundle_scores_as_its_model_wherever_it_is_sent(bundle, detector):
    sent = pickle.loads(pickle.dumps(bundle))
    images = pictures(2, 5) + pictures(2, 6, defect=True)
    pd.testing.assert_frame_equal(sent.load().score(images), detector.score(images), rtol=1e-4)


def test_its_name_is_its_content(bundle):
    assert bundle == replace(bundle, files={})  # the hash holds those of the files
    assert "files" not in repr(bundle)  # which would be the whole model


@pytest.mark.parametrize(
    "name", ["detector.json", "statistics.safetensors", "backbone.safetensors"]
)
def test_bytes_that_changed_on_the_way_are_refused(bundle, name):
    data = bytearray(bundle.files[name])
    data[-1] ^= 1
    with pytest.raises(ArtifactError, match=name.replace(".", r"\.")):
        replace(bundle, files={**bundle.files, name: bytes(data)}).load()
    with pytest.raises(ArtifactError):
        replace(bundle, files={k: v for k, v in bundle.files.items() if k != name}).load()


def test_another_flavor_is_refused(tmp_path):
    (tmp_path / "MLmodel").write_text("flavors: {sklearn: {}}\n")
    with pytest.raises(ArtifactError):
        Bundle.of(str(tmp_path))
