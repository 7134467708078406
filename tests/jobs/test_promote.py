import getpass
import json
import os
import subprocess
import sys
import threading
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace

import mlflow
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from dfm_mlflow.cli import cli
from dfm_mlflow.config import PromoteOptions
from dfm_mlflow.errors import ConfigError, DataError, PromotionError
from dfm_mlflow.jobs import gates
from dfm_mlflow.jobs import promote as job
from dfm_mlflow.jobs.gates import unsafe_files
from dfm_mlflow.jobs.golden import GOLDEN, deviation, load_golden
from dfm_mlflow.jobs.promote import promote

from ..detectors import fit

ROOT = Path(__file__).parent.parent.parent


def ask(registry, version, to="production", **more):
    # the machine that runs the tests may do something else meanwhile
    given = {"model": registry.name, "version": str(version), "to": to, "max_slowdown": "5", **more}
    return promote(PromoteOptions.parse(given))


def decision(run_id):
    return mlflow.artifacts.load_dict(f"runs:/{run_id}/decision.json")


def test_a_good_first_version_is_promoted_on_the_record(registry):
    registry.add("good")
    result = ask(registry, 1, reason="first of its kind")
    assert registry.aliases == {"production": 1}
    assert registry.version(1).current_stage == "Production"
    tags = registry.tags(1)
    assert tags["by"] == getpass.getuser()
    age = datetime.now(timezone.utc) - datetime.fromisoformat(tags["at"])
    assert 0 <= age.total_seconds() < 60
    assert (tags["reason"], tags["previous"], tags["forced"]) == (
        "first of its kind",
        "none",
        "none",
    )
    assert json.loads(tags["figures"])["image_auroc"] == 1
    (run,) = registry.runs()
    assert (run.info.run_id, run.info.status) == (result.run_id, "FINISHED")
    assert tags["run_id"] == run.info.run_id
    written = decision(run.info.run_id)
    assert (written["outcome"], written["promotion_id"]) == ("moved", tags["id"])
    assert [g["name"] for g in written["gates"]] == ["artifact", "golden", "metrics", "comparison"]
    with pytest.raises(PromotionError, match="points to version 1 already"):
        ask(registry, 1)


def test_an_equal_version_follows_and_the_previous_is_known(registry):
    registry.add("good", "twin")
    ask(registry, 1)
    result = ask(registry, 2)
    assert registry.aliases == {"production": 2}
    assert [registry.version(v).current_stage for v in (1, 2)] == ["Archived", "Production"]
    assert registry.tags(2)["previous"] == "1"
    metrics = mlflow.get_run(result.run_id).data.metrics
    assert (metrics["auroc_difference_lower"], metrics["auroc_difference_upper"]) == (0, 0)
    assert (metrics["n_good"], metrics["n_defective"]) == (8, 6)
    assert metrics["growth"] == pytest.approx(1, abs=0.01)
    assert metrics["images_per_second"] > 0
    (used,) = mlflow.get_run(result.run_id).inputs.dataset_inputs
    assert [t.value for t in used.tags] == ["promotion"]
    assert json.loads(result.summary().splitlines()[-1])["previous"] == "1"


REFUSALS = {
    "worse": (
        "bad",
        {"data": "clean"},
        {"metrics", "comparison"},
        "is below min_auroc=0.8.*is worse than version 1 on 8 good and 6 defective",
    ),
    "undecided": (
        "twin",
        {"data": "mixed", "min_auroc": "0", "min_images": "20"},
        {"comparison"},
        "Too few images to decide .* 8 good and 6 defective pictures; at least 20",
    ),
    "uncertain": (
        "bad",
        {"data": "mixed", "min_auroc": "0"},
        {"comparison"},
        "Too few images to decide .* a difference between .* lies within",
    ),
    # a limit far below what it takes, so that a machine that does something else does not matter
    "costly": (
        "large",
        {"max_slowdown": "0.3"},
        {"speed", "size"},
        "times as long as .* times the bytes of version 1",
    ),
    "untested": ("untested", {}, {"comparison"}, "give data=<folder with good and defective"),
}


