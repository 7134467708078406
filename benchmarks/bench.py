"""The short form of the speed benchmarks, for `make bench`: one JSON, to hold two versions apart.

    python benchmarks/bench.py [--weights FILE] [--before WORKTREE] [--output bench.json]

Runs ``start.py`` with one turn of each, ``decode.py`` with three pictures, our half of ``speed.py``
(fit, score, latency, network) on the drawn category and ``serving.py`` with few requests, each a
process of its own, and writes what they printed and measured, with the processor's name. Ratios in
one file compare; seconds of two machines do not. ``history.md`` has a row a release.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
from start import draw

import dfm_mlflow

HERE = Path(__file__).parent


def processor() -> str:
    """Name of the processor, as Linux has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((x.split(": ", 1)[1] for x in lines if x.startswith("model name")), "unknown")


def run(name: str, *arguments: str) -> dict[str, object]:
    """Run one benchmark to its end: its lines, and the seconds that it took."""
    click.echo(f"{name} ...", err=True)
    start = time.perf_counter()
    command = [sys.executable, str(HERE / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    failed = {"failed": done.stderr[-2000:]} if done.returncode else {}
    return {
        "lines": done.stdout.splitlines(),
        "seconds": round(time.perf_counter() - start, 1),
        **failed,
    }


@click.command(help=__doc__)
@click.option("--weights", default="random", show_default=True, help="Of ResNet-18: a file.")
@click.option("--before", help="Another checkout, whose start takes turns with this one's.")
@click.option("--output", default="bench.json", show_default=True)
def main(weights: str, before: str | None, output: str) -> None:
    weights = weights if weights == "random" else str(Path(weights).resolve())
    found: dict[str, object] = {
        "version": dfm_mlflow.__version__,
        "processor": processor(),
        "cores": os.cpu_count(),
        "date": time.strftime("%Y-%m-%d"),
    }
    with tempfile.TemporaryDirectory() as name:
        rows, surface = Path(name) / "start.json", Path(name) / "surface"
        draw(surface)
        other = ("--before", before) if before else ()
        short = ("--rounds", "1", "--trains", "1", "--json", str(rows))
        found["start"] = run("start.py", "--weights", weights, *other, *short)
        if rows.exists():
            found["start"] |= {"rows": json.loads(rows.read_text())}  # type: ignore[operator]
        found["decode"] = run("decode.py", "--pictures", "3")
        found["speed"] = run("speed_ours.py", "compare", str(surface), weights)
        served = ("--preset", "anomalib", "--requests", "10", "--rounds", "1", "--form", "parquet")
        found["serving"] = run("serving.py", "--weights", weights, *served)
    Path(output).write_text(json.dumps(found, indent=1) + "\n")
    failed = [k for k, v in found.items() if isinstance(v, dict) and "failed" in v]
    click.echo(f"{output}: {', '.join(failed) + ' failed' if failed else 'all were measured'}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
