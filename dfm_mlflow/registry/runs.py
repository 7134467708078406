"""A run by its id, its name or its model, and what it scored."""

import io
import tempfile

import mlflow
import pandas as pd
from mlflow import MlflowClient, MlflowException
from mlflow.entities import Run, ViewType
from mlflow.models import Model

from dfm_mlflow.errors import ConfigError, DataError
from dfm_mlflow.mlflow_plugin.model_uri import resolve
from dfm_mlflow.mlflow_plugin.run_files import address_of, read_run_file
from dfm_mlflow.scores.evaluation import counted

SCORES, TRAIN_SCORES = "scores.parquet", "train_scores.parquet"


def find_run(client: MlflowClient, asked: str) -> Run:
    """Look up a run by its id, the URI of a model that it made, or its name."""
    run_id = asked
    if asked.startswith("runs:/"):
        run_id = asked.removeprefix("runs:/").partition("/")[0]
    elif asked.startswith("models:/"):
        found = resolve(asked)
        run_id = (found.version and found.version.run_id) or Model.load(found.where).run_id or ""
        if not run_id:
            raise ConfigError(f"The model {asked} names no run that made it: give a run's id.")
    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise  # the server fails, and may well have the run
        if run_id != asked:
            raise ConfigError(
                f"The run {run_id} of {asked} is not in this tracking server: give another run, "
                "and check MLFLOW_TRACKING_URI."
            ) from None
    quote = '"' if "'" in asked else "'"
    experiments = [e.experiment_id for e in client.search_experiments(ViewType.ACTIVE_ONLY)]
    named = client.search_runs(
        experiments, f"attributes.run_name = {quote}{asked}{quote}", max_results=5
    )
    if len(named) == 1:
        return named[0]
    if named:
        listed = ", ".join(run.info.run_id for run in named)
        raise ConfigError(f"Several runs are called {asked}: give the id of one, such as {listed}.")
    raise ConfigError(
        f"No run has the id or the name {asked}: give one that the tracking server "
        f"{mlflow.get_tracking_uri()} holds, or a model URI such as models:/dfm-bottle@production."
    )


def read_scores(run: Run) -> pd.DataFrame:
    """Read what a `run` scored: its labelled test pictures that could be read."""
    name = f"The run {run.info.run_name} ({run.info.run_id})"
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = mlflow.artifacts.download_artifacts(
                run_id=run.info.run_id, artifact_path=SCORES, dst_path=folder
            )
            table = pd.read_parquet(path)
    except (MlflowException, OSError, ValueError):
        raise DataError(
            f"{name} has no {SCORES} that can be read: give a run of train or evaluate with test "
            "pictures."
        ) from None
    missing = {"path", "category", "label", "defective", "anomaly_score", "error"} - set(table)
    if missing:
        raise DataError(f"{SCORES} of {name} lacks {', '.join(sorted(missing))}: run it again.")
    table = counted(table)
    table = table[table["defective"].notna()]
    if table.empty:
        raise DataError(f"{name} has no labelled pictures: compare runs that have a test set.")
    return table.reset_index(drop=True)


def read_train_scores(run_id: str | None) -> pd.DataFrame | None:
    """Read what training pictures scored while they were held out; None where the run has none.

    `run_id` is that of the run that made a model, where it is known.
    """
    if run_id is None:
        return None
    try:
        data = read_run_file(address_of(run_id, TRAIN_SCORES))
        return pd.read_parquet(io.BytesIO(data))
    except (DataError, OSError, ValueError):
        return None
