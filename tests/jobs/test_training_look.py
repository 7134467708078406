"""What a training run says of its own pictures: tables, odd ones, copies, and what is left out."""

import logging
import shutil
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dfm_mlflow.config import Options
from dfm_mlflow.errors import DataError
from dfm_mlflow.jobs.train import train

from ..conftest import in_store, texture, write_category

pytestmark = pytest.mark.integration  # whole jobs, one after the other

SMALL = {
    "weights": "random",
    "image_size": "64",
    "backbone": "resnet18",
    "augment": "none",
    "registered_model": "none",
}


def run(data, **more):
    given = {"data": str(data), "category": "stripes", **SMALL, **more}
    result = train(Options.parse(given))
    return result, Path(mlflow.artifacts.download_artifacts(run_id=result.run_id))


def save(path, picture, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, **how)


@pytest.fixture(scope="module")
def dirty(tmp_path_factory):
    """24 good pictures and one defective, a copy, a near-copy, and a test picture fitted to."""
    root = write_category(tmp_path_factory.mktemp("dirty"), "stripes", 3)
    good, rng = root / "stripes/train/good", np.random.default_rng(7)
    save(good / "bad.png", texture(rng, defect=True))
    shutil.copy(good / "003.png", good / "copy of 3.png")
    picture = np.asarray(Image.open(good / "005.png"))
    save(good / "005_again.jpg", picture, quality=95)
    (root / "stripes/test/good/linked.png").symlink_to(good / "004.png")
    shutil.copy(root / "stripes/test/hole/000.png", root / "stripes/test/good/hole.png")
    return root


@pytest.fixture(scope="module")
def looked_at(dirty, tmp_path_factory, empty_store):
    """The run on `dirty`, its files, and the lines of its log."""
    lines = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger("dfm_mlflow").addHandler(handler)
    try:
        with in_store(empty_store, tmp_path_factory.mktemp("store")):
            result, files = run(dirty)
    finally:
        logging.getLogger("dfm_mlflow").removeHandler(handler)
    return result, files, lines


def test_each_training_picture_has_its_held_out_score(looked_at):
    result, files, _ = looked_at
    table = pd.read_parquet(files / "train_scores.parquet").set_index("path")
    assert list(table.columns) == [
        "sha256", "category", "group", "held_out_score", "p_value", "used",
    ]  # fmt: skip
    assert len(table) == result.metrics["n_train"] == 27
    scores = result.detector.classes[0].calibration.scores
    np.testing.assert_allclose(np.sort(table["held_out_score"]), np.sort(scores))
    assert Path(table["held_out_score"].idxmax()).name == "bad.png"
    assert table["p_value"].min() == table.loc[table["held_out_score"].idxmax(), "p_value"]
    copies = table[table["group"].notna()]
    assert {Path(p).name for p in copies.index} == {"003.png", "copy of 3.png"}
    assert copies["group"].nunique() == 1


def test_the_list_of_all_pictures_is_a_manifest(looked_at, dirty, store):
    _, files, _ = looked_at
    table = pd.read_csv(files / "training.csv", keep_default_na=False)
    assert list(table.columns) == [
        "path", "sha256", "split", "label", "mask", "category", "group", "excluded",
    ]  # fmt: skip
    assert len(table) == 27 + 16
    _, files_again = run(files / "training.csv")
    pd.testing.assert_frame_equal(
        pd.read_csv(files_again / "training.csv", keep_default_na=False), table
    )
    first = pd.read_parquet(files / "train_scores.parquet")
    second = pd.read_parquet(files_again / "train_scores.parquet")
    np.testing.assert_allclose(first["held_out_score"], second["held_out_score"], rtol=1e-5)


def test_the_odd_picture_copies_and_overlap_are_named_in_two_lines(looked_at):
    lines = looked_at[2]
    about = [line for line in lines if "threshold of at" not in line and "promise a" not in line]
    about = [line for line in about if "bad.png" in line or "nearly equal" in line]
    assert len(about) == 2
    copies, odd = sorted(about, key=lambda line: "alone sets" in line)
    assert "bad.png alone sets the threshold" in odd
    assert "without it" in odd
    assert "recall would be" in odd
    assert "look at it." in odd
    assert "3 test pictures are left out of the metrics" in copies
    assert "005_again.jpg" in copies
    assert "group_by=" in copies
    assert "copy of 3.png" in copies


