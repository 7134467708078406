"""Time and memory of fitting rows that never are in memory together.

    python benchmarks/scale.py

Streams 10,000 to 1,000,000 rows of 512 features from a generator through ``DFM.partial_fit`` and
prints seconds, and the process's largest memory after each size; run from small to large, so that
growth is visible. Generating the rows is timed apart.
"""

import resource
import time
from collections.abc import Iterator

import click
import numpy as np

from dfm_mlflow.core.dfm import DFM


def batches(n: int, d: int, size: int = 1000, seed: int = 0) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    structure = rng.normal(size=(40, d)).astype(np.float32) * 2
    for _ in range(n // size):
        hidden = rng.standard_normal((size, 40), dtype=np.float32)
        yield hidden @ structure + rng.standard_normal((size, d), dtype=np.float32)


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@click.command()
@click.option("--features", default=512, show_default=True)
@click.option(
    "--rows",
    "sizes",
    multiple=True,
    type=int,
    default=(10_000, 100_000, 1_000_000),
    show_default=True,
)
def main(features: int, sizes: tuple[int, ...]) -> None:
    """Print a Markdown table."""
    click.echo("| rows | fitting, s | per 10,000 rows, s | components | peak memory, MB | growth |")
    click.echo("|---|---|---|---|---|---|")
    first = None
    for n in sizes:
        dfm, seconds = DFM(noise="in-sample"), 0.0
        for batch in batches(n, features):
            start = time.perf_counter()
            dfm.partial_fit(batch)
            seconds += time.perf_counter() - start
        start = time.perf_counter()
        k = dfm.subspaces_[0].n_components
        seconds += time.perf_counter() - start
        peak = peak_megabytes()
        first = first or peak
        click.echo(
            f"| {n:,} | {seconds:.2f} | {seconds / n * 1e4:.3f} | {k} | {peak:.0f} "
            f"| {peak - first:+.0f} MB |"
        )


if __name__ == "__main__":
    main()
