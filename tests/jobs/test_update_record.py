"""What an update says of itself."""

import mlflow
import pandas as pd
import pytest

from dfm_mlflow.storage.store import read_address

from ..lines import digest

pytestmark = pytest.mark.integration  # whole jobs, one after the other


def test_what_each_verdict_changed_is_a_table_and_a_page(line):
    result = line.update((line.new(0), "good"), (line.new(5), "bad:hole"), (line.old(3), "bad"))
    table = result.changes.set_index("sha256")
    bad = table.loc[digest(line.new(5))]
    assert (bad["was"], bad["is"], bad["who"]) == ("new", "test: hole", "ann")
    assert bad["is_anomaly_before"]
    assert bad["held_out_before"]
    old = line.first.detector.score([line.new(0)]).iloc[0]
    good = table.loc[digest(line.new(0))]
    assert good["anomaly_score_before"] == pytest.approx(old["anomaly_score"], rel=1e-6)
    inside = table.loc[digest(line.old(3))]  # it was fitted: what it scored while held out counts
    scores = pd.read_parquet(
        mlflow.artifacts.download_artifacts(
            run_id=line.first.run_id, artifact_path="train_scores.parquet"
        )
    ).set_index("sha256")
    assert inside["held_out_before"]
    held_out = scores.loc[digest(line.old(3))]
    assert inside["anomaly_score_before"] == held_out["held_out_score"]
    assert inside["p_value_before"] == held_out["p_value"]
    run_id = result.trained.run_id
    page = read_address(f"runs:/{run_id}/report/history.html").decode()
    assert "does quality improve?" in page
    assert page.count("<tr><td>") == 2
    changes = read_address(f"runs:/{run_id}/changes.csv").decode()
    assert len(changes.splitlines()) == 4
    assert "ann" in read_address(f"runs:/{run_id}/verdicts.csv").decode()
    metrics = mlflow.get_run(run_id).data.metrics
    assert {"recall_before", "recall", "false_positive_rate_before", "n_verdicts_bad"} <= set(
        metrics
    )
    assert "of 2 pictures that were called bad, " in " ".join(result.sentences)


def test_a_set_that_grows_by_its_hardest_pictures_is_warned_of(line, caplog):
    typical = [line.new(i) for i in range(5)]
    result = line.update(*((path, "good") for path in typical))
    assert "too high a threshold" not in " ".join([*result.sentences, caplog.text])
    flagged = [*line.data.glob("stripes/test/[!g]*/*"), *(line.new(i) for i in (5, 6, 7))]
    result = line.update(*((path, "good") for path in flagged))  # as if they were false alarms
    assert "too high a threshold" in result.sentences[-1]
    assert result.sentences[-1] in caplog.messages
