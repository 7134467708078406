"""An MLmodel that somebody changed: one sentence, and nothing is loaded unchecked."""

import os
import shutil
from pathlib import Path

import pytest
import yaml

import dfm_mlflow
from dfm_mlflow.config.serving import ServingSettings
from dfm_mlflow.errors import ArtifactError
from dfm_mlflow.mlflow_plugin.bundle import Bundle
from dfm_mlflow.mlflow_plugin.flavor import load_data_folder
from dfm_mlflow.registry.describe import describe

FORMAT1 = Path(__file__).parents[1] / "fixtures/format1/one-class"
GONE = object()


@pytest.fixture
def model(tmp_path):
    return shutil.copytree(FORMAT1, tmp_path / "model")


def refused(model, words):
    for load in (
        lambda: dfm_mlflow.load_model(str(model), device="cpu"),
        lambda: Bundle.of(str(model)),
        lambda: load_data_folder(model / "dfm", ServingSettings()),
        lambda: describe(str(model)),
    ):
        with pytest.raises(ArtifactError, match=words) as caught:
            load()
        assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("sha256", v) for v in (GONE, None, "", "0" * 63, "G" * 64, "0" * 65, 7, ["0" * 64])),
        *(("data", v) for v in (GONE, None, "", ".", "..", "a/b", "/tmp", "a\0b", ["dfm"], 7)),
    ],
)
def test_a_section_that_lacks_what_the_flavor_writes(model, key, value):
    whole = yaml.safe_load((model / "MLmodel").read_text())
    section = whole["flavors"]["dfm"]
    section[key] = value
    if value is GONE:
        del section[key]
    (model / "MLmodel").write_text(yaml.safe_dump(whole))
    refused(model, rf"MLmodel is damaged \(dfm\.{key} is no")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "flavors is missing"),
        (b"- 1\n", "flavors is missing"),
        (b"flavors:\n", "flavors is missing or no table"),
        (b"flavors: [dfm]\n", "flavors is missing or no table"),
        (b"flavors: {dfm: }\n", "dfm is missing or no table"),
        (b"flavors: {sklearn: {}}\n", "has the flavors sklearn, not dfm"),
        (b"\xff\xfe{{", "is damaged"),
        (b"flavors: \x80\n", "no YAML"),
        (b"flavors: \0\n", "no YAML"),
        (b"{" * 5000, "no YAML"),
        (b"flavors: !!python/object/apply:os.system ['false']\n", "no YAML"),
    ],
)
def test_what_is_no_mlmodel(model, data, words):
    (model / "MLmodel").write_bytes(data)
    refused(model, words)


def test_a_file_that_is_missing_or_no_file(model):
    (model / "MLmodel").unlink()
    refused(model, "MLmodel cannot be read")
    os.mkfifo(model / "MLmodel")
    refused(model, "no regular file")


def test_more_than_yaml_may_cost_is_not_parsed(model):
    with open(model / "MLmodel", "ab") as file:
        file.write(b"#" * 2**20)
    refused(model, "more than the limit of 1048576")
