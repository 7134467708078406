import mlflow
import pytest

from dfm_mlflow.data.listed import read_list
from dfm_mlflow.errors import DataError
from dfm_mlflow.mlflow_plugin.run_files import address_of, read_run_file
from dfm_mlflow.storage.store import read_address


def test_a_file_of_a_run_is_an_address_like_any_other(logged):
    run_id = logged
    address = address_of(run_id, "lists/out.csv")
    assert read_address(address) == b"path\na.png\n"
    (line,) = read_list(address, "exclude")
    assert line.path == "a.png"
    for wrong, words in (
        ("runs:/", "names no file of a run"),
        (f"runs:/{run_id}/nothing.csv", "has no file nothing.csv"),
        ("runs:/gone/a.csv", "The run gone has no file a.csv"),
    ):
        with pytest.raises(DataError, match=words):
            read_run_file(wrong)


@pytest.fixture
def logged(store):
    with mlflow.start_run() as run:
        mlflow.log_text("path\na.png\n", "lists/out.csv")
    return run.info.run_id
