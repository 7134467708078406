"""Ratios of speed and memory against anomalib's DFM, and where the time goes.

    python benchmarks/speed.py CATEGORY_DIR --weights FILE

CATEGORY_DIR has MVTec's layout (train/good, test/<label>). Both sides use ResNet-18 with the same
weights, layer3, pooled by 2, 256x256, FRE. Each measurement is a process of its own; the two sides
take turns, and ratios are of medians; memory is looked at in a turn of its own. Ours includes the
calibration by 20 held-out folds, which anomalib does not have; its threshold needs defects, by
default half of the test pictures. The preset ``default``, without copies, is measured beside it;
the memory is that of the peer's method.
``--scale`` prints the cost of 100, 1,000 and 10,000 pictures, ``--phases CATEGORY`` the phases of
a whole ``train``, as `mlflow run` does it.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
from anomalib_env import DEFAULT, anomalib_python

HERE = Path(__file__).parent
VALIDATION = ("default", "none")


def measured(python: Path | str, script: str, *arguments: object, watch: bool = False) -> dict:
    """Run a measuring script to its end; the JSON of its last line.

    With `watch` its peak memory, too, in MB; looking stops the process for milliseconds each time,
    so the times of such a run do not count.
    """
    command = [str(python), str(HERE / script), *map(str, arguments)]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, text=True)
        peak = 0.0
        while watch and process.poll() is None:
            peak = max(peak, memory(process.pid))
            time.sleep(0.1)
        process.wait()
        for file in (out, err):
            file.seek(0)
        if process.returncode:
            raise click.ClickException(f"{script} failed:\n{err.read()[-2000:]}")
        found = json.loads(out.read().splitlines()[-1])
        return {"memory": peak} if watch else found


def memory(pid: int) -> float:
    """Megabytes of a process and its children, pages they share counted once."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        children = [
            c
            for task in Path(f"/proc/{pid}/task").iterdir()
            for c in (task / "children").read_text().split()
        ]
    except OSError:  # it has just ended
        return 0.0
    own = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return own / 1024 + sum(memory(int(child)) for child in children)


def median(rows: list[dict], name: str) -> float:
    return statistics.median(row[name] for row in rows)


def compare(category: Path, weights: Path, venv: Path, rounds: int, memory: bool) -> None:
    python = anomalib_python(venv)
    ours: list[dict] = []
    theirs: dict[str, list[dict]] = {v: [] for v in VALIDATION}
    with tempfile.TemporaryDirectory() as name:
        for turn in range(rounds + memory):
            watch = turn == rounds  # once more, for the memory
            click.echo(f"round {turn + 1} of {rounds + memory}", err=True)
            asked = ("compare", category, weights, *(("default",) if watch else ()))
            ours.append(measured(sys.executable, "speed_ours.py", *asked, watch=watch))
            for kind in VALIDATION:
                theirs[kind].append(
                    measured(
                        python,
                        "anomalib_speed.py",
                        category,
                        "--weights",
                        weights,
                        "--validation",
                        kind,
                        "--folder",
                        Path(name) / f"{turn}-{kind}",
                        watch=watch,
                    )
                )
    for rows in (ours, *theirs.values()):
        watched = rows.pop() if memory else {"memory": float("nan")}
        rows[:] = [row | watched for row in rows]
    first = ours[0]
    sides = [f"ours ({first['precision']})", "ours (fp32)", "default without copies"]
    sides += ["anomalib", "no validation"]
    click.echo(f"| | {' | '.join(sides)} |")
    click.echo("|---" * (len(sides) + 1) + "|")
    columns = [
        [
            {k.removesuffix("_" + p): v for k, v in row.items() if k.endswith("_" + p)} | row
            for row in ours
        ]
        for p in ("auto", "fp32", "default")
    ]
    columns += [theirs[kind] for kind in VALIDATION]
    for title, value in (
        (f"fit of {first['n_train']} pictures, s", lambda r: r["fit"]),
        ("test pictures a second", lambda r: r["n_test"] / r["score"]),
        ("one decoded picture to its score, ms", lambda r: 1000 * r["latency"]),
        ("peak memory with worker processes, MB", lambda r: r["memory"]),
    ):
        cells = [f"{statistics.median(map(value, rows)):.3g}" for rows in columns]
        click.echo(f"| {title} | {' | '.join(cells)} |")
    network(first)
    click.echo(f"warm cache: features, fit, calibration and test in {median(ours, 'warm'):.2f} s")
    auto, default = columns[0], columns[2]

    def ratio(name: str, better_is_less: bool, kind: str, ours: list[dict] = auto) -> str:
        def of(rows: list[dict]) -> float:
            if name == "score":
                return statistics.median(r["n_test"] / r["score"] for r in rows)
            return median(rows, name)

        a, b = of(ours), of(theirs[kind])
        return f"{b / a if better_is_less else a / b:.1f}x"

    click.echo(f"fit: {ratio('fit', True, 'default')}")
    click.echo(f"fit without validation: {ratio('fit', True, 'none')}")
    click.echo(f"fit of the default without copies: {ratio('fit', True, 'default', default)}")
    click.echo(f"the same without validation: {ratio('fit', True, 'none', default)}")
    click.echo(f"score: {ratio('score', False, 'default')}")
    click.echo(f"latency: {ratio('latency', True, 'default')}")
    click.echo(f"memory: {median(auto, 'memory') / median(theirs['default'], 'memory'):.2f}x")


