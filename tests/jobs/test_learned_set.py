"""Which pictures an update starts from, and what it refuses."""

import shutil
from pathlib import Path

import mlflow
import pytest

from dfm_mlflow.config import Options, RecalibrateOptions, UpdateOptions
from dfm_mlflow.errors import ConfigError, DataError
from dfm_mlflow.jobs.learned_set import TRAINING
from dfm_mlflow.jobs.recalibrate import recalibrate
from dfm_mlflow.jobs.train import train
from dfm_mlflow.jobs.update import update

from ..lines import digest, files_of
from ..zoo import SMALL

pytestmark = pytest.mark.integration  # whole jobs, one after the other


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


def test_an_update_of_nothing_is_refused_before_anything_is_loaded(line):
    with pytest.raises(ConfigError, match="change nothing: give a file of verdicts"):
        line.update(model="models:/dfm-nowhere/1")


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
