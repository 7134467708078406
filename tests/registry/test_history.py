import json

import pytest
from click.testing import CliRunner

from dfm_mlflow.cli import cli
from dfm_mlflow.errors import ArtifactError
from dfm_mlflow.registry.describe import as_text, describe
from dfm_mlflow.registry.history import better, history, record_of
from dfm_mlflow.tracking.registration import register

UPDATED = {
    "dfm.parent_version": "1",
    "dfm.update.good": "3",
    "dfm.update.bad": "1",
    "dfm.update.unsure": "0",
    "dfm.update.added": "2",
    "dfm.update.removed": "1",
    "dfm.update.by": "ann",
}


def test_versions_one_after_another(registry):
    registry.add("good")
    register(registry.zoo.runs["bad"].model_uri, registry.name, "It.", UPDATED)
    registry.point("production", 2)
    first, second = history(f"models:/{registry.name}@production")
    assert (first.version, first.parent, first.good, first.aliases) == ("1", None, None, [])
    assert first.recall == registry.zoo.runs["good"].metrics["recall"]
    assert first.false_alarms == registry.zoo.runs["good"].metrics["false_positive_rate"]
    assert (second.parent, second.good, second.bad, second.who) == ("1", 3, 1, "ann")
    assert second.n_train == 20
    assert second.aliases == ["production"]
    assert "which may differ from one to the next" in better([first, second])
    found = describe(f"models:/{registry.name}/2")
    assert (found["updated_from"], found["update"]["by"]) == ("1", "ann")
    assert "updated from         version 1" in as_text(found)
    command = ["describe", registry.name, "--history"]
    said = CliRunner(catch_exceptions=False).invoke(cli, command).output.splitlines()
    assert said[0].split()[:3] == ["version", "aliases", "from"]
    assert said[2].split()[:4] == ["2", "production", "1", "20"]
    said = CliRunner(catch_exceptions=False).invoke(cli, [*command, "--json"]).output
    assert [row["version"] for row in json.loads(said)] == ["1", "2"]


def test_a_run_that_is_gone_leaves_what_the_version_says(registry):
    record = record_of("4", "now", [], {}, {"dfm.recall": "0.75", "dfm.n_train": "31"})
    assert (record.recall, record.n_train, record.threshold) == (0.75, 31, None)
    metrics = {"recall": 0.9, "recall_before": 0.7, "false_positive_rate": 0.1}
    metrics |= {"false_positive_rate_before": 0.1}
    said = better([record_of("5", "now", [], metrics, {})])
    assert said.startswith(
        "On the test pictures of version 5: recall 0.900 (before, 0.700) and false alarms 0.100 as "
        "before."
    )


def test_what_has_no_history_gets_one_sentence(registry):
    with pytest.raises(ArtifactError, match="cannot be read"):
        history("dfm-nowhere")
    registry.client.create_registered_model(registry.name)
    with pytest.raises(ArtifactError, match="has no versions"):
        history(registry.name)
