"""Time and memory of fitting, against the singular value decomposition of the same array.

    python benchmarks/solvers.py

Rows are low rank plus noise, in float64. Each figure is the median of 5 in turn (1 for the
largest); memory is what NumPy allocates at its peak beside the array. Prints a Markdown table.
"""

import statistics
import time
import tracemalloc
from collections.abc import Callable

import click
import numpy as np

from dfm_mlflow.core.crossfit import assign_folds, crossfit
from dfm_mlflow.core.dfm import DFM
from dfm_mlflow.core.solvers import fit_subspace

SHAPES = ((400, 16384), (400, 2048), (4000, 512), (6000, 5000))


def rows(n: int, d: int, rank: int = 100, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    spread = np.linspace(3, 0.5, rank)[:, None]
    return rng.normal(size=(n, rank)) @ (spread * rng.normal(size=(rank, d))) + rng.normal(
        size=(n, d)
    )


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def peak_copies(n: int, d: int) -> float:
    """Largest memory that fitting holds beside the array, in copies of it, basis included."""
    x = rows(n, d)
    tracemalloc.start()
    DFM().fit(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / x.nbytes


@click.command()
@click.option("--repeats", default=5, show_default=True)
@click.option("--large/--no-large", default=True, help="Include 6000 x 5000.")
def main(repeats: int, large: bool) -> None:
    """Print the table."""
    click.echo(
        "| n x D | svd, s | subspace, s | DFM, s | DFM / svd | 20 folds held out, s | peak |"
    )
    click.echo("|---|---|---|---|---|---|---|")
    for n, d in SHAPES if large else SHAPES[:-1]:
        x = rows(n, d)
        jobs = {
            "svd": lambda x=x: np.linalg.svd(x - x.mean(axis=0), full_matrices=False),
            "subspace": lambda x=x: fit_subspace(x, 0.97),
            "dfm": lambda x=x: DFM().fit(x),
            "folds": lambda x=x: crossfit(x, assign_folds(len(x), 20), 0.97).residual(),
        }
        times = {name: [] for name in jobs}
        for _ in range(repeats if n < 6000 else 1):
            for name, job in jobs.items():
                times[name].append(seconds(job))
        svd, subspace, dfm, folds = (statistics.median(times[name]) for name in jobs)
        ratio = statistics.median(a / b for a, b in zip(times["dfm"], times["svd"], strict=True))
        click.echo(
            f"| {n} x {d:,} | {svd:.2f} | {subspace:.2f} | {dfm:.2f} | {ratio:.2f} | {folds:.2f} "
            f"| {peak_copies(n, d):.1f} copies |"
        )


if __name__ == "__main__":
    main()