def network(row: dict) -> None:
    """Print what the network reaches of the machine's matrix products."""
    for kind in dict.fromkeys(["fp32", row["precision"]]):
        found = row["network"][kind]
        click.echo(
            f"network in {kind}: {found['ms']:.2f} ms a picture, {found['gflops']:.0f} GFLOP/s of "
            f"{found['peak']:.0f} in a matrix product: {found['gflops'] / found['peak']:.0%}"
        )


def mlflow_run(category: Path, weights: Path, name: str) -> float:
    """Seconds of the whole command, with a store and a cache that are empty."""
    data = str(category.parent.resolve()) if category.name == name else "auto"
    with tempfile.TemporaryDirectory() as scratch:
        store = {
            "MLFLOW_TRACKING_URI": f"sqlite:///{scratch}/mlflow.db",
            "DFM_CACHE_HOME": scratch,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        start = time.perf_counter()
        subprocess.run(
            [
                "mlflow",
                "run",
                str(HERE.parent),
                "--env-manager",
                "local",
                "-P",
                f"category={name}",
                "-P",
                f"data={data}",
                "-P",
                "backbone=resnet18",
                "-P",
                f"weights={weights.resolve()}",
            ],
            env={**os.environ, **store},
            check=True,
            capture_output=True,
            cwd=scratch,
        )
        return time.perf_counter() - start


@click.command(help=__doc__)
@click.argument("category", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--weights", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--rounds", default=3, show_default=True, help="Turns of both sides.")
@click.option(
    "--anomalib-venv",
    "venv",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT,
    show_default=".anomalib-venv",
)
@click.option("--memory/--no-memory", default=True, help="Look at the memory, in a turn more.")
@click.option("--scale", is_flag=True, help="Only the cost of 100, 1,000 and 10,000 pictures.")
@click.option("--phases", help="Only the phases of training this category (mono, or of the data).")
def main(
    category: Path,
    weights: Path,
    rounds: int,
    venv: Path,
    memory: bool,
    scale: bool,
    phases: str | None,
) -> None:
    if scale:
        for n in (100, 1000, 10000):
            row = measured(sys.executable, "speed_ours.py", "scale", category, weights, n)
            row |= measured(
                sys.executable, "speed_ours.py", "scale", category, weights, n, watch=True
            )
            click.echo(
                f"{n:6d} pictures: {row['seconds']:7.2f} s, {1000 * row['seconds'] / n:.2f} "
                f"ms each, {row['memory']:.0f} MB at most"
            )
    elif phases:
        row = measured(sys.executable, "speed_ours.py", "phases", category, weights, phases)
        whole = mlflow_run(category, weights, phases)
        rows = [*row["phases"], ("MLflow: mlflow run around it", whole - row["total"])]
        for name, seconds in sorted(rows, key=lambda r: -r[1]):
            click.echo(f"{name:48s} {seconds:7.2f} s {seconds / whole:6.1%}")
    else:
        compare(category, weights, venv, rounds, memory)


if __name__ == "__main__":
    main()