@pytest.mark.parametrize("why", REFUSALS)
def test_a_gate_refuses_and_nothing_moves(registry, why):
    kind, more, names, words = REFUSALS[why]
    more = more | ({"data": getattr(registry.zoo, more["data"])} if "data" in more else {})
    registry.add("good", kind)
    ask(registry, 1)
    before = registry.state()
    with pytest.raises(PromotionError, match=words) as caught:
        ask(registry, 2, **more)
    assert "\n" not in str(caught.value)
    assert registry.state() == before
    run = registry.runs()[0]
    written = decision(run.info.run_id)
    assert (run.info.status, written["outcome"]) == ("FAILED", "refused")
    assert {g["name"] for g in written["gates"] if not g["passed"]} == names
    assert written["sentence"] == str(caught.value)


def test_time_is_the_median_over_rounds_by_turns(monkeypatch):
    clock, turns = [0.0], []
    monkeypatch.setattr(gates.time, "perf_counter", lambda: clock[0])

    def detector(name, seconds):
        def score(images):
            turns.append(name)
            # now and then the machine is busy for the length of a round
            clock[0] += seconds * (20 if len(turns) // 2 % 5 == 3 else 1)

        return SimpleNamespace(score=score)

    ratio, new, old = gates.compare_speed(detector("new", 0.3), detector("old", 0.1), [b""] * 8)
    assert (ratio, new, old) == pytest.approx((3, 8 / 0.3, 8 / 0.1))
    rounds = [tuple(turns[i : i + 2]) for i in range(2, len(turns), 2)]
    assert set(rounds) == {("new", "old"), ("old", "new")}
    assert len(rounds) >= 5


def test_force_needs_a_reason_and_leaves_both_on_the_record(registry, caplog):
    registry.add("good", "bad")
    ask(registry, 1)
    with pytest.raises(ConfigError, match="force=true needs a reason"):
        ask(registry, 2, data=registry.zoo.clean, force="true")
    result = ask(registry, 2, data=registry.zoo.clean, force="true", reason="line 3 stands still")
    assert result.forced == ["metrics", "comparison"]
    assert "Forced past the gates metrics,comparison: line 3 stands still" in caplog.text
    tags = registry.tags(2)
    assert (tags["forced"], tags["reason"]) == ("metrics,comparison", "line 3 stands still")
    assert decision(result.run_id)["forced"] == result.forced
    assert "FORCED  comparison" in result.summary()
    assert registry.aliases == {"production": 2}


def test_without_test_pictures_the_held_out_rate_decides(registry):
    registry.add("untested")
    with pytest.raises(PromotionError, match=r"24 held-out .* at most 0.04, above max_fpr=0.01"):
        ask(registry, 1, max_fpr="0.01")
    assert ask(registry, 1).outcome == "moved"
    registry.add("untested")  # no version was ever tested: that is known, and not held against it
    registry.add("good")
    assert ask(registry, 2).outcome == "moved"
    assert ask(registry, 3).outcome == "moved"


def test_given_pictures_are_compared_on_and_must_be_there(registry, tmp_path):
    registry.add("good", "untested")
    ask(registry, 1, data=registry.zoo.clean)
    with pytest.raises(DataError):
        ask(registry, 2, data=str(tmp_path / "nowhere"))
    assert ask(registry, 2, data=registry.zoo.clean).outcome == "moved"
    with pytest.raises(DataError):  # also where there is nobody to compare with
        ask(registry, 1, to="staging", data=str(tmp_path / "nowhere"))


def test_a_dry_run_shows_everything_and_moves_nothing(registry):
    registry.add("good", "twin", "bad")
    before = registry.state()
    assert ask(registry, 1, dry_run="true").outcome == "would move"
    assert registry.state() == before
    ask(registry, 1)
    before = registry.state()
    result = ask(registry, 2, dry_run="true")
    assert f"production of {registry.name} would point to version 2" in result.summary()
    assert decision(result.run_id)["outcome"] == "would move"
    with pytest.raises(PromotionError, match="is worse"):
        ask(registry, 3, dry_run="true", data=registry.zoo.clean)
    assert registry.state() == before


def spoil_pickle(folder):
    (folder / "notes.bin").write_bytes(b"\x80\x04K\x01.")


def spoil_code(folder):
    (folder / "code").mkdir()
    (folder / "code/extra.py").write_text("")


def spoil_bytes(folder):
    path = folder / "dfm/statistics.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def spoil_loader(folder):
    text = (folder / "MLmodel").read_text()
    (folder / "MLmodel").write_text(text.replace("loader_module: dfm_mlflow", "loader_module: os"))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_pickle, r"holds notes.bin \(pickle\)"),
        (spoil_code, "holds code/"),
        (spoil_bytes, "does not load: .* SHA-256"),
        (spoil_loader, "holds the loader os"),
    ],
)
def test_an_unsafe_or_broken_model_is_never_promoted(registry, tmp_path, spoil, words):
    folder = tmp_path / "model"
    mlflow.artifacts.download_artifacts(registry.zoo.runs["good"].model_uri, dst_path=str(folder))
    assert unsafe_files(folder) == []
    spoil(folder)
    registry.add_folder(folder, "good")
    with pytest.raises(PromotionError, match=words):
        ask(registry, 1, force="true", reason="in a hurry")
    assert registry.aliases == {}


