"""A model of format 1 fitted again under the rules of today, and both compared."""

import logging
from dataclasses import dataclass

import mlflow

from dfm_mlflow.artifact.record import FORMAT
from dfm_mlflow.config import UpgradeOptions
from dfm_mlflow.data.chosen import pictures_to_fit
from dfm_mlflow.errors import ConfigError
from dfm_mlflow.jobs.train import TrainResult, fit_and_register
from dfm_mlflow.mlflow_plugin.flavor import load_model
from dfm_mlflow.mlflow_plugin.model_uri import resolve
from dfm_mlflow.scores.before_after import compare_models
from dfm_mlflow.scores.evaluation import score_items
from dfm_mlflow.tracking.experiment import AUTO
from dfm_mlflow.tracking.run import as_given, data_name, log_parameters, run_of

UPGRADED_FROM = "dfm.upgraded_from"  # a tag of runs and of versions

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class UpgradeResult:
    """What an upgrade left behind."""

    trained: TrainResult  # the new model
    upgraded_from: str  # URI of the old one
    comparison: str  # both on the same test pictures, or their thresholds where there are none


def upgrade(options: UpgradeOptions, *, experiment: str = AUTO) -> UpgradeResult:
    """Fit a model of format 1 again from its run's data, and compare both.

    Network, layers and every other option are those of the old model; its own network is used, so
    that no weights are needed. The old version stays as it is.
    """
    found = resolve(options.model)
    old = load_model(found.uri)
    if old.rule == FORMAT:
        raise ConfigError(
            f"{options.model} follows the rules of format {FORMAT} already: nothing is to be done."
        )
    name = found.version.name if found.version else old.options.model_name
    registered = name if options.registered_model == "auto" else options.registered_model
    given = old.options.model_copy(
        update={
            "data": old.options.data if options.data == "auto" else options.data,
            "registered_model": registered or "none",
            "engine": "local",
            "device": old.extractor.device.type,
        }
    )
    catalog = pictures_to_fit(given)
    source = data_name(given.data, given.category)
    run_name = "-".join(filter(None, ("upgrade", given.category, given.backbone, source)))
    tags = {"dfm.job": "upgrade", "dfm.category": given.category, UPGRADED_FROM: found.uri}
    with run_of(run_name, tags, experiment) as run:
        mlflow.set_tag(UPGRADED_FROM, found.uri)  # in a run taken over, too
        log_parameters(run.info.run_id, as_given(options) | {"resolved_model": found.uri})
        before = score_items(old, catalog.test).table  # first: what fails leaves no version behind
        trained = fit_and_register(
            run.info.run_id, run_name, tags, given, catalog, old.extractor, old.weights
        )
        now = score_items(trained.detector, catalog.test).table
        subject = f"The model of format {FORMAT}"
        sentence, figures = compare_models(subject, old, trained.detector, before, now)
        _logger.info(sentence, extra={"dfm_result": True})
        mlflow.log_metrics(figures)
        mlflow.set_tag("dfm.upgrade", sentence)
        if registered and trained.registered_version:
            mlflow.MlflowClient().set_model_version_tag(
                registered, trained.registered_version, UPGRADED_FROM, found.uri
            )
    return UpgradeResult(trained, found.uri, sentence)
