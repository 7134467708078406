"""Updates of a small model: what joins, what leaves, and that the set alone decides."""

import json
import os
import re
import shutil
import signal

import mlflow
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import dfm_mlflow
from dfm_mlflow.cli import cli
from dfm_mlflow.config import Options, UpdateOptions
from dfm_mlflow.errors import PromotionError
from dfm_mlflow.jobs.learned_set import TRAINING
from dfm_mlflow.jobs.train import train
from dfm_mlflow.jobs.update import update
from dfm_mlflow.network.cache import FeatureCache
from dfm_mlflow.registry.aliases import rollback
from dfm_mlflow.storage.store import read_address

from ..campaigns.faults import _FORKS
from ..lines import digest, files_of
from ..zoo import SMALL

pytestmark = pytest.mark.integration  # whole jobs, one after the other


def test_verdicts_make_the_next_version(line):
    result = line.update(
        (line.new(0), "good"),
        (line.new(1), "good"),
        (line.new(5), "bad:hole"),
        (line.old(3), "bad:scratch"),
        (line.new(2), "unsure"),
    )
    assert line.versions() == [1, 2]
    version = line.client.get_model_version("dfm-stripes", "2")
    assert version.description == result.trained.verdict.text
    assert version.tags["dfm.parent_version"] == "1"
    assert {
        k.removeprefix("dfm.update."): v for k, v in version.tags.items() if ".update." in k
    } == {
        "good": "2",
        "bad": "2",
        "unsure": "1",
        "added": "2",
        "removed": "1",
        "by": "ann",
        "reason": "none",
    }
    rows = {row["sha256"]: row for row in line.listed(result)}
    assert rows[digest(line.new(0))]["split"] == "train"
    assert (rows[digest(line.old(3))]["split"], rows[digest(line.old(3))]["label"]) == (
        "test",
        "scratch",
    )
    assert digest(line.new(2)) not in rows
    assert len(rows) == 20 + 14 + 3
    run = mlflow.get_run(result.trained.run_id)
    assert run.data.metrics["n_train"] == 21
    assert run.data.tags["dfm.parent_version"] == "1"
    before, now = line.first.detector.options, result.trained.detector.options
    changed = {k for k, v in now.model_dump().items() if v != getattr(before, k)}
    assert changed <= {"data", "registered_model", "exclude"}
    assert now.data == f"runs:/{result.trained.run_id}/{TRAINING}"
    runs = mlflow.search_runs(
        search_all_experiments=True, filter_string="tags.`dfm.job` = 'update'"
    )
    assert list(runs["run_id"]) == [result.trained.run_id]


def test_the_set_alone_decides_to_the_last_bit(line, tmp_path):
    """From cached features: update, training on its list, and on the same pictures elsewhere."""
    result = line.update((line.new(0), "good"), (line.old(3), "bad"), (line.new(6), "bad:hole"))
    (tmp_path / "list.csv").write_bytes(read_address(f"runs:/{result.trained.run_id}/{TRAINING}"))
    again = train(
        Options.parse(
            result.trained.detector.options.model_dump()
            | {"data": str(tmp_path / "list.csv"), "registered_model": "none"}
        )
    )
    assert files_of(again.model_uri) == files_of(result.trained.model_uri)
    for row in line.listed(result):  # under other names, in another order, in one folder
        place = tmp_path / "flat/stripes" / row["split"] / row["label"]
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(row["path"], place / f"{row['sha256'][::-1]}.png")
    given = {**SMALL, "data": str(tmp_path / "flat")}
    fresh = train(Options.parse(given))
    assert files_of(fresh.model_uri) == files_of(result.trained.model_uri)


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("fp32", 1e-4), pytest.param("bf16", 0.02, marks=pytest.mark.slow)]
)
def test_with_features_computed_anew_it_is_so_to_the_golden_tolerances(
    line, tmp_path, monkeypatch, precision, tolerance
):
    given = {**SMALL, "precision": precision, "registered_model": "dfm-again"}
    train(Options.parse({**given, "data": str(line.data)}))
    taught = line.update(
        (line.new(0), "good"), (line.old(3), "bad"), model="models:/dfm-again/1"
    ).trained
    assert taught.detector.extractor.precision == precision
    (tmp_path / "list.csv").write_bytes(read_address(f"runs:/{taught.run_id}/{TRAINING}"))
    monkeypatch.setenv("DFM_CACHE_HOME", str(tmp_path / "cache"))
    put, kept = FeatureCache.put, set()
    monkeypatch.setattr(
        FeatureCache, "put", lambda cache, key, arrays: kept.add(key) or put(cache, key, arrays)
    )
    again = train(Options.parse({**given, "data": str(tmp_path / "list.csv")}))
    assert len(kept) >= 20 + 15  # every picture of the list, in other batches
    pictures = [line.new(i) for i in range(8)]
    ours, theirs = (t.detector.score(pictures) for t in (taught, again))
    for column in ("anomaly_score", "fre", "nll"):
        np.testing.assert_allclose(theirs[column], ours[column], rtol=tolerance)
    np.testing.assert_allclose(
        list(again.detector.thresholds().values()),
        list(taught.detector.thresholds().values()),
        rtol=tolerance,
    )


