"""Every private helper of MLflow that the flavor uses, in one place (MLflow 3.17 to 3.x)."""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor

from mlflow.models.utils import _save_example
from mlflow.pyfunc.scoring_server import _SERVER_MODEL_PATH
from mlflow.store.artifact.utils.models import get_model_name_and_version
from mlflow.tracking.artifact_utils import _download_artifact_from_uri
from mlflow.utils.environment import (
    _CONDA_ENV_FILE_NAME,
    _CONSTRAINTS_FILE_NAME,
    _PYTHON_ENV_FILE_NAME,
    _REQUIREMENTS_FILE_NAME,
    _mlflow_conda_env,
    _process_conda_env,
    _process_pip_requirements,
    _PythonEnv,
    _validate_env_arguments,
)
from mlflow.utils.model_utils import (
    _copy_extra_files,
    _get_flavor_configuration,
    _validate_and_prepare_target_save_path,
)
from mlflow.utils.requirements_utils import _get_pinned_requirement

CONDA_FILE, PYTHON_FILE = _CONDA_ENV_FILE_NAME, _PYTHON_ENV_FILE_NAME
REQUIREMENTS_FILE, CONSTRAINTS_FILE = _REQUIREMENTS_FILE_NAME, _CONSTRAINTS_FILE_NAME

save_example = _save_example
download = _download_artifact_from_uri
conda_env_of = _mlflow_conda_env
process_conda_env = _process_conda_env
process_pip_requirements = _process_pip_requirements
PythonEnv = _PythonEnv
validate_env_arguments = _validate_env_arguments
copy_extra_files = _copy_extra_files
flavor_configuration = _get_flavor_configuration
name_and_version = get_model_name_and_version
prepare_target = _validate_and_prepare_target_save_path
pinned = _get_pinned_requirement


def in_scoring_server() -> bool:
    """Whether this process is one of MLflow's scoring server."""
    return _SERVER_MODEL_PATH in os.environ


def widen_thread_pool(threads: int) -> None:
    """Give the running event loop, where there is one, a pool of so many threads.

    uvicorn imports the application, and MLflow with it the model, inside the loop; the server runs
    ``predict`` through ``asyncio.to_thread``, in this pool.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return
    loop.set_default_executor(ThreadPoolExecutor(threads, thread_name_prefix="scoring"))
