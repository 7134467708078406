"""What ``mlflow run`` does with a project, and with the files that it leaves."""

import os
import re
import tempfile
from pathlib import Path

import mlflow
from mlflow.entities import Run, SourceType
from mlflow.utils.mlflow_tags import MLFLOW_SOURCE_NAME, MLFLOW_SOURCE_TYPE

from dfm_mlflow.errors import ConfigError
from dfm_mlflow.storage.store import SCHEME
from dfm_mlflow.tracking.outage import outages_as_errors


def refuse_lost_output(output: str) -> None:
    """Refuse a relative output in a temporary clone that nobody would find again.

    ``mlflow run <git address>`` works in such a clone; ``mlflow run .`` works in the project's own
    folder, where a relative output is as good as any.
    """
    local = not output.startswith(SCHEME) and not os.path.isabs(os.path.expanduser(output))
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if not local or not run_id:
        return
    with outages_as_errors():
        project = cloned_from(mlflow.get_run(run_id))
    if project:
        raise ConfigError(
            f"output={output} is relative, and this run of {project} works in a temporary clone, "
            f"{Path.cwd()}: give an absolute path or an s3:// address."
        )


def cloned_from(run: Run) -> str | None:
    """Give the address of the project that a run of ``mlflow run`` was cloned from."""
    tags = run.data.tags
    name = tags.get(MLFLOW_SOURCE_NAME, "")
    if tags.get(MLFLOW_SOURCE_TYPE) != SourceType.to_string(SourceType.PROJECT) or not name:
        return None
    # MLflow puts the working directory before file:// addresses, which are folders to it
    folder = re.sub(r"^.*?file:/+", "/", name.partition("#")[0])
    here, temporary = Path.cwd().resolve(), Path(tempfile.gettempdir()).resolve()
    cloned = here.is_relative_to(temporary) and not here.is_relative_to(Path(folder).resolve())
    return name if cloned else None