def test_the_network_sees_only_what_it_never_saw(line, monkeypatch):
    picture = np.random.default_rng().integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(picture).save(line.root / "unseen.png")
    put, kept = FeatureCache.put, []
    monkeypatch.setattr(
        FeatureCache, "put", lambda cache, key, arrays: kept.append(key) or put(cache, key, arrays)
    )
    result = line.update((line.root / "unseen.png", "bad:noise"))
    assert len(set(kept)) == 1
    assert result.trained.metrics["recall_before"] >= 6 / 7


def test_a_removed_picture_leaves_no_trace(line, tmp_path):
    """In, and out again: the model is what it was, and so is one that never saw the picture."""
    taught = line.update((line.new(0), "good"), (line.new(7), "bad:hole"))
    (line.root / "out.txt").write_text(f"{digest(line.new(0))}\nn7.png\n")
    back = line.update(model="models:/dfm-stripes/2", remove=str(line.root / "out.txt"))
    assert files_of(taught.trained.model_uri) != files_of(line.first.model_uri)
    assert files_of(back.trained.model_uri) == files_of(line.first.model_uri)
    assert {r["sha256"] for r in line.listed(back)}.isdisjoint(
        {digest(line.new(0)), digest(line.new(7))}
    )
    golden = read_address(f"runs:/{back.trained.run_id}/golden.parquet")
    assert line.new(0).read_bytes()[:64] not in golden
    assert digest(line.new(0))[:32] not in back.trained.detector.fitted
    assert line.client.get_model_version("dfm-stripes", "3").tags["dfm.parent_version"] == "2"


def test_promotion_in_one_step_and_the_gate_that_stops_it(line):
    verdicts = line.say((line.new(0), "good"), (line.new(5), "bad:hole"))
    command = ["update", "models:/dfm-stripes/1", "--verdicts", verdicts, "--promote", "production"]
    command.append("--json")
    done = CliRunner(catch_exceptions=False).invoke(cli, command)
    assert done.exit_code == 0, done.output
    where = json.loads(done.stdout)
    assert "production of dfm-stripes points to version 2" in " ".join(where["sentences"])
    assert where["promotion"]["outcome"] == "moved"
    run = mlflow.get_run(where["run_id"])  # of update and promotion
    assert run.data.tags["dfm.job"] == "update"
    verdicts = line.say((line.new(1), "good"))
    with pytest.raises(PromotionError, match=r"is not promoted to production\. Too few pictures"):
        line.update(
            (line.new(1), "good"), model="models:/dfm-stripes@production", promote="production"
        )
    assert line.versions() == [1, 2, 3]
    assert str(line.client.get_registered_model("dfm-stripes").aliases["production"]) == "2"
    last = line.client.get_model_version("dfm-stripes", "3")
    assert mlflow.get_run(last.run_id).info.status == "FINISHED"
    assert last.tags["dfm.parent_version"] == "2"


