import json

import mlflow
import pytest

from dfm_mlflow.errors import ArtifactError
from dfm_mlflow.registry.describe import as_text, describe

from .test_aliases import PREFIX, move


def test_describe_tells_the_lineage_of_a_version(registry):
    registry.add("good", "twin")
    move(registry, "production", None, 1)
    move(registry, "production", 1, 2)
    registry.client.set_model_version_tag(registry.name, "2", PREFIX + "figures", '{"growth": 1.0}')
    found = describe(f"models:/{registry.name}@production")
    assert describe(f"models:/{registry.name}/2") | {"uri": found["uri"]} == found
    twin = registry.zoo.runs["twin"]
    assert (found["name"], found["version"], found["aliases"], found["stage"]) == (
        registry.name,
        "2",
        ["production"],
        "Production",
    )
    run = mlflow.get_run(twin.run_id)
    assert found["run"] == {"id": twin.run_id, "name": run.info.run_name}
    assert found["experiment"] == {"id": "0", "name": "Default"}
    assert found["dataset"] == {
        "name": "stripes",
        "digest": run.inputs.dataset_inputs[0].dataset.digest,
    }
    assert found["weights"]["id"] == "random:1"
    assert found["git_commit"] == run.data.tags.get("dfm.git_commit")
    assert found["dfm"]["layers"] == ["layer2", "layer3"]
    assert (found["dfm"]["backbone"], found["dfm"]["classes"]) == ("resnet18", ["stripes"])
    assert found["calibration"].startswith("The threshold ")
    assert found["metrics"]["image_auroc"] == twin.metrics["image_auroc"]
    assert found["promotion"]["production"]["figures"] == {"growth": 1.0}
    assert found["previous"] == {"production": "1"}
    assert json.loads(json.dumps(found)) == found
    assert found["export"].startswith(("to ONNX", "not as it is: it was calibrated in"))
    text = as_text(found)
    for words in (
        "exports ",
        f"{registry.name} 2",
        f"{run.info.run_name} (",
        "random:1",
        "layer2, layer3",
        "promotion, production",
        "image_auroc ",
    ):
        assert words in text


def test_describe_says_of_runs_and_folders_what_they_know(registry, tmp_path):
    good = registry.zoo.runs["good"]
    logged = describe(good.model_uri)
    of_run = describe(f"runs:/{good.run_id}/model")
    folder = mlflow.artifacts.download_artifacts(good.model_uri, dst_path=str(tmp_path / "copy"))
    local = describe(folder)
    assert logged | {"uri": ""} == of_run | {"uri": ""} == local | {"uri": ""}
    assert (local["name"], local["aliases"], local["promotion"]) == (None, [], {})
    assert local["run"]["id"] == good.run_id
    assert local["weights"]["id"] == "random:42"
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'elsewhere.db'}")
    alone = describe(folder)
    assert (alone["run"], alone["metrics"]) == ({"id": good.run_id, "name": None}, {})
    assert alone["calibration"] == good.sentences[0]
    assert folder in as_text(alone)


def test_describe_refuses_what_is_no_model_of_ours(registry, tmp_path):
    with pytest.raises(ArtifactError, match="names no model that is registered"):
        describe(f"models:/{registry.name}@production")
    with pytest.raises(ArtifactError, match="names no model that is registered or logged"):
        describe("models:/m-0123456789abcdef0123456789abcdef")
    with pytest.raises(ArtifactError, match="MLmodel cannot be read .*whole model"):
        describe(str(tmp_path))
    (tmp_path / "MLmodel").write_text("flavors: {sklearn: {}}\n")
    with pytest.raises(ArtifactError, match="flavors sklearn, not dfm"):
        describe(str(tmp_path))
