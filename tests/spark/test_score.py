"""Scoring parts in executors of a real local Spark; a killed job goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import dfm_mlflow
from dfm_mlflow.config import ScoreOptions
from dfm_mlflow.jobs.score import score

from ..detectors import fit, pictures


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "model"
    dfm_mlflow.save_model(fit(), str(folder))
    return str(folder)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Pictures in nested folders, and two files that are none."""
    root = tmp_path_factory.mktemp("archive")
    for i, data in enumerate(pictures(20, seed=3) + pictures(8, seed=4, defect=True)):
        path = root / f"day{i % 3}" / "line" / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (root / "day0/broken.png").write_bytes(b"no picture")
    (root / "day1/empty.jpg").write_bytes(b"")
    (root / "notes.txt").write_text("no picture at all")
    return root


def options(model, images, output, **more):
    return ScoreOptions.parse(
        {"model": model, "images": str(images), "output": str(output), **more}
    )


def table(folder):
    return pd.read_parquet(folder).sort_values("path").reset_index(drop=True)


def assert_same(ours, theirs):
    assert list(ours.columns) == list(theirs.columns)
    for name in theirs:
        if theirs[name].dtype.kind == "f":
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-6)
        else:
            pd.testing.assert_series_equal(ours[name], theirs[name])


def test_spark_and_this_machine_write_the_same_rows(spark, model, archive, tmp_path):
    done = score(options(model, archive, tmp_path / "spark.parquet", engine="spark"), session=spark)
    score(options(model, archive, tmp_path / "here.parquet"))
    assert (done.n_images, done.n_errors, done.n_before) == (30, 2, 0)
    ours = table(tmp_path / "spark.parquet")
    assert_same(ours, table(tmp_path / "here.parquet"))
    named = [*archive.rglob("*.png"), *archive.rglob("*.jpg")]
    assert list(ours["path"]) == sorted(map(str, named))
    assert ours["error"].notna().sum() == 2
    assert {"_SUCCESS", "_plan.json"} < set(os.listdir(tmp_path / "spark.parquet"))
    frame = spark.read.parquet(str(tmp_path / "spark.parquet"))  # as other Spark jobs read it
    assert frame.count() == 30
    again = score(
        options(model, archive, tmp_path / "spark.parquet", engine="spark"), session=spark
    )
    assert (again.n_images, again.n_before) == (0, 30)


def test_spark_decides_on_parts_alike(spark, model, archive, tmp_path):
    by = {"part_by": r"(\d)\.png$"}  # two or three pictures each, in several folders
    images, there = f"{archive}/day*/line/*", tmp_path / "spark.parquet"
    score(options(model, images, there, engine="spark", **by), session=spark)
    score(options(model, images, tmp_path / "here.parquet", **by))
    ours = table(tmp_path / "spark.parquet")
    assert_same(ours, table(tmp_path / "here.parquet"))
    assert set(ours["part"]) == set("0123456789")
    assert ours.groupby("part")["part_p_value"].nunique().eq(1).all()


def test_from_s3_to_s3(spark, model, archive, tmp_path, s3_store):
    images = s3_store.upload(archive, "archive")
    output = f"s3://{s3_store.bucket}/scores.parquet"
    given = options(model, f"{images}/**/*.png", output, engine="spark")
    done = score(given, session=spark)
    assert (done.n_images, done.n_errors) == (29, 1)
    for item in s3_store.client.list_objects_v2(Bucket=s3_store.bucket)["Contents"]:
        if item["Key"].startswith("scores.parquet/part-"):
            target = tmp_path / Path(item["Key"]).name
            s3_store.client.download_file(s3_store.bucket, item["Key"], str(target))
    ours = table(tmp_path)
    assert len(ours) == 29
    assert ours["path"].str.startswith(f"{images}/day").all()
    score(options(model, f"{images}/**/*.png", tmp_path / "here.parquet"))
    assert_same(ours, table(tmp_path / "here.parquet"))
    n = len(s3_store.gets(".png"))
    assert score(given, session=spark).n_before == 29
    assert len(s3_store.gets(".png")) == n  # nothing is read again


JOB = """
import sys
from dfm_mlflow.scores import parts
from dfm_mlflow.config import ScoreOptions
from dfm_mlflow.jobs.score import score
parts.PICTURES = 3
model, images, output = sys.argv[1:]
score(ScoreOptions.parse({"model": model, "images": images, "output": output, "engine": "spark"}))
"""


@pytest.mark.slow
def test_a_killed_job_goes_on_without_doing_finished_parts_again(spark, model, archive, tmp_path):
    output = tmp_path / "scores"
    # one core, so that parts come one after the other and the kill hits between first and last
    environment = {**os.environ, "DFM_SPARK_MASTER": "local[1]", "PYSPARK_PYTHON": sys.executable}
    job = subprocess.Popen(
        [sys.executable, "-c", JOB, model, str(archive), f"{output}/"],
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not any(output.glob("part-*.parquet")):
            assert job.poll() is None
            time.sleep(0.02)
    finally:
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()
    finished = {p.name: p.stat().st_mtime_ns for p in output.glob("part-*.parquet")}
    assert not (output / "_SUCCESS").exists()
    rest = score(options(model, archive, f"{output}/", engine="spark"), session=spark)
    ours = table(output)
    assert len(ours) == 30
    assert rest.n_before == sum(len(pd.read_parquet(output / name)) for name in finished)
    assert rest.n_images == 30 - rest.n_before
    for name, written in finished.items():
        assert (output / name).stat().st_mtime_ns == written
    score(options(model, archive, tmp_path / "here.parquet"))
    assert_same(ours, table(tmp_path / "here.parquet"))


def test_a_server_s_log_is_read_as_it_was_written(spark, tmp_path):
    from dfm_mlflow.serving.monitor.log_store import LogStore
    from dfm_mlflow.storage.served_log import COLUMNS

    store = LogStore(str(tmp_path / "log"), 5, 5, 1)
    for part in range(3):
        store.add_rows(
            [
                [1e9 + part, "3", "ab" * 32, 1.5, 0.25, False, "c", "pass", None, 2.5, None],
                [1e9 + part, None, None, None, None, None, None, None, "It is none.", 0.5, None],
            ]
        )
    store.keep("ab" * 32, b"\x89PNG")
    (tmp_path / "log/scores/.tmp-half.parquet").write_bytes(b"PAR1")
    table = spark.read.parquet(str(tmp_path / "log/scores"))
    assert table.columns == list(COLUMNS)
    assert table.count() == 6
    assert table.where("error is null and p_value = 0.25 and not is_anomaly").count() == 3
    assert table.selectExpr("max(unix_timestamp(time))").first()[0] == 1_000_000_002
