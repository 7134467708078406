import mlflow
import pytest

from dfm_mlflow.errors import ConfigError
from dfm_mlflow.tracking.experiment import experiment_of
from dfm_mlflow.tracking.run import run_of


def name_of(experiment):
    return mlflow.get_experiment(experiment).name


@pytest.fixture
def untold(store, monkeypatch):
    """A store, and nobody who says which experiment is meant."""
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID", raising=False)
    monkeypatch.setattr("mlflow.tracking.fluent._active_experiment_id", None)
    return store


def test_a_run_goes_to_the_experiment_of_its_category(untold):
    with run_of("one", {"dfm.category": "stripes"}) as run:
        assert name_of(run.info.experiment_id) == "stripes"
    with run_of("two", {"dfm.category": "stripes"}, experiment="line 3") as run:
        assert name_of(run.info.experiment_id) == "line 3"
    with run_of("three", {}) as run:
        assert name_of(run.info.experiment_id) == "Default"
    assert experiment_of("auto", "stripes") == experiment_of("auto", "stripes")


def test_what_mlflow_was_told_comes_first(untold, monkeypatch):
    told = mlflow.create_experiment("told")
    for key, value in (("MLFLOW_EXPERIMENT_NAME", "told"), ("MLFLOW_EXPERIMENT_ID", told)):
        monkeypatch.setenv(key, value)
        with run_of("one", {"dfm.category": "stripes"}) as run:
            assert run.info.experiment_id == told
        monkeypatch.delenv(key)
    mlflow.set_experiment("chosen")
    with run_of("two", {"dfm.category": "stripes"}) as run:
        assert name_of(run.info.experiment_id) == "chosen"
    assert mlflow.get_experiment_by_name("stripes") is None  # not even made


def test_an_active_run_is_taken_over_and_contradicted_in_words(untold):
    with mlflow.start_run() as mine:
        with run_of("one", {"dfm.category": "stripes"}) as run:
            assert run.info.run_id == mine.info.run_id
        with run_of("one", {}, experiment="Default") as run:
            assert run.info.run_id == mine.info.run_id
        with (
            pytest.raises(ConfigError, match="a run of the experiment Default is active"),
            run_of("one", {}, experiment="line 3"),
        ):
            pass
    gone = mlflow.create_experiment("gone")
    mlflow.delete_experiment(gone)
    with pytest.raises(ConfigError, match="The experiment gone is deleted: restore it"):
        experiment_of("gone", None)
