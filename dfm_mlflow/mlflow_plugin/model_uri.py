"""What a model's address means at this moment, decided once for a whole job."""

from dataclasses import dataclass

from mlflow import MlflowClient, MlflowException
from mlflow.entities.model_registry import ModelVersion

from dfm_mlflow.errors import ArtifactError
from dfm_mlflow.mlflow_plugin import _compat


@dataclass(frozen=True)
class ResolvedModel:
    """A model's address in which no alias is left, so that it means the same until a job ends."""

    uri: str  # ``models:/NAME/VERSION`` for a registered model, else the address that was asked for
    version: ModelVersion | None  # the registered version, where there is one
    where: str  # address of the model's files


def resolve(uri: str) -> ResolvedModel:
    """Look up the registered version that a model's address means now."""
    if not uri.startswith("models:/"):
        return ResolvedModel(uri, None, uri)
    client = MlflowClient()
    try:
        found = _compat.name_and_version(client, uri)
        if len(found) == 1:  # a logged model's id, to which no file's name can be added
            return ResolvedModel(uri, None, client.get_logged_model(found[0]).artifact_location)
        version = client.get_model_version(*found)
    except MlflowException as error:
        raise ArtifactError(
            f"{uri} names no model that is registered or logged ({error.error_code}): give "
            "models:/NAME@ALIAS or models:/NAME/VERSION."
        ) from None
    pinned = f"models:/{version.name}/{version.version}"
    return ResolvedModel(pinned, version, pinned)


def addresses_of(version: ModelVersion) -> set[str]:
    """Give every address that names a `version` for ever: its own, and that of its logged model."""
    logged = {f"models:/{version.model_id}"} if version.model_id else set()
    return {f"models:/{version.name}/{version.version}", str(version.source), *logged}
