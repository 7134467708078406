"""A line that learns, played by real commands and a real server on real pictures."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dfm_mlflow.config.serving import ServingSettings

ROOT = Path(__file__).resolve().parent.parent
WITHIN = 0.03  # of a model that was trained on clean data


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.skipif("log_to" not in ServingSettings.model_fields, reason="no server writes a log")
@pytest.mark.timeout(1800)
def test_four_defects_among_forty_are_learned_away_in_two_days(real_data, tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "examples/learning_line.py"),
            f"--data={real_data / 'data/magnetic_tile'}",
            f"--weights={real_data / 'weights/resnet18_stem_to_layer3.safetensors'}",
            f"--work={tmp_path / 'line'}",
            "--test=30",
            "--image-size=128",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=1700,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout)
    row = (
        r"\| (?P<name>[^|]+) \| (?P<n>\d+) \| (?P<recall>[\d.]+) \| (?P<alarms>[\d.]+) \| [\d.]+ \|"
    )
    rows = [match.groupdict() for match in re.finditer(row, done.stdout)]
    assert [row["n"] for row in rows] == ["40", "76", "116", "116"]
    first, _, last, clean = rows
    assert abs(float(last["recall"]) - float(clean["recall"])) <= WITHIN
    assert abs(float(last["alarms"]) - float(clean["alarms"])) <= WITHIN
    assert float(last["recall"]) > float(first["recall"])
    # all verdicts were given, so that the model is that of clean data to the last bit
    assert "0 pictures are in one training set only, and the statistics are the same bytes" in (
        done.stdout
    )
    history = [line.split() for line in done.stdout.splitlines() if re.match(r"[123] +", line)]
    assert [line[0] for line in history] == ["1", "2", "3"]
    assert [line[1] for line in history] == ["-", "-", "production"]
    assert [line[2] for line in history] == ["-", "1", "2"]
