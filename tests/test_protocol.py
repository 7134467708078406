"""The benchmark of the published protocol, end to end on a small folder in MVTec AD's layout."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .detectors import pictures

pytest.importorskip("timm")
ROOT = Path(__file__).resolve().parent.parent


def plant(root, category, seed):
    for place, images in (
        ("train/good", pictures(6, seed)),
        ("test/good", pictures(4, seed + 1)),
        ("test/scratch", pictures(4, seed + 2, defect=True)),
    ):
        folder = root / category / place
        folder.mkdir(parents=True)
        for i, image in enumerate(images):
            (folder / f"{i:03}.png").write_bytes(image)


def run(root, *more):
    command = [sys.executable, ROOT / "benchmarks" / "quality.py", root, "--protocol", "mvtec"]
    given = ["--backbone", "timm:test_vit", "--weights", "random", "--csv", root / "rows.csv"]
    done = subprocess.run(
        [*command, *given, *more],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=560,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done


@pytest.mark.slow
def test_the_protocol_runs_resumes_and_prints_its_table(tmp_path):
    plant(tmp_path, "bottle", 0)
    plant(tmp_path, "grid", 10)
    first = run(tmp_path, "--shots", "1")
    assert first.stderr.count("draw 0") == 2  # a category each
    assert "Not in" in first.stderr
    assert "carpet" in first.stderr
    again = run(tmp_path, "--shots", "1,full")
    assert "1, draw" not in again.stderr.replace("full, draw", "")
    assert again.stderr.count("full, draw 0") == 2
    lines = again.stdout.splitlines()
    assert "| mvtec | 1 | full |" in lines
    (bottle,) = (line for line in lines if line.startswith("| bottle"))
    assert "+-" in bottle.split("|")[2]  # three draws
    assert "+-" not in bottle.split("|")[3]
    assert "SubspaceAD" in again.stdout
    assert "Only 2 of 15 categories" in again.stdout
    rows = (tmp_path / "rows.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * 3 + 2
