import getpass
import json
import os
import subprocess
import sys
import threading
from datetime import datetime, timezone
from pathlib import Path

import mlflow
import pytest
from click.testing import CliRunner

from dfm_mlflow.cli import cli
from dfm_mlflow.config import PromoteOptions
from dfm_mlflow.errors import ConfigError, DataError, PromotionError
from dfm_mlflow.registry import promote as job
from dfm_mlflow.registry.promote import promote

pytestmark = pytest.mark.integration  # whole jobs, one after the other

ROOT = Path(__file__).parent.parent.parent


def ask(registry, version, to="production", **more):
    # the machine that runs the tests may do something else meanwhile
    given = {"model": registry.name, "version": str(version), "to": to, "max_slowdown": "99"}
    given |= {"min_images": "6", **more}  # the zoo has 8 good and 6 defective test pictures
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
    assert [g["name"] for g in written["gates"]] == [
        *("artifact", "golden", "metrics", "recall", "false_alarms", "comparison")
    ]
    assert json.loads(tags["figures"])["recall"] == 1
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
    assert result.record()["previous"] == "1"
    assert "points to version 2; before, to version 1." in result.summary()


REFUSALS = {
    "worse": (
        "bad",
        {"data": "clean"},
        {"metrics", "recall", "comparison", "threshold"},
        "is below min_auroc=0.8.*Recall 0.*is worse than version 1 on 8 good and 6 defective",
    ),
    "undecided": (
        "twin",
        {"data": "mixed", "min_auroc": "0", "min_recall": "0", "min_images": "20"},
        {"false_alarms", "comparison", "threshold"},
        "Too few pictures to decide .* 8 good and 6 defective pictures; at least 20",
    ),
    "uncertain": (
        "bad",
        {"data": "mixed", "min_auroc": "0", "min_recall": "0"},
        {"comparison", "threshold"},
        "Too few pictures to decide .* a difference between .* lies within",
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


def test_force_needs_a_reason_and_leaves_both_on_the_record(registry, caplog):
    registry.add("good", "bad")
    ask(registry, 1)
    with pytest.raises(ConfigError, match="force=true needs a reason"):
        ask(registry, 2, data=registry.zoo.clean, force="true")
    result = ask(registry, 2, data=registry.zoo.clean, force="true", reason="line 3 stands still")
    assert result.forced == ["metrics", "recall", "comparison", "threshold"]
    names = ",".join(result.forced)
    assert f"Forced past the gates {names}: line 3 stands still" in caplog.text
    tags = registry.tags(2)
    assert (tags["forced"], tags["reason"]) == (names, "line 3 stands still")
    assert decision(result.run_id)["forced"] == result.forced
    assert "FORCED  comparison" in result.summary()
    assert registry.aliases == {"production": 2}


def test_without_test_pictures_the_held_out_rate_decides(registry):
    registry.add("untested")
    with pytest.raises(PromotionError, match=r"24 held-out .* at most 0.04, above max_fpr=0.01"):
        ask(registry, 1, max_fpr="0.01")
    assert ask(registry, 1).outcome == "moved"
    registry.add("untested")  # no version was ever tested: that is known, and no reproach
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
        "99",
        "--min-images",
        "6",
        "--version",
    ]
    moved = " ".join(run(cli, [*command, "1"]).output.split())
    assert "points to version 1; before, to no version" in moved
    assert run(cli, [*command, "2", "--reason", "twins"]).exit_code == 0
    found = json.loads(
        run(cli, ["describe", f"models:/{registry.name}@production", "--json"]).stdout
    )
    assert (found["version"], found["previous"]) == ("2", {"production": "1"})
    back = run(cli, ["rollback", registry.name, "--alias", "production", "--reason", "no"])
    assert f"production of {registry.name} points to version 1; before, to 2" in " ".join(
        back.output.split()
    )
    assert registry.aliases == {"production": 1}


@pytest.mark.slow
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


def test_a_chain_of_small_losses_ends_at_the_best_that_ever_held_the_alias(registry, monkeypatch):
    """Version 3 is no worse than 2, which was forced past the gates, but worse than 1."""
    registry.add("good", "bad", "bad")
    ask(registry, 1, data=registry.zoo.clean)
    ask(registry, 2, data=registry.zoo.clean, force="true", reason="line 3 stands still")
    with pytest.raises(PromotionError, match="version 1, the best that ever held production") as e:
        ask(registry, 3, data=registry.zoo.clean, min_auroc="0", min_recall="0")
    written = decision(registry.runs()[0].info.run_id)
    failed = {g["name"] for g in written["gates"] if not g["passed"]}
    assert failed == {"best_comparison", "best_threshold"}
    assert "version 2" not in str(e.value)


def test_twenty_of_each_are_the_default_and_fewer_need_force(registry):
    registry.add("good", "twin")
    ask(registry, 1)
    given = {"model": registry.name, "version": "2", "to": "production", "max_slowdown": "99"}
    with pytest.raises(PromotionError, match="at least 20 of each are needed"):
        promote(PromoteOptions.parse(given))
    forced = promote(
        PromoteOptions.parse(given | {"force": "true", "reason": "14 are all we have"})
    )
    assert forced.forced == ["comparison", "threshold"]


def test_the_run_lies_beside_the_one_that_made_the_version(registry, monkeypatch):
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID", raising=False)
    registry.add("good")
    with pytest.raises(ConfigError, match="is version 1 and version=2 another"):
        ask(registry, 2, model=f"models:/{registry.name}/1")
    result = ask(registry, "auto", model=f"models:/{registry.name}/1")
    assert (result.model, result.version) == (registry.name, "1")
    assert mlflow.get_run(result.run_id).info.experiment_id == "0"  # that of the zoo
    registry.add("good")
    elsewhere = ask(registry, 2, to="staging")
    assert mlflow.get_run(elsewhere.run_id).info.experiment_id == "0"
