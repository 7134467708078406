"""A version in the registry that says what it is: verdict as description, figures as tags."""

from collections.abc import Mapping

import mlflow
from mlflow import MlflowClient

from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.export.graph import obstacle
from dfm_mlflow.mlflow_plugin import _compat

_METRICS = {"dfm.image_auroc": "image_auroc", "dfm.recall": "recall", "dfm.n_train": "n_train"}


def tags_of(detector: AnomalyDetector, metrics: Mapping[str, float]) -> dict[str, str]:
    """Give the tags of a version; those of figures that are not known are left out.

    Parameters
    ----------
    detector : AnomalyDetector
    metrics : mapping of str to float
        Of the run that made it.

    Returns
    -------
    dict of str to str
        ``dfm.image_auroc``, ``dfm.recall``, ``dfm.fpr``, ``dfm.n_train``, ``dfm.backbone``,
        ``dfm.exportable``.
    """
    return {tag: f"{metrics[name]:.4g}" for tag, name in _METRICS.items() if name in metrics} | {
        "dfm.fpr": f"{detector.options.fpr:g}",
        "dfm.backbone": detector.options.backbone,
        "dfm.exportable": "false" if obstacle(detector) else "true",
    }


def register(uri: str, name: str, description: str, tags: Mapping[str, str]) -> str:
    """Register a logged model as the next version, described.

    Parameters
    ----------
    uri : str
        Of the model.
    name : str
        Of the registered model.
    description : str
        What the model decides, in words.
    tags : mapping of str to str

    Returns
    -------
    str
        The version's number.
    """
    with _compat.without_messages():  # the job says it itself
        version = str(mlflow.register_model(uri, name, tags=dict(tags)).version)
    MlflowClient().update_model_version(name, version, description)
    return version
