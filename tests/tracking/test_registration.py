import mlflow
import pytest

from dfm_mlflow.tracking.registration import register, tags_of

from ..detectors import fit

pytestmark = pytest.mark.integration  # whole jobs, one after the other


def test_a_version_says_what_it_is(registry):
    detector = registry.zoo.runs["good"].detector
    tags = tags_of(detector, {"image_auroc": 0.98765, "recall": 0.5, "n_train": 24.0, "x": 1.0})
    assert tags == {
        "dfm.image_auroc": "0.9877",
        "dfm.recall": "0.5",
        "dfm.n_train": "24",
        "dfm.fpr": "0.01",
        "dfm.backbone": "resnet18",
        "dfm.exportable": "true",
    }
    uri = registry.zoo.runs["good"].model_uri
    number = register(uri, registry.name, "It finds 6 of 6.", tags | {"dfm.parent_version": "3"})
    version = registry.version(number)
    assert version.description == "It finds 6 of 6."
    assert version.tags["dfm.parent_version"] == "3"
    assert version.tags["dfm.recall"] == "0.5"


def test_training_registers_with_the_verdict(store, mvtec_like):
    from dfm_mlflow.jobs.train import train

    from ..jobs.test_train import options

    result = train(options(mvtec_like, "stripes"))
    version = mlflow.MlflowClient().get_model_version("dfm-stripes", "1")
    assert version.description == result.verdict.text
    run = mlflow.get_run(result.run_id)
    assert run.data.tags["mlflow.note.content"] == result.verdict.text
    assert version.tags["dfm.recall"] == f"{result.metrics['recall']:.4g}"
    assert result.metrics["recall_at_fpr/0.1"] >= result.metrics["recall_at_fpr/0.01"]


def test_a_model_of_tiles_is_not_exportable():
    assert tags_of(fit(image_size="256", tile="128"), {})["dfm.exportable"] == "false"