def test_golden_pictures_must_be_there_and_score_as_in_training(registry, tmp_path):
    for kind in ("good", "bad"):
        mlflow.artifacts.download_artifacts(
            registry.zoo.runs[kind].model_uri, dst_path=str(tmp_path / kind)
        )
    registry.add_folder(tmp_path / "bad", "good")  # another model than the run's
    registry.add_folder(tmp_path / "good", None)
    with mlflow.start_run() as run:
        pass
    registry.client.create_model_version(registry.name, str(tmp_path / "good"), run.info.run_id)
    forced = {"force": "true", "reason": "in a hurry"}
    with pytest.raises(PromotionError, match="score otherwise than in training"):
        ask(registry, 1, **forced)
    with pytest.raises(PromotionError, match="names no run"):
        ask(registry, 2, **forced)
    with pytest.raises(PromotionError, match=f"{run.info.run_id} has no {GOLDEN}"):
        ask(registry, 3, **forced)
    assert registry.aliases == {}


def test_golden_pictures_are_what_the_network_saw(registry):
    good = registry.zoo.runs["good"]
    golden = load_golden(good.run_id)
    assert list(golden["split"]) == ["train"] * 4 + ["test"] * 4
    assert set(golden["label"]) == {"good", "hole"}
    assert set(golden["precision"]) == {"fp32"}
    path = mlflow.artifacts.download_artifacts(run_id=good.run_id, artifact_path="scores.parquet")
    known = pd.read_parquet(path)["anomaly_score"].to_numpy()
    for score in golden["anomaly_score"][4:]:
        assert np.abs(known / score - 1).min() < 1e-5
    assert deviation(good.detector, golden) == (pytest.approx(0, abs=1e-5), 1e-4)
    assert deviation(good.detector, golden.assign(device="cuda"))[1] == 2e-2
    moved = golden.assign(nll=golden["nll"] * 1.001)
    assert deviation(good.detector, moved)[0] == pytest.approx(1e-3, rel=0.1)
    assert len(load_golden(registry.zoo.runs["untested"].run_id)) == 8


def test_a_champion_that_cannot_be_loaded_is_no_comparison(registry, tmp_path):
    (tmp_path / "MLmodel").write_text("flavors: {sklearn: {}}\n")
    registry.add_folder(tmp_path, None)
    registry.add("good")
    registry.point("production", 1)
    with pytest.raises(PromotionError, match="comparison with version 1 is not possible: .*load"):
        ask(registry, 2)
    assert ask(registry, 2, force="true", reason="it was broken").forced == ["comparison"]


def test_an_alias_that_moved_during_the_gates_is_left_alone(registry, monkeypatch):
    registry.add("good", "twin")
    ask(registry, 1)
    registry.add("good")
    run_gates = job.run_gates

    def slow_gates(*arguments):
        found = run_gates(*arguments)
        registry.point("production", 3)
        return found

    monkeypatch.setattr(job, "run_gates", slow_gates)
    with pytest.raises(PromotionError, match="pointed to version 1 .* points to version 3 now"):
        ask(registry, 2)
    assert registry.aliases == {"production": 3}
    assert registry.tags(2) == {}
    assert decision(registry.runs()[0].info.run_id)["outcome"] == "overtaken"


