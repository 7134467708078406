import shutil

import mlflow
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import dfm_mlflow
from dfm_mlflow.cli import cli
from dfm_mlflow.config import UpgradeOptions
from dfm_mlflow.errors import ConfigError, DataError
from dfm_mlflow.jobs.upgrade import upgrade

from ..conftest import write_category
from ..test_formats import FORMAT1

pytestmark = pytest.mark.integration  # whole jobs, one after the other


@pytest.fixture
def old(store, tmp_path):
    """A registered model of format 1, and labelled pictures of its category."""
    folder = shutil.copytree(FORMAT1 / "one-class", tmp_path / "old")
    client = mlflow.MlflowClient()
    client.create_registered_model("dfm-dark")
    client.create_model_version("dfm-dark", str(folder))
    return write_category(tmp_path / "data", "dark")


def ask(**given):
    return upgrade(UpgradeOptions.parse({"model": "models:/dfm-dark/1", **given}))


def test_a_model_of_format_1_is_fitted_anew_and_both_are_compared(old):
    before = dfm_mlflow.load_model("models:/dfm-dark/1")
    assert before.rule == 1
    result = ask(data=str(old))
    assert result.trained.registered_uri == "models:/dfm-dark/2"
    after = dfm_mlflow.load_model("models:/dfm-dark/2")
    assert after.rule == 2
    changed = {
        name
        for name, value in after.options.model_dump().items()
        if value != getattr(before.options, name)
    }
    assert changed <= {"data", "registered_model", "device", "cache"}
    assert after.weights == before.weights
    image = Image.fromarray(np.full((64, 64, 3), 99, np.uint8))
    maps = [d.extractor.extract([np.asarray(image)]).features for d in (before, after)]
    for a, b in zip(*maps, strict=True):
        np.testing.assert_array_equal(a, b)  # the network of the old model
    version = mlflow.MlflowClient().get_model_version("dfm-dark", "2")
    assert version.tags["dfm.upgraded_from"] == "models:/dfm-dark/1"
    run = mlflow.get_run(result.trained.run_id)
    assert run.data.tags["dfm.upgrade"] == result.comparison
    assert "of 6 defective pictures (before, " in result.comparison
    assert "AUROC " in result.comparison
    assert run.data.metrics["n_flagged_good"] == round(run.data.metrics["false_positive_rate"] * 8)
    with pytest.raises(ConfigError, match="follows the rules of format 2 already"):
        ask(model="models:/dfm-dark/2", data=str(old))


def test_without_test_pictures_the_thresholds_are_compared(old):
    flat = old / "dark/train/good"
    command = ["upgrade", "models:/dfm-dark/1", "--data", str(flat), "--registered-model", "none"]
    done = CliRunner(catch_exceptions=False).invoke(cli, command)
    assert done.exit_code == 0, done.output
    assert "thresholds alone can be compared: dark " in done.output


def test_data_that_are_gone_leave_everything_as_it_was(old, tmp_path):
    with pytest.raises(DataError):
        ask(data=str(tmp_path / "nowhere"))
    assert len(mlflow.MlflowClient().search_model_versions("name='dfm-dark'")) == 1
