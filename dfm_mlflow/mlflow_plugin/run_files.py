"""Files of runs as addresses, ``runs:/<run id>/<path>``, wherever a file's address may stand."""

import tempfile
from pathlib import Path

import mlflow
from mlflow import MlflowException

from dfm_mlflow.errors import DataError
from dfm_mlflow.storage import store

SCHEME = "runs:/"


def address_of(run_id: str, path: str) -> str:
    """Give the address of the file at `path` among the artifacts of the run `run_id`."""
    return f"{SCHEME}{run_id}/{path}"


def read_run_file(address: str) -> bytes:
    """Read an artifact of a run."""
    run_id, _, path = address.removeprefix(SCHEME).partition("/")
    if not (run_id and path):
        raise DataError(f"{address} names no file of a run: give runs:/<run id>/<file>.")
    try:
        with tempfile.TemporaryDirectory(prefix="dfm-run-") as folder:
            found = mlflow.artifacts.download_artifacts(
                run_id=run_id, artifact_path=path, dst_path=folder
            )
            return Path(found).read_bytes()
    except (MlflowException, OSError) as error:
        code = getattr(error, "error_code", None) or getattr(error, "strerror", None) or error
        raise DataError(
            f"The run {run_id} has no file {path} that can be read ({code}): check the run's id "
            "and MLFLOW_TRACKING_URI."
        ) from None


store.read_by(SCHEME, read_run_file)