def test_test_pictures_that_say_nothing_are_left_out_of_the_metrics(looked_at, dirty, store):
    result, files, _ = looked_at
    assert result.metrics["n_duplicates"] == 3  # a copy, a link, a hole among the good ones
    assert result.metrics["n_test"] == 13
    table = pd.read_parquet(files / "scores.parquet")
    out = table[table["left_out"].notna()]
    assert sorted(Path(p).name for p in out["path"]) == ["000.png", "hole.png", "linked.png"]
    assert out["left_out"].str.contains("fitted to it as").sum() == 1
    assert out["left_out"].str.contains("labelled").sum() == 2
    counted, _ = run(dirty, test_copies="count")
    assert counted.metrics["n_test"] == 16


def test_the_report_shows_what_to_look_at(looked_at):
    _, files, _ = looked_at
    page = (files / "report/report.html").read_text()
    assert "Look at these training pictures" in page
    assert "alone sets the threshold" in page
    assert "far from the rest" in page
    assert page.count("held-out score") == 6  # a fifth of 27
    assert "exclude=FILE" in page
    assert "groups.csv" in page
    assert (files / "groups.csv").read_text().startswith("path,group\n")
    assert list((files / "report/overlays").glob("*training_bad.png"))


def test_excluded_pictures_stay_in_the_list_with_the_reason(dirty, store, tmp_path, looked_at):
    result, _, _ = looked_at
    (tmp_path / "out.txt").write_text("# looked at by Ada\n\ngood/bad.png\n")
    clean, files = run(dirty, exclude=str(tmp_path / "out.txt"))
    assert clean.metrics["n_train"] == 26
    assert clean.metrics["threshold"] < result.metrics["threshold"]
    table = pd.read_csv(files / "training.csv", keep_default_na=False)
    out = table[table["excluded"] != ""]
    assert [Path(p).name for p in out["path"]] == ["bad.png"]
    assert list(out["excluded"]) == ["named by exclude"]
    scores = pd.read_parquet(files / "train_scores.parquet")
    assert list(scores.loc[~scores["used"], "path"]) == [str(p) for p in out["path"]]
    assert "bad.png: named by exclude" in (files / "report/report.html").read_text()
    # by content, and with a reason
    sha256 = out["sha256"].iloc[0]
    (tmp_path / "out.csv").write_text(f"sha256,reason\n{sha256},a hole\n")
    same, files = run(dirty, exclude=str(tmp_path / "out.csv"))
    assert same.metrics["threshold"] == clean.metrics["threshold"]
    table = pd.read_csv(files / "training.csv", keep_default_na=False)
    assert list(table.loc[table["excluded"] != "", "excluded"]) == ["a hole"]


def test_groups_of_a_list_are_held_out_together(looked_at, dirty, store):
    _, files, _ = looked_at
    result, again = run(dirty, group_by=str(files / "groups.csv"))
    table = pd.read_parquet(again / "train_scores.parquet").set_index("path")
    alike = table[table["group"].fillna("").str.startswith("alike")]
    assert {Path(p).name for p in alike.index} == {"005.png", "005_again.jpg"}
    assert result.detector.classes[0].calibration.n_groups == 25  # the copy is one, too
    assert "nearly equals" not in (again / "report/report.html").read_text()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["nothere.png"], "line 1: nothere.png is not a training picture"),
        (["# no", "0" * 64], "line 2: 0{64} is not a training picture"),
        (["000.png", "good/bad.png", "x/001.png"], "line 3: x/001.png is not a training picture"),
    ],
)
def test_a_line_that_names_nothing_is_named(dirty, store, tmp_path, lines, message):
    (tmp_path / "out.txt").write_text("\n".join(lines))
    with pytest.raises(DataError, match=message):
        run(dirty, exclude=str(tmp_path / "out.txt"))


def test_one_picture_may_not_be_all_that_is_left(dirty, store, tmp_path):
    names = sorted(p.name for p in (dirty / "stripes/train/good").iterdir())
    (tmp_path / "out.txt").write_text("\n".join(names[1:]))
    with pytest.raises(DataError, match="leaves 1 of 27 good pictures of stripes to fit on"):
        run(dirty, exclude=str(tmp_path / "out.txt"))
    assert mlflow.search_runs().empty


def test_a_flat_folder_gets_pictures_and_an_estimate(mvtec_like, store):
    result, files = run(mvtec_like / "stripes/train/good")
    assert 0 <= result.metrics["synthetic_recall"] <= 1
    parts = [result.metrics[f"synthetic_recall/{s}"] for s in ("small", "medium", "large")]
    assert np.mean(parts) == pytest.approx(result.metrics["synthetic_recall"])
    assert parts[0] <= parts[2]
    assert any("an estimate on drawn defects" in s for s in result.sentences)
    page = (files / "report/report.html").read_text()
    assert "Look at these training pictures" in page
    assert "Typical good training pictures" in page
    assert "Drawn defects that are found" in page
    assert len(pd.read_parquet(files / "train_scores.parquet")) == 24
    assert len(pd.read_csv(files / "training.csv")) == 24
