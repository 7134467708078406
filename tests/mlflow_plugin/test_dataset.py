import json
import subprocess
import sys

import mlflow
import numpy as np
import pytest
from mlflow.models import list_evaluators
from PIL import Image

from dfm_mlflow.data.catalog import load_catalog
from dfm_mlflow.errors import DataError
from dfm_mlflow.mlflow_plugin.dataset import ImageFolderDataset
from dfm_mlflow.tracking.run import log_dataset

from ..conftest import write_category

pytestmark = pytest.mark.integration  # processes of their own


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return write_category(tmp_path_factory.mktemp("one"), "stripes", n_train=4)


# -- what MLflow loads by itself -------------------------------------------------------------------

_SCRIPT = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import {first}
    import mlflow.data, mlflow.models
    known = mlflow.models.list_evaluators()
import json, sys
print(json.dumps({{
    "warnings": sorted({{str(w.message) for w in caught}}),
    "heavy": [m for m in ("torch", "boto3", "dfm_mlflow.detector") if m in sys.modules],
    "known": "dfm" in known and hasattr(mlflow.data, "from_image_folder"),
}}))
"""


def in_a_fresh_interpreter(first):
    # -I: nothing but what is installed
    done = subprocess.run(
        [sys.executable, "-I", "-c", _SCRIPT.format(first=first)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "first",
    [
        "mlflow",
        "dfm_mlflow.mlflow_plugin.dataset",
        "dfm_mlflow.jobs.evaluator",
    ],
)
def test_mlflow_loads_the_plugin_without_torch_and_without_a_warning(first):
    found = in_a_fresh_interpreter(first)
    assert found["known"]
    assert found["heavy"] == []
    # MLflow warns of a class of its own, with or without a plugin
    assert [w for w in found["warnings"] if "Any type hint is inferred" not in w] == []


def test_the_plugin_is_registered():
    assert "dfm" in list_evaluators()
    assert mlflow.data.from_image_folder.__module__ == "dfm_mlflow.mlflow_plugin.dataset"


# -- what a dataset knows --------------------------------------------------------------------------


def test_the_digest_is_that_of_a_run_and_follows_the_content(one):
    dataset = mlflow.data.from_image_folder(one)
    assert isinstance(dataset, ImageFolderDataset)
    assert dataset.name == "stripes"
    assert dataset.digest == load_catalog(str(one), ("stripes",)).digest
    path = one / "stripes/test/hole/003.png"
    before = path.read_bytes()
    path.write_bytes((one / "stripes/test/hole/004.png").read_bytes())
    try:
        assert mlflow.data.from_image_folder(one).digest != dataset.digest
    finally:
        path.write_bytes(before)
    assert mlflow.data.from_image_folder(one).digest == dataset.digest
    named = mlflow.data.from_image_folder(one, name="line 4", digest="abc")
    assert (named.name, named.digest) == ("line 4", "abc")


def test_the_profile_counts_and_measures(one, tmp_path):
    profile = mlflow.data.from_image_folder(one).profile
    assert profile == {
        "num_rows": 18,
        "images": {"stripes/test/good": 8, "stripes/test/hole": 6, "stripes/train/good": 4},
        "masks": 5,
        "sizes": {"64x64": 18},
        "unreadable": 0,
    }
    flat = tmp_path / "caps"
    flat.mkdir()
    for width in range(20, 32):
        Image.fromarray(np.zeros((10, width), np.uint8)).save(flat / f"{width}.png")
    (flat / "broken.png").write_bytes(b"noise")
    turned = Image.fromarray(np.zeros((90, 40), np.uint8))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(flat / "turned.jpg", exif=exif)
    dataset = mlflow.data.from_image_folder(flat)
    assert not dataset.labelled
    assert dataset.profile["images"] == {"caps/train/good": 14}
    assert dataset.profile["sizes"] == {"different": 13, "smallest": "20x10", "largest": "90x40"}
    assert dataset.profile["unreadable"] == 1


def test_a_run_stores_it_and_gives_the_source_back(store, one):
    dataset = mlflow.data.from_image_folder(one)
    with mlflow.start_run() as run:
        mlflow.log_input(dataset, context="training")
    (used,) = mlflow.get_run(run.info.run_id).inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("stripes", dataset.digest)
    assert json.loads(used.dataset.profile) == dataset.profile
    columns = json.loads(used.dataset.schema)["mlflow_colspec"]
    assert [(c["name"], c["type"]) for c in columns] == [
        ("image", "binary"),
        ("category", "string"),
        ("split", "string"),
        ("label", "string"),
        ("mask", "binary"),
    ]
    folder = mlflow.data.get_source(used).load()
    assert mlflow.data.from_image_folder(folder).digest == dataset.digest


def test_jobs_log_the_same_dataset(store, one, monkeypatch):
    monkeypatch.chdir(one)
    with mlflow.start_run() as run:
        logged = log_dataset(load_catalog(".", ("stripes",)), "training")
    (used,) = mlflow.get_run(run.info.run_id).inputs.dataset_inputs
    assert logged.digest == used.dataset.digest == mlflow.data.from_image_folder(one).digest
    assert json.loads(used.dataset.source) == {"uri": str(one)}  # not "."


def test_pictures_in_s3_have_the_digest_of_those_on_disk(s3_store, one):
    uri = s3_store.upload(one / "stripes", "mvtec/stripes")
    for address in (uri, uri.rpartition("/")[0]):
        remote = mlflow.data.from_image_folder(address)
        local = mlflow.data.from_image_folder(one)
        assert (remote.digest, remote.profile) == (local.digest, local.profile)
        assert remote._get_source_type() == "s3"
        assert uri.startswith(remote.source.uri)


def test_the_solar_cells_have_a_source_that_loads(store):
    pytest.importorskip("elpv_dataset")
    source = mlflow.data.from_image_folder("elpv", "mono").source
    assert source.load().endswith("images")


# -- which category --------------------------------------------------------------------------------


def test_a_category_is_found_where_there_is_one(one, mvtec_like):
    for folder in (one, one / "stripes"):
        assert mlflow.data.from_image_folder(folder).name == "stripes"
    assert mlflow.data.from_image_folder(mvtec_like, "bands").name == "bands"
    for both in ("bands,stripes", ["bands", "stripes"]):
        assert mlflow.data.from_image_folder(mvtec_like, both).name == "bands,stripes"


def test_what_cannot_be_chosen_is_refused(mvtec_like, tmp_path):
    with pytest.raises(DataError, match="holds the categories bands, stripes: give category="):
        mlflow.data.from_image_folder(mvtec_like)
    with pytest.raises(DataError, match="data=elpv does not say which category is meant: give"):
        mlflow.data.from_image_folder("elpv")
    with pytest.raises(DataError, match="nowhere does not exist"):
        mlflow.data.from_image_folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no pictures .*: it holds nothing"):
        mlflow.data.from_image_folder(tmp_path)
