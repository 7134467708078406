"""Every private helper of MLflow that the flavor uses, in one place (MLflow 3.17 to 3.x)."""

from mlflow.models.utils import _save_example
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
prepare_target = _validate_and_prepare_target_save_path
pinned = _get_pinned_requirement
