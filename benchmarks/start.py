"""Processor seconds of what a user waits for: imports, a whole `train`, `score`, a server's start.

    python benchmarks/start.py --weights resnet18.safetensors
    python benchmarks/start.py --weights FILE --before WORKTREE [--before-python VENV/bin/python]

Trains on 40 pictures of 512x512 pixels that are drawn here, with 20 to test on, and with an MLflow
store that exists. With ``--before``, another checkout takes turns with this one, each with a store
and models of its own, and the last column is the ratio of medians. Processor seconds (user and
system, of all children) are compared, since they hardly change with what else a machine does; the
seconds on the clock stand beside them. ``--imports`` measures the imports alone;
one round leaves the new default out.
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np
import psutil
from PIL import Image
from scipy.ndimage import gaussian_filter

ROOT = Path(__file__).resolve().parent.parent
IMPORTS = {
    "import torch, mlflow": "torch, mlflow",
    "import dfm_mlflow": "dfm_mlflow",
    "import of train": "dfm_mlflow.jobs.train",
    "import of score": "dfm_mlflow.jobs.score",
    "import of a server": "dfm_mlflow.serving.pyfunc",  # in 0.1 a part of its plugin
}
PRESETS = ("anomalib", "default")


@dataclass
class Version:
    """One of the versions that are compared, and what it took: (processor, clock) seconds."""

    name: str
    python: str
    checkout: Path
    home: Path
    taken: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """Of its processes."""
        return {
            **os.environ,
            "PYTHONPATH": str(self.checkout),
            "PATH": f"{Path(self.python).parent}:{os.environ['PATH']}",
            "MLFLOW_TRACKING_URI": f"sqlite:///{self.home}/mlflow.db",
            "DFM_CACHE_HOME": str(self.home / "cache"),
        }

    def note(self, what: str, seconds: tuple[float, float]) -> None:
        """Keep what something took."""
        self.taken.setdefault(what, []).append(seconds)
        click.echo(f"{self.name}: {what}: {seconds[0]:.2f} ({seconds[1]:.1f})", err=True)

    def load(self, what: str, modules: str) -> None:
        """Import modules."""
        if not (self.checkout / "dfm_mlflow" / "serving").exists():
            modules = modules.replace("dfm_mlflow.serving", "dfm_mlflow.mlflow_plugin")
        self.run(what, "-c", f"import {modules}")

    def run(self, what: str, *command: str) -> None:
        """Run this version's Python with a command to its end."""
        before, start = os.times(), time.perf_counter()
        done = subprocess.run(
            [self.python, *command],
            env=self.environment,
            cwd=self.home,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise click.ClickException(f"{self.name}: {what} failed:\n{done.stderr[-2000:]}")
        after = os.times()
        used = after.children_user + after.children_system
        used -= before.children_user + before.children_system
        self.note(what, (used, time.perf_counter() - start))


def draw(folder: Path, n: int = 40, side: int = 512) -> None:
    """Draw a surface: pictures to train on, and good and bad ones to test on."""
    rng = np.random.default_rng(0)
    for split, label, count in (("train", "good", n), ("test", "good", 10), ("test", "bad", 10)):
        place = folder / split / label
        place.mkdir(parents=True)
        for i in range(count):
            noise = rng.normal(size=(side, side))
            grey = 128 + 60 * gaussian_filter(noise, 2) + 300 * gaussian_filter(noise, 12)
            if label == "bad":
                y, x = rng.integers(60, side - 60, 2)
                grey[y - 20 : y + 20, x - 4 : x + 4] -= 70
            Image.fromarray(grey.clip(0, 255).astype(np.uint8)).save(place / f"{i:03}.png")


def train(version: Version, data: Path, preset: str, weights: str) -> None:
    network = () if preset == "default" else ("--preset", preset)
    version.run(
        f"train, preset {preset}",
        *(
            "-m",
            "dfm_mlflow",
            "train",
            "--data",
            str(data.parent),
            "--category",
            "surface",
            *network,
        ),
        *("--backbone", "resnet18", "--weights", weights, "--registered-model", preset),
        *("--cache", "false"),
    )


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def serve(version: Version, preset: str) -> None:
    """Start a server, and stop it when it answers /ping."""
    port = free_port()
    start = time.perf_counter()
    command = ["-m", "mlflow", "models", "serve", "-m", f"models:/{preset}/1", "-p", str(port)]
    server = subprocess.Popen(
        [version.python, *command, "--env-manager", "local"],
        env=version.environment,
        cwd=version.home,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    root = psutil.Process(server.pid)
    try:
        while True:
            if server.poll() is not None or time.perf_counter() > start + 300:
                raise click.ClickException(f"{version.name}: the server did not start")
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5)
                break
            except OSError:
                time.sleep(0.05)
        clock = time.perf_counter() - start
        family = [root, *root.children(recursive=True)]
        times = [p.cpu_times() for p in family]
        own = sum(t.user + t.system for t in times)
        ended = times[0].children_user + times[0].children_system  # helpers that are gone
        version.note(f"serve until /ping, preset {preset}", (own + ended, clock))
    finally:
        if server.poll() is None:
            for process in reversed([root, *root.children(recursive=True)]):
                process.kill()
        server.wait()


def turns(rounds: int, versions: list[Version], work: Callable[[Version], None]) -> None:
    for _ in range(rounds):
        for version in versions:
            work(version)


def measure(versions: list[Version], data: Path, weights: str, rounds: int, trains: int) -> None:
    picture = str(sorted((data / "test" / "bad").iterdir())[0])
    for preset in PRESETS[:1] if rounds == 1 else PRESETS:
        turns(trains, versions, lambda v, p=preset: train(v, data, p, weights))
    for preset in PRESETS[:1] if rounds == 1 else PRESETS:
        arguments = ("score", "--model", f"models:/{preset}/1", picture, "--output", "x.parquet")
        what = f"score one picture, preset {preset}"
        turns(rounds, versions, lambda v, w=what, a=arguments: v.run(w, "-m", "dfm_mlflow", *a))
        turns(rounds, versions, lambda v, p=preset: serve(v, p))


def table(versions: list[Version]) -> list[dict[str, object]]:
    """Print medians and ratios; gives them by what was measured."""
    now, *others = versions
    click.echo(f"| processor s (clock s) | {' | '.join(v.name for v in versions)} | ratio |")
    click.echo("|---|" + "---|" * (len(versions) + 1))
    rows: list[dict[str, object]] = []
    for what in now.taken:
        found = [[statistics.median(s[i] for s in v.taken[what]) for i in (0, 1)] for v in versions]
        row: dict[str, object] = {"what": what}
        row |= {v.name: f[0] for v, f in zip(versions, found, strict=True)}
        row["ratio"] = found[0][0] / found[1][0] if others else None
        ratio = f"{row['ratio']:.2f}" if others else ""
        rows.append(row)
        cells = " | ".join(f"{cpu:.2f} ({clock:.1f})" for cpu, clock in found)
        click.echo(f"| {what} | {cells} | {ratio} |")
    base = statistics.median(s[0] for s in now.taken["import torch, mlflow"])
    for what in IMPORTS:
        own = statistics.median(s[0] for s in now.taken[what])
        click.echo(f"{what}: {own / base:.2f} of `import torch, mlflow`")
    return rows


@click.command(help=__doc__)
@click.option("--weights", default="random", show_default=True, help="Of ResNet-18: a file.")
@click.option("--before", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--before-python", default=sys.executable, help="Of the other checkout.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--trains", default=3, show_default=True, help="Turns of `train`.")
@click.option("--imports", is_flag=True, help="Measure the imports alone.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Also write the table here.")
def main(
    weights: str,
    before: Path | None,
    before_python: str,
    rounds: int,
    trains: int,
    imports: bool,
    file: Path | None,
) -> None:
    weights = weights if weights == "random" else str(Path(weights).resolve())
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        versions = [Version("now", sys.executable, ROOT, scratch / "now")]
        if before:
            versions.append(Version("before", before_python, before.resolve(), scratch / "before"))
        for version in versions:
            version.home.mkdir()
        for what, modules in IMPORTS.items():
            turns(rounds, versions, lambda v, w=what, m=modules: v.load(w, m))
        if not imports:
            draw(scratch / "surface")
            make = "import mlflow; mlflow.set_experiment('first')"
            for version in versions:
                version.run("the store is made", "-c", make)
                del version.taken["the store is made"]
            measure(versions, scratch / "surface", weights, rounds, trains)
        rows = table(versions)
        if file:
            file.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
