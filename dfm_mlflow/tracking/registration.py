"""A version in the registry that says what it is: verdict as description, figures as tags."""

import json
from collections.abc import Mapping

from mlflow import MlflowClient, MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.export.graph import obstacle
from dfm_mlflow.mlflow_plugin import _compat

_METRICS = {"dfm.image_auroc": "image_auroc", "dfm.recall": "recall", "dfm.n_train": "n_train"}


def tags_of(detector: AnomalyDetector, metrics: Mapping[str, float]) -> dict[str, str]:
    """Give the tags of a version; those of figures that are not known are left out."""
    return {tag: f"{metrics[name]:.4g}" for tag, name in _METRICS.items() if name in metrics} | {
        "dfm.fpr": f"{detector.options.fpr:g}",
        "dfm.backbone": detector.options.backbone,
        "dfm.exportable": "false" if obstacle(detector) else "true",
    }


def register(uri: str, name: str, description: str, tags: Mapping[str, str]) -> str:
    """Register a logged model as the next version, described: all of it at once, or nothing."""
    client = MlflowClient()
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    found = _compat.name_and_version(client, uri)
    model_id = found[0] if len(found) == 1 else None
    # In one request, and so in one transaction: a version is never without what it says of itself.
    version = client.create_model_version(
        name, uri, tags=dict(tags), description=description, model_id=model_id
    )
    number = str(version.version)
    if model_id:  # as mlflow.register_model does: the model's page names its versions
        known = json.loads(client.get_logged_model(model_id).tags.get(MLFLOW_MODEL_VERSIONS, "[]"))
        known.append({"name": name, "version": number})
        client.set_logged_model_tags(model_id, {MLFLOW_MODEL_VERSIONS: json.dumps(known)})
    return number
