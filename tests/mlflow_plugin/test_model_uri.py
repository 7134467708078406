import mlflow
import pytest

from dfm_mlflow.errors import ArtifactError
from dfm_mlflow.mlflow_plugin.model_uri import addresses_of, resolve


def test_an_alias_becomes_the_version_that_it_means(registry):
    registry.add("good", "twin")
    registry.point("production", 1)
    found = resolve(f"models:/{registry.name}@production")
    registry.point("production", 2)
    assert found.uri == found.where == f"models:/{registry.name}/1"
    assert found.version.version in (1, "1")
    assert resolve(f"models:/{registry.name}/2").uri == f"models:/{registry.name}/2"


def test_what_is_no_version_stays_as_it_is(registry, tmp_path):
    made = registry.zoo.runs["good"]
    assert resolve(str(tmp_path)).where == str(tmp_path)
    assert resolve(f"runs:/{made.run_id}/model").version is None
    logged = resolve(made.model_uri)
    assert logged.uri == made.model_uri
    assert mlflow.models.Model.load(logged.where).model_id == made.model_uri.rpartition("/")[2]


@pytest.mark.parametrize("address", ["models:/dfm-none@x", "models:/dfm-none/1", "models:/m-1"])
def test_an_address_of_nothing_is_one_sentence(registry, address):
    with pytest.raises(ArtifactError, match="names no model that is registered or logged"):
        resolve(address)


def test_a_version_has_the_address_of_its_logged_model(registry):
    registry.add("good")
    found = addresses_of(registry.version(1))
    assert {f"models:/{registry.name}/1", registry.zoo.runs["good"].model_uri} <= found
