"""Time and memory of the pixel metrics on maps and masks made here.

    python benchmarks/pixels.py

160 smooth maps of 1024x1024 with one to five defects each, as a generator: prints seconds spent in
the metrics alone, and by how much the process grew.
"""

import resource
import time
from collections.abc import Iterator

import click
import numpy as np
from scipy.ndimage import gaussian_filter

from dfm_mlflow.core.pixel_metrics import pixel_metrics


def pairs(n: int, side: int, spent: list[float]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Give maps and masks; adds the seconds of making them to `spent`."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side].astype(np.float32)
    noise = gaussian_filter(rng.normal(size=(side, side)).astype(np.float32), 8)
    for _ in range(n):
        start = time.perf_counter()
        values = np.roll(noise, rng.integers(0, side, 2), axis=(0, 1)).copy()
        mask = np.zeros((side, side), dtype=bool)
        for _ in range(rng.integers(1, 6)):
            top, left, radius = rng.integers(0, side, 2).tolist() + [rng.integers(5, 80)]
            away = (y - top) ** 2 + (x - left) ** 2
            mask |= away < radius**2
            values += 0.05 * np.exp(-away / (2 * radius**2))
        spent.append(time.perf_counter() - start)
        yield values, mask


@click.command()
@click.option("--maps", default=160, show_default=True)
@click.option("--side", default=1024, show_default=True)
def main(maps: int, side: int) -> None:
    """Print one line."""
    spent: list[float] = []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    metrics = pixel_metrics(pairs(maps, side, spent))
    seconds = time.perf_counter() - start - sum(spent)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    click.echo(
        f"{maps} maps of {side}x{side}: {seconds:.1f} s, {grown:.2f} GiB more at the peak "
        f"(pixel AUROC {metrics['pixel_auroc']:.3f}, AUPRO {metrics['pixel_aupro']:.3f})"
    )


if __name__ == "__main__":
    main()
