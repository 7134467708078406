"""Every private helper of MLflow that the flavor uses, in one place (MLflow 3.17 to 3.x)."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from mlflow.environment_variables import MLFLOW_LOCK_MODEL_DEPENDENCIES
from mlflow.models.utils import _save_example
from mlflow.pyfunc import scoring_server
from mlflow.pyfunc.scoring_server import _SERVER_MODEL_PATH
from mlflow.store.artifact.models_artifact_repo import REGISTERED_MODEL_META_FILE_NAME
from mlflow.store.artifact.utils.models import get_model_name_and_version
from mlflow.tracking.artifact_utils import _download_artifact_from_uri
from mlflow.utils.environment import (
    _CONDA_ENV_FILE_NAME,
    _CONSTRAINTS_FILE_NAME,
    _PYTHON_ENV_FILE_NAME,
    _REQUIREMENTS_FILE_NAME,
    _generate_mlflow_version_pinning,
    _mlflow_conda_env,
    _process_conda_env,
    _process_pip_requirements,
    _PythonEnv,
    _validate_env_arguments,
)
from mlflow.utils.model_utils import (
    _copy_extra_files,
    _validate_and_prepare_target_save_path,
)
from mlflow.utils.name_utils import _GENERATOR_NOUNS, _GENERATOR_PREDICATES
from mlflow.utils.requirements_utils import _get_pinned_requirement

CONDA_FILE, PYTHON_FILE = _CONDA_ENV_FILE_NAME, _PYTHON_ENV_FILE_NAME
REQUIREMENTS_FILE, CONSTRAINTS_FILE = _REQUIREMENTS_FILE_NAME, _CONSTRAINTS_FILE_NAME

# Of ``mlflow models predict``, and of the server that ``spark_udf`` may start.
_JSON_SCRIPTS = ("_mlflow_pyfunc_backend_predict.py", "stdin_server.py")

save_example = _save_example
download = _download_artifact_from_uri
conda_env_of: Callable[..., dict[str, Any]] = _mlflow_conda_env
process_conda_env: Callable[..., Any] = _process_conda_env
PythonEnv = _PythonEnv
validate_env_arguments: Callable[..., None] = _validate_env_arguments
copy_extra_files: Callable[..., dict[str, Any]] = _copy_extra_files
name_and_version: Callable[..., tuple[str, ...]] = get_model_name_and_version
prepare_target: Callable[..., None] = _validate_and_prepare_target_save_path
pinned = cache(_get_pinned_requirement)  # it reads what pip wrote about a package


def process_pip_requirements(
    own: list[str], requirements: Any, extra: Any
) -> tuple[dict[str, Any], list[str], list[str]]:
    """Give the conda environment, requirements and constraints of a model.

    MLflow holds each of them against what is installed, for which it looks through every file of
    every package (2.4 s); `own` names what is installed, all but MLflow, and needs none of that.
    """
    if requirements is None and extra is None and not MLFLOW_LOCK_MODEL_DEPENDENCIES.get():
        own = [_generate_mlflow_version_pinning(), *own]
        return conda_env_of(additional_pip_deps=list(own), install_mlflow=False), own, []
    found: tuple[dict[str, Any], list[str], list[str]]
    found = _process_pip_requirements(own, requirements, extra)
    return found


def is_random_name(name: str) -> bool:
    """Whether MLflow made up a run's name, because nobody gave one."""
    predicate, _, rest = name.partition("-")
    noun, _, number = rest.partition("-")
    known = predicate in _GENERATOR_PREDICATES and noun in _GENERATOR_NOUNS
    return known and number.isdecimal()


def in_scoring_server() -> bool:
    """Whether this process is one of MLflow's scoring server."""
    return _SERVER_MODEL_PATH in os.environ


def answers_in_json() -> bool:
    """Whether what a model predicts goes out as JSON: served, by ``mlflow models predict``, ..."""
    script = os.path.basename(getattr(sys.modules.get("__main__"), "__file__", None) or "")
    return in_scoring_server() or script in _JSON_SCRIPTS


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


def read_parquet_by(reader: Callable[[bytes], Any]) -> None:
    """Let the scoring server of this process read parquet bodies by another function."""
    scoring_server.parse_parquet_input = lambda parquet_input: reader(parquet_input.getvalue())


def on_shutdown(work: Callable[[], None]) -> None:
    """Do `work` when the scoring server of this process has answered its last request.

    MLflow builds its application right after the model is loaded, and offers no way to it: the next
    ``FastAPI`` that is built is given an end. Python's ``atexit`` never runs there, since uvicorn
    ends by the signal that it was sent.
    """
    import fastapi

    original = fastapi.FastAPI

    def build(*args: Any, **kwargs: Any) -> Any:
        fastapi.FastAPI = original  # type: ignore[misc]  # put back
        app = original(*args, **kwargs)
        inner = app.router.lifespan_context

        @asynccontextmanager
        async def lifespan(app: Any) -> AsyncIterator[Any]:
            async with inner(app) as state:
                yield state
            await asyncio.to_thread(work)

        app.router.lifespan_context = lifespan
        return app

    fastapi.FastAPI = build  # type: ignore[misc, assignment]  # for one call


def registered_as(root: Path) -> tuple[str, str]:
    """Name and version that MLflow noted when it downloaded a registered model to a folder.

    Both are empty where it did not.
    """
    try:
        meta = yaml.safe_load((root / REGISTERED_MODEL_META_FILE_NAME).read_text())
        return str(meta["model_name"]), str(meta["model_version"])
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        return "", ""