def test_two_promotions_at_once_do_not_both_win(registry, monkeypatch):
    registry.add("good", "twin")
    ready, run_gates = threading.Barrier(2), job.run_gates

    def together(*arguments):
        found = run_gates(*arguments)
        ready.wait(60)
        return found

    monkeypatch.setattr(job, "run_gates", together)
    outcomes = {}

    def work(version):
        try:
            outcomes[version] = ask(registry, version).outcome
        except PromotionError as error:
            outcomes[version] = str(error)

    threads = [threading.Thread(target=work, args=(v,)) for v in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(outcomes) == 2
    won = [v for v, outcome in outcomes.items() if outcome == "moved"]
    lost = [text for text in outcomes.values() if text != "moved"]
    assert len(won) <= 1
    known = ("nothing was moved here", "at the same moment")
    assert [t for t in lost if not any(words in t for words in known)] == []


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("to", "latest", "to='latest'"),
        ("to", "V2", "other than latest"),
        ("to", "a.b", "letters"),
        ("version", "one", "number of a version"),
        ("force", "maybe", "true or false"),
        ("margin", "-1", "from 0 to 1"),
        ("max_growth", "inf", "above 0"),
        ("reason", " ", "a text"),
        ("min_images", "0", "at least 1"),
    ],
)
def test_bad_options_get_one_sentence(option, value, words):
    given = {"model": "dfm-x", "version": "1", "to": "production", option: value}
    with pytest.raises(ConfigError, match=words):
        PromoteOptions.parse(given)


def test_what_is_not_registered_starts_no_run(registry):
    with pytest.raises(PromotionError, match="registered model .* cannot be read"):
        ask(registry, 1)
    registry.add("good")
    with pytest.raises(PromotionError, match="has no version 7"):
        ask(registry, 7)
    assert registry.runs() == []


def test_the_command_line_promotes_rolls_back_and_describes(registry):
    registry.add("good", "twin")
    run = CliRunner(catch_exceptions=False).invoke
    command = [
        "promote",
        "--model",
        registry.name,
        "--to",
        "production",
        "--max-slowdown",
        "5",
        "--version",
    ]
    assert "points to version 1; before, to no version" in run(cli, [*command, "1"]).output
    assert run(cli, [*command, "2", "--reason", "twins"]).exit_code == 0
    found = json.loads(
        run(cli, ["describe", f"models:/{registry.name}@production", "--json"]).stdout
    )
    assert (found["version"], found["previous"]) == ("2", {"production": "1"})
    back = run(cli, ["rollback", registry.name, "--alias", "production", "--reason", "no"])
    assert f"production of {registry.name} points to version 1; before, to 2" in back.output
    assert registry.aliases == {"production": 1}


def test_mlflow_run_promotes_in_the_one_run_that_it_opens(registry):
    registry.add("good")
    before = {r.info.run_id for r in registry.client.search_runs(["0"])}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mlflow",
            "run",
            str(ROOT),
            "-e",
            "promote",
            "--env-manager",
            "local",
            "-P",
            f"model={registry.name}",
            "-P",
            "version=1",
            "-P",
            "to=production",
            "-P",
            'reason=it\'s 100 % "tested"',
        ],
        env={**os.environ, "PATH": path},
        cwd=registry.zoo.root,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert registry.aliases == {"production": 1}
    assert registry.tags(1)["reason"] == 'it\'s 100 % "tested"'
    (run,) = [r for r in registry.client.search_runs(["0"]) if r.info.run_id not in before]
    assert run.info.status == "FINISHED"
    assert run.data.params["version"] == run.data.params["resolved_version"] == "1"
    assert decision(run.info.run_id)["outcome"] == "moved"


def test_a_picture_that_nobody_reads_is_no_golden_one(tmp_path):
    from dfm_mlflow.images.item import Item
    from dfm_mlflow.jobs.golden import golden_table

    (tmp_path / "a.png").write_bytes(b"noise")
    table = golden_table(fit(), [Item(tmp_path / "a.png", "stripes", "train", "good")])
    assert table.empty
