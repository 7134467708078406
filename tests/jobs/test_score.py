"""Scoring without a server, on this machine: one file, or a folder of parts to go on with."""

import json
import os
import re
from pathlib import Path

import mlflow
import pandas as pd
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import dfm_mlflow
from dfm_mlflow.cli import cli
from dfm_mlflow.config import ScoreOptions
from dfm_mlflow.errors import ConfigError, DataError, ImageError
from dfm_mlflow.jobs import score as job
from dfm_mlflow.jobs.score import score
from dfm_mlflow.scores import parts

from ..detectors import fit
from ..detectors import pictures as drawn


@pytest.fixture(scope="module")
def detector():
    return fit()


@pytest.fixture(scope="module")
def model(detector, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "model"
    dfm_mlflow.save_model(detector, str(folder))
    return str(folder)


@pytest.fixture
def images(tmp_path):
    root = tmp_path / "images"
    for i, data in enumerate(drawn(8, seed=3) + drawn(4, seed=4, defect=True)):
        path = root / f"day{i % 2}" / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (root / "broken.png").write_bytes(b"no picture")
    return root


def options(model, images, output, **more):
    return ScoreOptions.parse(
        {"model": model, "output": str(output), **more}
        | {"images": images if isinstance(images, list) else str(images)}
    )


def expected(detector, images):
    paths = sorted(images.rglob("*.png"), key=str)
    table = detector.score(paths, on_error="report")
    table.insert(0, "path", [str(p) for p in paths])
    return table


def assert_same(ours, theirs):
    # pandas reads columns of text in a dtype of its own
    pd.testing.assert_frame_equal(
        ours.astype(theirs.dtypes).where(ours.notna(), None),
        theirs.where(theirs.notna(), None),
        rtol=1e-6,
    )


def test_one_file_has_the_path_and_the_columns_of_scoring(model, detector, images, tmp_path):
    output = tmp_path / "scores.parquet"
    result = score(options(model, images, output))
    assert (result.n_images, result.n_errors) == (13, 1)
    assert_same(pd.read_parquet(output), expected(detector, images))
    kinds = {field.name: str(field.type) for field in pq.read_schema(output)}
    assert kinds["is_anomaly"] == "bool"
    assert {kinds[n] for n in ("path", "predicted_class", "anomaly_map", "error")} == {"string"}
    assert set(os.listdir(tmp_path)) == {"images", "scores.parquet"}


def test_steps_change_nothing(model, detector, images, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "_STEP", 5)
    score(options(model, images, tmp_path / "scores.parquet"))
    assert_same(pd.read_parquet(tmp_path / "scores.parquet"), expected(detector, images))


def test_a_broken_run_leaves_no_file(model, images, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "scores_of", lambda *_: 1 / 0)
    for name in ("scores.parquet", "scores.csv"):
        with pytest.raises(ZeroDivisionError):
            score(options(model, images, tmp_path / name))
    assert os.listdir(tmp_path) == ["images"]


def test_csv_holds_the_same_table(model, images, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "_STEP", 5)
    score(options(model, images, tmp_path / "scores.parquet"))
    score(options(model, images, tmp_path / "scores.csv"))
    ours = pd.read_csv(tmp_path / "scores.csv")
    assert_same(ours, pd.read_parquet(tmp_path / "scores.parquet"))


def test_several_addresses_each_picture_once_and_nothing_written(model, images, tmp_path, caplog):
    caplog.set_level("INFO")
    some = [str(images / "day0"), str(images / "day0/02.png"), f"{images}/day1/*.png"]
    result = score(options(model, some, "none"))
    assert (result.n_images, result.n_errors) == (12, 0)
    assert result.summary() == f"12 pictures, {result.n_anomalous} anomalous, 0 unreadable"
    assert 4 <= result.n_anomalous < 12
    assert list(result.most["p_value"]) == sorted(result.most["p_value"])
    assert len([r for r in caplog.records if "Used 6 pictures of" in r.message]) == 1
    assert os.listdir(tmp_path) == ["images"]


def test_rate_maps_and_what_becomes_of_a_broken_picture(model, detector, images, tmp_path):
    more = {"fpr": "0.4", "anomaly_map": True}
    score(options(model, images, tmp_path / "scores.parquet", **more))
    table = pd.read_parquet(tmp_path / "scores.parquet")
    read = table[table["error"].isna()]
    plain = detector.score([Path(p) for p in read["path"]], fpr=0.4, anomaly_map=True)
    assert list(plain["is_anomaly"]) == list(read["is_anomaly"])
    assert list(plain["anomaly_map"]) == list(read["anomaly_map"])
    output = f"{tmp_path}/scores/"
    score(options(model, images, output, **more))
    with pytest.raises(ConfigError, match=r"fpr=0\.4, not None: give a new folder"):
        score(options(model, images, output))
    with pytest.raises(ImageError, match="broken.png|Row 0"):
        score(options(model, images, "none", on_error="raise"))


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(parts, "PICTURES", 4)


def test_a_broken_folder_is_gone_on_with(model, images, tmp_path, monkeypatch, small_parts):
    output = f"{tmp_path}/scores/"
    done = []

    def breaks(detector, part, *rest):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(part)
        return parts.score_part(detector, part, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(job, "score_part", breaks)
        with pytest.raises(KeyboardInterrupt):
            score(options(model, images, output))
    assert "_SUCCESS" not in os.listdir(output)
    n_done = sum(len(part.sources) for part in done)
    result = score(options(model, images, output))
    assert (result.n_before, result.n_images) == (n_done, 13 - n_done)
    score(options(model, images, tmp_path / "one.parquet"))
    ours = pd.read_parquet(output).sort_values("path").reset_index(drop=True)
    pd.testing.assert_frame_equal(ours, pd.read_parquet(tmp_path / "one.parquet"), rtol=1e-6)


def test_other_pictures_cost_their_own_parts_only(model, images, tmp_path, small_parts):
    output = f"{tmp_path}/scores/"
    score(options(model, images, output))
    before = set(os.listdir(output))
    (images / "new.png").write_bytes(drawn(1, seed=9)[0])
    (images / "broken.png").unlink()
    result = score(options(model, images, output))
    after = set(os.listdir(output))
    assert result.n_before > 0
    assert len(after - before) <= 2  # parts of the new picture and of the one that is gone
    table = pd.read_parquet(output)
    assert sorted(table["path"]) == sorted(map(str, images.rglob("*.png")))
    assert table["error"].isna().all()


def test_a_picture_overwritten_under_its_old_name_is_scored_again(
    model, detector, images, tmp_path, small_parts
):
    output = f"{tmp_path}/scores/"
    score(options(model, images, output))
    first = pd.read_parquet(output).set_index("path")["anomaly_score"]
    changed = images / "day0" / "02.png"
    changed.write_bytes(drawn(1, seed=11, defect=True)[0])
    (tmp_path / "scores" / "notes.txt").write_text("mine")
    result = score(options(model, images, output))
    assert result.n_before + result.n_images == 13
    assert 0 < result.n_images == result.n_again < 13
    assert f"The scores of {result.n_before} pictures were kept" in result.summary()
    assert f"{result.n_again} pictures were scored again" in result.summary()
    assert (tmp_path / "scores" / "notes.txt").read_text() == "mine"
    (tmp_path / "scores" / "notes.txt").unlink()
    table = pd.read_parquet(output).set_index("path")["anomaly_score"]
    expected_score = detector.score([changed])["anomaly_score"].item()
    assert table[str(changed)] == pytest.approx(expected_score)
    assert table[str(changed)] != pytest.approx(first[str(changed)])
    others = table.drop(str(changed))
    pd.testing.assert_series_equal(others, first[others.index])


def test_a_folder_of_something_else_is_refused(model, images, tmp_path, small_parts):
    output = tmp_path / "scores"
    score(options(model, images, f"{output}/"))
    other = tmp_path / "other-model"
    dfm_mlflow.save_model(fit(seed=1), str(other))
    with pytest.raises(ConfigError, match="scores of another model"):
        score(options(str(other), images, f"{output}/"))
    with pytest.raises(ConfigError, match="holds other files, such as"):
        score(options(model, images, f"{images}/"))
    (output / "_plan.json").write_text("{")
    with pytest.raises(ConfigError, match="not a plan of this version"):
        score(options(model, images, f"{output}/"))


def test_one_file_and_parts_in_s3(model, images, tmp_path, s3_store, small_parts):
    uri = s3_store.upload(images, "images")
    score(options(model, f"{uri}/day*/*.png", f"s3://{s3_store.bucket}/one.parquet"))
    score(options(model, uri, f"s3://{s3_store.bucket}/scores/"))
    again = score(options(model, uri, f"s3://{s3_store.bucket}/scores/"))
    assert (again.n_images, again.n_before) == (0, 13)
    s3_store.client.download_file(s3_store.bucket, "one.parquet", str(tmp_path / "one.parquet"))
    table = pd.read_parquet(tmp_path / "one.parquet")
    assert len(table) == 12
    assert table["path"].str.startswith(uri).all()


def test_what_cannot_work_is_refused(model, images, tmp_path):
    with pytest.raises(ConfigError, match=r"a name that ends in \.parquet, \.csv or /"):
        options(model, images, "scores.txt")
    with pytest.raises(ConfigError, match="folder that is not there"):
        score(options(model, images, tmp_path / "none" / "scores.parquet"))
    with pytest.raises(DataError, match="is not there"):
        score(options(model, tmp_path / "none", tmp_path / "scores.parquet"))


def test_command_line(model, images, tmp_path, store):
    def run(*arguments):
        return CliRunner().invoke(cli, ["score", *map(str, arguments)])

    done = run("--model", model, "--images", images, "--output", tmp_path / "a.parquet")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()  # the log names folders, however long they are
    assert re.fullmatch(r"13 pictures, \d+ anomalous, 1 unreadable; wrote .*a\.parquet", lines[-1])
    assert max(map(len, lines[:-1])) <= 100
    assert mlflow.search_runs().empty  # a job of its own opens no run
    with mlflow.start_run() as opened:
        run("--model", model, images, "--output", tmp_path / "b.parquet")
    data = mlflow.get_run(opened.info.run_id).data
    assert (data.metrics["n_images"], data.metrics["n_unreadable"]) == (13, 1)
    done = run("--model", model, images / "day0", images / "broken.png", "--json")
    found = json.loads(done.stdout)
    assert (found["n_images"], found["n_errors"], found["output"]) == (7, 1, "none")
    refused = [
        run(images),
        run("--url", "http://x", "--model", model, images),
        run("--url", "http://x", "--engine", "spark", "--output", "a/", images),
    ]
    said = [str(r.exception) for r in refused]
    assert all(isinstance(r.exception, ConfigError) for r in refused)
    assert "either --model" in said[0]
    assert "either --model" in said[1]
    assert "needs --model" in said[2]


@pytest.fixture
def views(tmp_path):
    """Four parts with three views each, one of which is defective in one view."""
    root = tmp_path / "views"
    root.mkdir()
    good, bad = drawn(12, seed=3), drawn(1, seed=4, defect=True)
    for i, data in enumerate(good):
        (root / f"{i // 3}_{'abc'[i % 3]}.png").write_bytes(bad[0] if i == 7 else data)
    return root


def test_the_views_of_a_part_get_one_decision(model, detector, views, tmp_path, monkeypatch):
    by = {"part_by": r"(\d)_[abc]\.png"}
    monkeypatch.setattr(job, "_STEP", 2)  # smaller than a part
    score(options(model, views, tmp_path / "scores.parquet", **by))
    table = pd.read_parquet(tmp_path / "scores.parquet")
    assert list(table.columns[-3:]) == ["part", "part_p_value", "part_is_anomaly"]
    assert list(table["part"]) == [str(i) for i in range(4) for _ in range(3)]
    smallest = table.groupby("part")["p_value"].transform("min")
    assert (table["part_p_value"] == (3 * smallest).clip(upper=1)).all()
    assert set(table.loc[table["part"] == "2", "part_is_anomaly"]) == {True}
    plain = detector.score([Path(p) for p in table["path"]])
    pd.testing.assert_series_equal(plain["p_value"], table["p_value"])
    # a manifest names parts, too
    rows = [f"{path},{part}" for path, part in zip(table["path"], table["part"], strict=True)]
    (tmp_path / "list.csv").write_text("\n".join(["path,part", *rows]))
    score(options(model, tmp_path / "list.csv", tmp_path / "listed.parquet"))
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "listed.parquet"), table)


