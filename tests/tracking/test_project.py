"""A relative output of a project that was cloned would never be found again."""

import mlflow
import pytest
from mlflow.utils.mlflow_tags import MLFLOW_SOURCE_NAME, MLFLOW_SOURCE_TYPE

from dfm_mlflow.errors import ConfigError
from dfm_mlflow.tracking.project import cloned_from, refuse_lost_output


@pytest.fixture
def run_from(store, tmp_path, monkeypatch):
    """Make the run that ``mlflow run ADDRESS`` would open."""

    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path.parent))

    def opened(address, kind="PROJECT"):
        tags = {MLFLOW_SOURCE_NAME: address, MLFLOW_SOURCE_TYPE: kind}
        run = mlflow.MlflowClient().create_run("0", tags=tags)
        monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
        return mlflow.get_run(run.info.run_id)

    return opened


ADDRESSES = [
    "https://github.com/somebody/dfm-mlflow",
    "git@github.com:somebody/dfm-mlflow.git#sub",
    "https://example.com/dfm-mlflow.zip",
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_relative_output_of_a_clone_is_refused(run_from, tmp_path, address):
    assert cloned_from(run_from(address)) == address
    with pytest.raises(ConfigError, match="output=scores/ is relative, and this run of .* clone"):
        refuse_lost_output("scores/")
    for kept in (str(tmp_path / "scores/"), "s3://bucket/scores/", "~/scores/"):
        refuse_lost_output(kept)


def test_the_project_s_own_folder_is_as_good_as_any(run_from, tmp_path):
    for address in (
        str(tmp_path),
        f"file://{tmp_path}#sub",
        f"/somewhere/file:{tmp_path}",  # as MLflow notes a file:// address
        str(tmp_path.parent),
    ):
        assert cloned_from(run_from(address)) is None
        refuse_lost_output("scores/")
    run_from("https://github.com/somebody/notebook", kind="NOTEBOOK")
    refuse_lost_output("scores/")


def test_a_job_of_its_own_asks_no_server(monkeypatch):
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.setattr(mlflow, "get_run", lambda run_id: pytest.fail("it asked"))
    refuse_lost_output("scores/")
