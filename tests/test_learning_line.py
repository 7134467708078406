"""A line that learns, played by real commands and a real server on real pictures."""

import re
import runpy
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from dfm_mlflow.cli import cli

EXAMPLE = Path(__file__).resolve().parent.parent / "examples/learning_line.py"
WITHIN = 0.03  # of a model that was trained on clean data


def dfm(*arguments):
    """Run a command as the example does, but in this process: most of its time is imports."""
    done = CliRunner().invoke(cli, list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.timeout(1800)
def test_four_defects_among_forty_are_learned_away_in_two_days(
    real_data, store, tmp_path, monkeypatch, capsys
):
    given = {
        "data": real_data / "data/magnetic_tile",
        "weights": real_data / "weights/resnet18_stem_to_layer3.safetensors",
        "work": tmp_path / "line",
        "test": 30,
        "image-size": 128,
    }
    monkeypatch.setattr(sys, "argv", [EXAMPLE.name, *(f"--{k}={v}" for k, v in given.items())])
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)  # the example sets its own
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    play = runpy.run_path(str(EXAMPLE))["main"]
    monkeypatch.setitem(play.__globals__, "dfm", dfm)
    play()
    printed = capsys.readouterr().out
    row = (
        r"\| (?P<name>[^|]+) \| (?P<n>\d+) \| (?P<recall>[\d.]+) \| (?P<alarms>[\d.]+) \| [\d.]+ \|"
    )
    rows = [match.groupdict() for match in re.finditer(row, printed)]
    assert [row["n"] for row in rows] == ["40", "76", "116", "116"]
    first, _, last, clean = rows
    assert abs(float(last["recall"]) - float(clean["recall"])) <= WITHIN
    assert abs(float(last["alarms"]) - float(clean["alarms"])) <= WITHIN
    assert float(last["recall"]) > float(first["recall"])
    # all verdicts were given, so that the model is that of clean data to the last bit
    assert "0 pictures are in one training set only, and the statistics are the same bytes" in (
        printed
    )
    history = [line.split() for line in printed.splitlines() if re.match(r"[123] +", line)]
    assert [line[0] for line in history] == ["1", "2", "3"]
    assert [line[1] for line in history] == ["-", "-", "production"]
    assert [line[2] for line in history] == ["-", "1", "2"]
