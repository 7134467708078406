"""Updates of a small model: what joins, what leaves, and that the set alone decides."""

import csv
import hashlib
import json
import os
import re
import shutil
import signal
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

import dfm_mlflow
from dfm_mlflow.cli import cli
from dfm_mlflow.config import Options, RecalibrateOptions, UpdateOptions
from dfm_mlflow.errors import ConfigError, DataError, PromotionError
from dfm_mlflow.jobs.learned_set import TRAINING
from dfm_mlflow.jobs.recalibrate import recalibrate
from dfm_mlflow.jobs.train import train
from dfm_mlflow.jobs.update import update
from dfm_mlflow.storage.store import read_address

from ..campaigns.faults import _FORKS
from ..conftest import texture, write_category
from ..zoo import SMALL


def digest(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


class Line:
    """A registered model with its data, and new pictures of which the last three are defective."""

    def __init__(self, root):
        self.root, self.data, self.client = root, root / "data", mlflow.MlflowClient()
        write_category(self.data, "stripes", n_train=20)
        rng = np.random.default_rng(7)
        (root / "new").mkdir()
        for i in range(8):
            picture = Image.fromarray(texture(rng, defect=i > 4))
            picture.save(root / f"new/n{i}.png")
        self.first = train(
            Options.parse({**SMALL, "data": str(self.data), "registered_model": "auto"})
        )

    def new(self, i):
        return self.root / f"new/n{i}.png"

    def old(self, i, split="train/good"):
        return self.data / f"stripes/{split}/{i:03d}.png"

    def say(self, *said, name="v.csv", columns=("who",), more=("ann",)):
        """Write verdicts: pairs of a path or digest and a verdict, its defect after a colon."""
        with open(self.root / name, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["sha256", "verdict", "path", "defect", *columns])
            for what, verdict in said:
                verdict, _, defect = verdict.partition(":")
                known = isinstance(what, str)
                sha = what if known else digest(what)
                writer.writerow([sha, verdict, "" if known else what, defect, *more])
        return str(self.root / name)

    def update(self, *said, model="models:/dfm-stripes/1", **given):
        if said:
            given["verdicts"] = self.say(*said)
        return update(UpdateOptions.parse({"model": model, **given}))

    def versions(self):
        return sorted(
            int(v.version) for v in self.client.search_model_versions("name='dfm-stripes'")
        )

    def listed(self, result):
        text = read_address(f"runs:/{result.trained.run_id}/{TRAINING}").decode()
        return list(csv.DictReader(text.splitlines()))


@pytest.fixture(scope="module")
def made(tmp_path_factory, empty_store):
    """The line, made once; each test gets a copy of its store."""
    root = tmp_path_factory.mktemp("line")
    previous, here = mlflow.get_tracking_uri(), os.getcwd()
    shutil.copy(empty_store, root / "mlflow.db")
    os.chdir(root)
    mlflow.set_tracking_uri(f"sqlite:///{root / 'mlflow.db'}")
    line = Line(root)
    os.chdir(here)
    mlflow.set_tracking_uri(previous)
    shutil.copy(root / "mlflow.db", root / "made.db")
    shutil.copytree(root / "data", root / "made-data")
    return line


@pytest.fixture
def line(made, monkeypatch):
    shutil.copy(made.root / "made.db", made.root / "mlflow.db")
    shutil.rmtree(made.data, ignore_errors=True)
    shutil.copytree(made.root / "made-data", made.data)
    monkeypatch.chdir(made.root)
    uri = f"sqlite:///{made.root / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    previous = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    made.client = mlflow.MlflowClient()
    yield made
    while mlflow.active_run():
        mlflow.end_run()
    mlflow.set_tracking_uri(previous)


def files_of(uri):
    root = Path(mlflow.artifacts.download_artifacts(uri))
    record = json.loads((root / "dfm/detector.json").read_text())
    for name in ("data", "registered_model", "group_by", "exclude", "cache"):
        record["options"].pop(name)
    return (
        record,
        digest(root / "dfm/statistics.safetensors"),
        digest(root / "dfm/backbone.safetensors"),
    )


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
    assert "does the line get better?" in page
    assert page.count("<tr><td>") == 2
    changes = read_address(f"runs:/{run_id}/changes.csv").decode()
    assert len(changes.splitlines()) == 4
    assert "ann" in read_address(f"runs:/{run_id}/verdicts.csv").decode()
    metrics = mlflow.get_run(run_id).data.metrics
    assert {"recall_before", "recall", "false_positive_rate_before", "n_verdicts_bad"} <= set(
        metrics
    )
    assert "of 2 pictures that were called bad, " in " ".join(result.sentences)


def test_the_set_alone_decides_to_the_last_bit(line, tmp_path, monkeypatch):
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
    monkeypatch.setenv("DFM_CACHE_HOME", str(tmp_path / "cache"))  # features computed anew
    anew = train(Options.parse(given)).detector
    ours = result.trained.detector
    pictures = [line.new(i) for i in range(8)]
    np.testing.assert_allclose(
        anew.score(pictures)["anomaly_score"], ours.score(pictures)["anomaly_score"], rtol=1e-4
    )


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


def test_pictures_that_moved_are_found_and_those_that_are_gone_are_named(line, caplog):
    (line.root / "elsewhere").mkdir(exist_ok=True)
    shutil.move(line.old(0), line.root / "elsewhere/x.png")
    with pytest.raises(DataError, match=r"1 of 34 pictures .*000\.png: give add=<folder>"):
        line.update((line.new(0), "good"))
    assert line.versions() == [1]
    shutil.copy(line.new(0), line.root / "elsewhere/y.png")
    result = line.update((digest(line.new(0)), "good"), add=str(line.root / "elsewhere"))
    paths = {row["path"] for row in line.listed(result)}
    assert {str(line.root / "elsewhere/x.png"), str(line.root / "elsewhere/y.png")} <= paths
    assert "1 pictures moved and were found again" in caplog.text
    (line.root / "out.txt").write_text("x.png\n")
    (line.root / "elsewhere/x.png").unlink()  # what is to leave need not be there
    gone = line.update(model="models:/dfm-stripes/2", remove=str(line.root / "out.txt"))
    assert gone.trained.metrics["n_train"] == 20


def test_copies_of_all_pictures_are_kept_and_the_next_update_lives_on_them(line):
    kept = line.root / "kept"
    first = line.update((line.new(0), "good"), copy_to=str(kept))
    shutil.rmtree(line.data)
    assert all(row["path"].startswith(str(kept)) for row in line.listed(first))
    second = line.update((line.new(1), "good"), model="models:/dfm-stripes/2", copy_to=str(kept))
    assert second.trained.metrics["n_train"] == 22
    assert sum(p.is_file() for p in kept.rglob("*.png")) == len(line.listed(second)) + 5  # masks


GOOD, OTHER = [("new/n0.png", "good")], "models:/dfm-other/1"
ALL_BAD = [(f"data/stripes/train/good/{i:03d}.png", "bad") for i in range(19)]


@pytest.mark.parametrize(
    ("said", "given", "words", "model"),
    [
        ([("f" * 64, "good")], {}, r"1 of 1 verdicts .* give add=", ""),
        (GOOD, {}, f"{OTHER} scored", OTHER),
        (GOOD, {}, "models:/m-0123 scored", "models:/m-0123"),
        ([("new/n0.png", "unsure")], {}, "Nothing would change", ""),
        ([("data/stripes/train/good/001.png", "good")], {}, "Nothing would change", ""),
        (ALL_BAD, {}, "would leave 1 of 20", ""),
        (GOOD, {"add": "nowhere"}, "is not there", ""),
        (GOOD, {"remove": "nowhere.txt"}, r"remove=nowhere\.txt cannot be read", ""),
        (GOOD, {"data": "nowhere.csv"}, r"nowhere\.csv cannot be read", ""),
        (GOOD, {"promote": "latest"}, "other than latest", ""),
    ],
)
def test_what_cannot_be_done_registers_nothing(line, said, given, words, model):
    said = [(w if len(w) == 64 else line.root / w, v) for w, v in said]
    verdicts = line.say(*said, columns=("model",), more=(model,))
    runs = len(mlflow.search_runs(search_all_experiments=True))
    with pytest.raises((DataError, ConfigError), match=words) as caught:
        line.update(verdicts=verdicts, **given)
    assert "\n" not in str(caught.value)
    assert line.versions() == [1]
    assert len(mlflow.search_runs(search_all_experiments=True)) == runs


def test_verdicts_on_any_version_of_the_model_are_welcome(line):
    uri = line.first.model_uri  # models:/m-..., as a run's scores name it
    verdicts = line.say((line.new(0), "good"), columns=("model",), more=(uri,))
    update(UpdateOptions.parse({"model": "models:/dfm-stripes/1", "verdicts": verdicts}))
    verdicts = line.say((line.new(1), "good"), columns=("model",), more=("models:/dfm-stripes/1",))
    result = update(UpdateOptions.parse({"model": "models:/dfm-stripes/2", "verdicts": verdicts}))
    assert result.trained.registered_uri == "models:/dfm-stripes/3"


def test_a_version_whose_pictures_are_not_known_needs_data(line):
    line.client.delete_run(line.first.run_id)
    shutil.rmtree(line.root / "backup", ignore_errors=True)
    path = Path(
        mlflow.artifacts.download_artifacts(
            run_id=line.first.run_id, artifact_path=TRAINING, dst_path=str(line.root / "backup")
        )
    )
    listed = path.read_bytes()
    place = Path(mlflow.get_run(line.first.run_id).info.artifact_uri.removeprefix("file://"))
    hidden = (place / TRAINING).rename(line.root / "hidden.csv")
    try:
        with pytest.raises(DataError, match=r"The pictures of models:/dfm-stripes/1 are not known"):
            line.update((line.new(0), "good"))
        (line.root / "own.csv").write_bytes(listed)
        by_list = line.update((line.new(0), "good"), data=str(line.root / "own.csv"))
        by_folder = line.update((line.new(0), "good"), data=str(line.data))
    finally:
        hidden.rename(place / TRAINING)
    assert files_of(by_list.trained.model_uri) == files_of(by_folder.trained.model_uri)


def test_a_recalibrated_version_sends_to_the_one_that_was_fitted(line):
    images = [line.new(i) for i in range(5)]
    folder = line.root / "calm"
    folder.mkdir(exist_ok=True)
    for path in images:
        shutil.copy(path, folder)
    recalibrate(RecalibrateOptions.parse({"model": "models:/dfm-stripes/1", "images": str(folder)}))
    with pytest.raises(DataError, match="is models:/dfm-stripes/1 with new thresholds"):
        line.update((line.new(0), "good"), model="models:/dfm-stripes/2")


def test_groups_of_paths_survive_a_move(line):
    given = {**SMALL, "data": str(line.data), "registered_model": "dfm-grouped"}
    grouped = train(Options.parse(given | {"group_by": r"(\d)\d\.png$"}))
    result = line.update(
        (line.old(3), "bad"), model="models:/dfm-grouped/1", copy_to=str(line.root / "kept")
    )
    assert result.trained.detector.options.group_by == grouped.detector.options.group_by
    rows = {r["sha256"]: r for r in line.listed(result)}
    assert rows[digest(line.old(1))]["group"] == rows[digest(line.old(7))]["group"] == "0"
    assert rows[digest(line.old(12))]["group"] == "1"


def test_promotion_in_one_step_and_the_gate_that_stops_it(line):
    verdicts = line.say((line.new(0), "good"), (line.new(5), "bad:hole"))
    command = ["update", "models:/dfm-stripes/1", "--verdicts", verdicts, "--promote", "production"]
    done = CliRunner(catch_exceptions=False).invoke(cli, command)
    assert done.exit_code == 0, done.output
    assert "production of dfm-stripes points to version 2; before, to no version." in done.output
    where = json.loads(done.output.strip().splitlines()[-1])
    assert where["outcome"] == "moved"
    run = mlflow.get_run(where["run_id"])  # of update and promotion
    assert run.data.tags["dfm.job"] == "update"
    verdicts = line.say((line.new(1), "good"))
    with pytest.raises(PromotionError, match=r"is not promoted to production\. Too few images"):
        line.update(
            (line.new(1), "good"), model="models:/dfm-stripes@production", promote="production"
        )
    assert line.versions() == [1, 2, 3]
    assert str(line.client.get_registered_model("dfm-stripes").aliases["production"]) == "2"
    last = line.client.get_model_version("dfm-stripes", "3")
    assert mlflow.get_run(last.run_id).info.status == "FINISHED"
    assert last.tags["dfm.parent_version"] == "2"


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


@pytest.mark.parametrize(
    ("statement", "versions"),
    [
        ("INSERT INTO latest_metrics", [1]),  # the first results are logged
        ("INSERT INTO model_versions", [1]),
        ("INSERT INTO model_version_tags", [1]),  # the version itself is in the same transaction
        ("INSERT INTO logged_model_tags (name, tag_key", [1, 2]),
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
        assert version.description.startswith("The model finds ")
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
