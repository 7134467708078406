"""Reviews of what a small model scored, as a file and served to a browser."""

import csv
import json
import threading

import mlflow
import pandas as pd
import pytest
from click.testing import CliRunner

from dfm_mlflow.cli import cli
from dfm_mlflow.config import EvaluateOptions, ReviewOptions, ScoreOptions
from dfm_mlflow.data.verdicts import PictureVerdict, append_verdict, read_verdicts
from dfm_mlflow.errors import ArtifactError, ConfigError, DataError
from dfm_mlflow.jobs.evaluate import evaluate
from dfm_mlflow.jobs.review import name_of, review
from dfm_mlflow.jobs.score import score
from dfm_mlflow.mlflow_plugin.model_uri import resolve

from ..browser import CHROMIUM, chromium


@pytest.fixture
def here(registry, tmp_path, monkeypatch):
    """A registered version of the good model, and a folder to write to."""
    registry.add("good")
    monkeypatch.chdir(tmp_path)
    return registry


def state_of(path):
    text = path.read_text(encoding="utf-8")
    return json.loads(text.partition('id="state">')[2].partition("</script>")[0])


def ask(scores, **given):
    return review(ReviewOptions.parse({"scores": str(scores), **given}))


def test_scores_name_their_model_and_bring_its_training_pictures(here, tmp_path):
    uri = f"models:/{here.name}/1"
    images = here.zoo.clean + "/stripes/test"
    score(ScoreOptions.parse({"model": uri, "images": images, "output": "s.parquet"}))
    result = ask("s.parquet", who="ann")
    assert result.model == uri
    assert result.counts == {"flagged": 6, "least typical": 8, "training": 24}
    assert f"dfm-mlflow update {uri} --verdicts verdicts.csv" in result.summary()
    state = state_of(tmp_path / "review.html")
    assert state["model"] == uri
    assert len(state["pictures"]) == 38
    first, last = state["pictures"][0], state["pictures"][-1]
    table = pd.read_parquet("s.parquet").set_index("path")
    assert first["score"] == table.loc[first["path"], "anomaly_score"]
    assert (last["why"], last["label"]) == ("unusual training picture", "good")
    assert ask("s.parquet", training="false", most="3").counts == {"flagged": 3}


def test_a_folder_of_parts_and_runs_name_their_model_too(here, tmp_path):
    uri, images = f"models:/{here.name}/1", here.zoo.clean + "/stripes/test"
    score(ScoreOptions.parse({"model": uri, "images": images, "output": "parts/"}))
    assert ask("parts", training="false").model == uri
    run = evaluate(EvaluateOptions.parse({"model": uri, "data": here.zoo.clean}))
    found = ask(f"runs:/{run.run_id}/scores.parquet", training="false")
    assert (found.model, found.counts["flagged"]) == (uri, 6)
    run_id = here.zoo.runs["good"].run_id
    found = ask(f"runs:/{run_id}/train_scores.parquet")
    # the run names the logged model, and the record the version that it became
    assert found.model.startswith("models:/dfm-")
    assert found.counts == {"training": 24}
    logged = resolve(here.zoo.runs["good"].model_uri)
    assert name_of(logged) == found.model
    state = state_of(tmp_path / "review.html")
    scores = pd.read_parquet(
        mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path="train_scores.parquet")
    )
    assert state["pictures"][0]["p"] == scores["p_value"].min()


def test_a_servers_log_is_reviewed_with_its_kept_pictures(here, tmp_path):
    import hashlib
    from pathlib import Path

    holes = sorted(Path(here.zoo.clean, "stripes/test/hole").glob("*.png"))[:3]
    detector = here.zoo.runs["good"].detector
    table = detector.score(holes).drop(columns="anomaly_map")
    digests = [hashlib.sha256(p.read_bytes()).hexdigest() for p in holes]
    for path, digest in zip(holes[:2], digests, strict=False):
        place = tmp_path / "log/kept" / digest[:2] / f"{digest}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(path.read_bytes())
    table = table.assign(sha256=digests, time=pd.Timestamp("2026-11-27"), model_version="1")
    table.to_parquet(tmp_path / "log/part-0.parquet")
    with pytest.raises(ConfigError, match="does not say which model gave these scores: give model"):
        ask("log")
    result = ask("log", model=f"models:/{here.name}/1", training="false")
    assert result.counts == {"flagged": 2}
    assert {p["sha256"] for p in state_of(tmp_path / "review.html")["pictures"]} == set(digests[:2])


def test_what_cannot_be_reviewed_gets_one_sentence_and_no_page(here, tmp_path):
    pd.DataFrame(
        {"path": ["/gone.png"], "anomaly_score": [1.0], "p_value": [0.5], "is_anomaly": [False]}
    ).to_parquet("s.parquet")
    uri = f"models:/{here.name}/1"
    with pytest.raises(DataError, match=r"No picture of s\.parquet can be shown"):
        ask("s.parquet", model=uri, training="false")
    with pytest.raises(ArtifactError):
        ask("s.parquet", model="models:/dfm-nowhere/1")
    (tmp_path / "verdicts.csv").write_text("a,b\n")
    with pytest.raises(DataError, match="lacks the column"):
        ask("s.parquet", model=uri)
    done = CliRunner().invoke(cli, ["review", "nowhere.parquet"])
    assert isinstance(done.exception, DataError)
    assert not (tmp_path / "review.html").exists()


@pytest.mark.integration
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_served_verdicts_are_appended_at_once(here, tmp_path):
    """By keyboard in a real browser; the file has each verdict before the page says so."""
    pytest.importorskip("playwright", reason="the browser's driver is not installed")
    images = here.zoo.clean + "/stripes/test"
    uri = f"models:/{here.name}/1"
    score(ScoreOptions.parse({"model": uri, "images": images, "output": "s.parquet"}))
    known = pd.read_parquet("s.parquet")["path"][0]
    append_verdict(tmp_path / "v.csv", PictureVerdict("0" * 64, "good", known))
    started, servers = threading.Event(), []

    def tell(server):
        servers.append(server)
        started.set()

    options = ReviewOptions.parse(
        {"scores": "s.parquet", "serve": "true", "verdicts": "v.csv", "who": "ann"}
    )
    thread = threading.Thread(target=review, args=(options,), kwargs={"started": tell})
    thread.start()
    assert started.wait(120)
    try:
        with chromium() as browser:
            page = browser.new_page()
            page.goto(servers[0].url)
            page.wait_for_selector("html[data-ready=yes][data-shown=yes]")
            page.keyboard.press("b")
            page.keyboard.type("hole")
            page.keyboard.press("Enter")
            page.get_by_text("Saved in v.csv.").wait_for()
            page.keyboard.press("g")
            page.locator("#strip .good").wait_for()
            page.locator("#unsure").click()
            page.wait_for_timeout(300)
            servers[0].shutdown()
            thread.join(30)
            page.locator("#good").click()
            page.locator("#trouble").wait_for()  # the server is gone, and the page says so
            assert "download the verdicts" in page.locator("#trouble").inner_text()
    finally:
        servers[0].shutdown()
        thread.join(30)
    said = read_verdicts("v.csv")
    assert [(v.verdict, v.defect, v.who) for v in said] == [
        ("good", "", ""),
        ("bad", "hole", "ann"),
        ("good", "", "ann"),
        ("unsure", "", "ann"),
    ]
    assert {v.model for v in said[1:]} == {uri}
    with open("v.csv", newline="") as file:
        assert all(row["path"].startswith("/") for row in csv.DictReader(file))
