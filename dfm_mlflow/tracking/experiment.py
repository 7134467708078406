"""Which experiment a run of a job's own belongs to."""

import os

import mlflow
from mlflow import MlflowClient, MlflowException

from dfm_mlflow.errors import ConfigError

AUTO = "auto"
_SAID = ("MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME")  # mlflow.set_experiment sets the first


def experiment_of(asked: str, otherwise: str | None) -> str | None:
    """Find the experiment of a new run, or make it."""
    active = mlflow.active_run()
    given = active.info.run_id if active else os.environ.get("MLFLOW_RUN_ID")
    if given:
        if asked != AUTO:
            _check_same(asked, given)
        return None
    if asked == AUTO and (otherwise is None or any(os.environ.get(key) for key in _SAID)):
        return None
    name = otherwise if asked == AUTO else asked
    assert name is not None
    return _found_or_made(name)


def _found_or_made(name: str) -> str:
    client = MlflowClient()
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException as error:  # another job made it meanwhile
            found = client.get_experiment_by_name(name)
            if found is None:
                raise error
    if found.lifecycle_stage != "active":
        raise ConfigError(
            f"The experiment {name} is deleted: restore it, or give experiment=<another name>."
        )
    return str(found.experiment_id)


def _check_same(asked: str, run_id: str) -> None:
    client = MlflowClient()
    there = client.get_experiment(client.get_run(run_id).info.experiment_id).name
    if there != asked:
        raise ConfigError(
            f"experiment={asked} is requested while a run of the experiment {there} is active, "
            "which this job takes over: end it, or leave experiment out."
        )