def test_its_gates_are_told_and_rollback_goes_back(line):
    promote = {"model": "models:/dfm-stripes@production", "promote": "production"}
    line.client.set_registered_model_alias("dfm-stripes", "production", "1")
    gates = {"min_images": "5", "margin": "1", "margin_recall": "1", "reason": "14 test pictures"}
    with pytest.raises(PromotionError, match="min_recall=1"):
        line.update((line.old(3), "bad"), **promote, **gates, min_recall="1", max_slowdown="99")
    result = line.update((line.new(0), "good"), **promote, **gates, max_slowdown="99")
    assert result.promoted.version == "3"
    params = mlflow.get_run(result.trained.run_id).data.params
    assert params["resolved_min_images"] == "5"
    alias = line.client.get_registered_model("dfm-stripes").aliases
    assert str(alias["production"]) == "3"
    version = line.client.get_model_version("dfm-stripes", "3")
    assert version.tags["dfm.promotion.production.reason"] == "14 test pictures"
    assert rollback("dfm-stripes", "production", "too many alarms").version == "1"
    again = line.update((line.new(1), "good"), model="models:/dfm-stripes@production")
    assert again.parent == "models:/dfm-stripes/1"  # and not of what was rolled back
    assert digest(line.new(0)) not in {row["sha256"] for row in line.listed(again)}
    assert line.client.get_model_version("dfm-stripes", "4").tags["dfm.parent_version"] == "1"


def _killed(root, uri, verdicts, statement):
    """Update, and die by SIGKILL when a statement is about to be executed."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    @event.listens_for(Engine, "before_cursor_execute")
    def look(connection, cursor, text, *rest):
        if statement in " ".join(text.split()):
            os.kill(os.getpid(), signal.SIGKILL)

    os.chdir(root)
    mlflow.set_tracking_uri(uri)
    options = {"model": "models:/dfm-stripes/1", "verdicts": verdicts, "promote": "production"}
    update(UpdateOptions.parse(options))


@pytest.mark.integration
@pytest.mark.parametrize(
    ("statement", "versions"),
    [
        ("INSERT INTO latest_metrics", [1]),  # the first results are logged
        ("INSERT INTO model_versions", [1]),
        ("INSERT INTO model_version_tags", [1]),  # the version itself is in the same transaction
        ("INSERT INTO registered_model_tags", [1, 2]),  # a promotion claims the alias
        ("INSERT INTO registered_model_aliases", [1, 2]),  # between the two, all tags are there
    ],
)
def test_a_kill_leaves_the_old_state_or_the_new(line, statement, versions):
    verdicts = line.say((line.new(0), "good"), (line.new(5), "bad:hole"))
    process = _FORKS.Process(
        target=_killed, args=(line.root, mlflow.get_tracking_uri(), verdicts, statement)
    )
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL
    assert line.versions() == versions
    assert line.client.get_registered_model("dfm-stripes").aliases == {}
    for number in versions[1:]:
        version = line.client.get_model_version("dfm-stripes", str(number))
        assert "The model finds " in version.description
        assert version.tags["dfm.parent_version"] == "1"
        assert version.tags["dfm.update.by"] == "ann"
        assert dfm_mlflow.load_model(f"models:/dfm-stripes/{number}").fitted
    assert not list(line.root.glob("*.tmp*"))


def test_from_python_and_as_an_entry_point(line):
    options = dfm_mlflow.UpdateOptions.parse(
        {
            "model": "models:/dfm-stripes/1",
            "verdicts": line.say((line.new(0), "good")),
            "registered_model": "none",
        }
    )
    result = dfm_mlflow.update(options)
    assert result.trained.registered_version is None
    assert line.versions() == [1]
    assert re.search(r"1 pictures join the training set", result.sentences[0])