def test_parts_of_a_folder_of_files_lie_together(model, views, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "PICTURES", 3)
    output = f"{tmp_path}/scores/"
    score(options(model, views, tmp_path / "one.parquet", part_by=r"(\d)_[abc]\.png"))
    score(options(model, views, output, part_by=r"(\d)_[abc]\.png"))
    whole = pd.read_parquet(tmp_path / "one.parquet")
    ours = pd.read_parquet(output).sort_values(["part", "path"]).reset_index(drop=True)
    pd.testing.assert_frame_equal(ours, whole, rtol=1e-6)
    assert score(options(model, views, output, part_by=r"(\d)_[abc]\.png")).n_images == 0
    again = score(options(model, views, output, part_by=r"\d_([abc])\.png"))
    assert again.n_images == 12  # other parts, other decisions


def test_what_is_no_picture_is_counted(model, images, tmp_path, caplog):
    (images / "ground_truth").mkdir()
    (images / "ground_truth/0.png").write_bytes(b"x")
    (images / ".hidden.png").write_bytes(b"x")
    result = score(options(model, images, tmp_path / "scores.parquet"))
    assert (result.n_images, result.n_unused) == (13, 2)


def test_parts_are_not_asked_of_a_server(images):
    done = CliRunner().invoke(cli, ["score", "--url", "http://x", "--part-by", "a", str(images)])
    assert "--part-by needs --model" in str(done.exception)
    with pytest.raises(ConfigError, match=r"part_by='\(' is not a regular expression"):
        options("m", images, "a.parquet", part_by="(")
