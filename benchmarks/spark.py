"""Scoring and fitting on Spark with one core and with two: equal results, speed-up, cost of a part.

    python benchmarks/spark.py

Draws pictures of 1 Mpx, saves a detector of them (the default preset, random weights), and on
``local[1]`` and ``local[2]`` scores them with ``mapInPandas``, as ``score`` does, and with MLflow's
``spark_udf``, and fits a detector to them. Each master has a process of its own, bound to as
many processors as it has cores: else the JVM, the driver and threads that decode take the second
one beside a single task. A first small job pays for imports and workers. Seconds of CPU are those
of all processes.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import click
import numpy as np
import pandas as pd
from PIL import Image

SIDE = 1024
N_PARTS = 8
RUNS = ("mapInPandas", "spark_udf", "fit")


def draw(folder: Path, n: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE]
    for i in range(n):
        base = 128 + 50 * np.sin(x / 40 + rng.uniform(0, 0.5)) + 20 * np.cos(y / 70 + rng.uniform())
        grey = (base + rng.normal(0, 4, base.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(np.repeat(grey[..., None], 3, 2)).save(folder / f"{i:05d}.jpg", quality=90)


def options():
    from dfm_mlflow.config import Options

    given = {
        "category": "drawn",
        "weights": "random",
        "device": "cpu",
        "cache": "false",
        "registered_model": "none",
    }
    return Options.parse(given).resolve()


def save_model(pictures: Path, target: Path) -> None:
    import dfm_mlflow
    from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
    from dfm_mlflow.network.builder import build_extractor

    extractor, weights, resolved = build_extractor(options())
    found = extractor.extract(sorted(pictures.iterdir()))
    detector = AnomalyDetector.fit(resolved, extractor, found, ["drawn"] * len(found.kept), weights)
    dfm_mlflow.save_model(detector, str(target))


@click.command()
@click.option("--images", default=160, show_default=True)
@click.option("--worker", nargs=3, hidden=True)
def main(images: int, worker: tuple[str, str, str] | None) -> None:
    """Print a Markdown table."""
    if worker:
        print(json.dumps(measure(*worker)))
        return
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        draw(root / "few", 24)
        draw(root / "all", images)
        save_model(root / "few", root / "model")
        found = {}
        for master in ("local[1]", "local[2]"):
            command = [sys.executable, __file__, "--worker", master, name, master[6]]
            processors = sorted(os.sched_getaffinity(0))[: int(master[6])]
            output = subprocess.run(
                command,
                check=True,
                stdout=subprocess.PIPE,
                text=True,
                preexec_fn=partial(os.sched_setaffinity, 0, processors),
            ).stdout
            found[master] = json.loads(output.splitlines()[-1])
    click.echo(
        "| work | cores | s | pictures/s | CPU s a picture | s of a core a part | speed-up |"
    )
    click.echo("|---|---|---|---|---|---|---|")
    for work in RUNS:
        for cores, master in enumerate(found, 1):
            seconds, cpu = found[master][work]
            parts = N_PARTS if work != "fit" else 2 * cores
            click.echo(
                f"| {work} | {cores} | {seconds:.1f} | {images / seconds:.1f} | {cpu / images:.3f} "
                f"| {seconds * cores / parts:.1f} "
                f"| {found['local[1]'][work][0] / seconds:.2f} |"
            )
    one, two = (found[m]["scores"] for m in found)
    same = {
        work: float(np.abs(np.array(one[work]) / np.array(two[work]) - 1).max()) for work in one
    }
    click.echo(f"\nlargest relative difference of scores between the two masters: {same}")
    udf = np.abs(np.array(one["mapInPandas"]) / np.array(one["spark_udf"]) - 1).max()
    click.echo(f"and between mapInPandas and spark_udf: {udf:.1g}")


def measure(master: str, folder: str, name: str) -> dict:
    """Run everything on one master; gives seconds, seconds of CPU, and scores."""
    os.environ.update(PYSPARK_PYTHON=sys.executable, DFM_CACHE_HOME=f"{folder}/cache{name}")
    import mlflow
    from pyspark.sql import SparkSession
    from pyspark.sql.functions import struct

    import dfm_mlflow
    from dfm_mlflow.config import ScoreOptions
    from dfm_mlflow.data.item import Item
    from dfm_mlflow.jobs.score import score
    from dfm_mlflow.network.builder import build_extractor
    from dfm_mlflow.scores import parts
    from dfm_mlflow.spark.fit import fit_on_spark

    root = Path(folder)
    images = sorted((root / "all").iterdir())
    size = sum(path.stat().st_size for path in images)
    spark = (
        SparkSession.builder.master(master)
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.driver.memory", "1g")
        .config("spark.sql.files.openCostInBytes", 0)
        .config("spark.sql.files.maxPartitionBytes", size // N_PARTS + 1)
        .getOrCreate()
    )
    parts.PICTURES = -(-len(images) // N_PARTS)

    def by_job(source: str, target: str) -> None:
        given = {
            "model": f"{folder}/model",
            "images": f"{folder}/{source}",
            "output": target,
            "engine": "spark",
        }
        score(ScoreOptions.parse(given), session=spark)

    def by_udf(source: str, target: str) -> None:
        udf = mlflow.pyfunc.spark_udf(
            spark,
            f"{folder}/model",
            env_manager="local",
            result_type="anomaly_score double, p_value double, error string",
        )
        read = spark.read.format("binaryFile").load(f"{folder}/{source}")
        columns = read.select("path", struct(read.content.alias("image")).alias("row"))
        scored = columns.select("path", udf(columns.row.image.alias("image")).alias("found"))
        scored.select("path", "found.*").write.parquet(target)

    def fit(source: str, target: str) -> None:
        items = [Item(p, "drawn", "train", "good") for p in sorted((root / source).iterdir())]
        extractor, weights, resolved = build_extractor(options())
        detector, _, _ = fit_on_spark(
            resolved, extractor, items, weights, lambda extraction: None, session=spark
        )
        if source == "all":
            dfm_mlflow.save_model(detector, target)

    result: dict = {"scores": {}}
    for work, run in zip(RUNS, (by_job, by_udf, fit), strict=True):
        run("few", f"{folder}/{name}-{work}-few.parquet")
        target = f"{folder}/{name}-{work}.parquet"
        before, start = cpu_of_children(), time.perf_counter()
        run("all", target)
        result[work] = (time.perf_counter() - start, cpu_of_children() - before)
        print(master, work, result[work], file=sys.stderr)
        if work == "fit":
            table = dfm_mlflow.load_model(target).score(images[:40])
        else:
            table = pd.read_parquet(target)
            table = table.assign(name=table["path"].str[-9:]).sort_values("name")
        result["scores"][work] = table["anomaly_score"].tolist()
    spark.stop()
    return result


def cpu_of_children() -> float:
    """Seconds of CPU of this process and of all below it, Spark's JVM and workers included."""
    total, below = 0.0, {os.getpid()}
    stats = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            stats[int(entry.name)] = (int(fields[1]), sum(map(int, fields[11:15])))
    for _ in range(8):  # generations
        below |= {pid for pid, (parent, _) in stats.items() if parent in below}
    total = sum(ticks for pid, (_, ticks) in stats.items() if pid in below)
    return total / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
