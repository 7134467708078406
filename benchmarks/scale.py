"""Time and memory of fitting rows that never are in memory together.

    python benchmarks/scale.py
    python benchmarks/scale.py --categories 1 --categories 10 --categories 100 [--weights FILE]

Streams 10,000 to 1,000,000 rows of 512 features from a generator through ``DFM.partial_fit`` and
prints seconds, and the process's largest memory after each size; run from small to large, so that
growth is visible. Generating the rows is timed apart.

With ``--categories``, one model of so many categories is fitted to drawn pictures (12 of each) and
scores 64 new ones: processor milliseconds a picture, together and one by one, and the first
number's as a ratio. ``benchmarks/speed.py --scale`` has 100 to 10,000 pictures of one category.
"""

import resource
import time
from collections.abc import Iterator

import click
import numpy as np
from scipy.ndimage import gaussian_filter

from dfm_mlflow.core.dfm import DFM
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector


def batches(n: int, d: int, size: int = 1000, seed: int = 0) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    structure = rng.normal(size=(40, d)).astype(np.float32) * 2
    for _ in range(n // size):
        hidden = rng.standard_normal((size, 40), dtype=np.float32)
        yield hidden @ structure + rng.standard_normal((size, d), dtype=np.float32)


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def surfaces(kind: int, n: int, seed: int) -> list[np.ndarray]:
    """Draw pictures of one kind: a texture of its own, in its own colour."""
    own = np.random.default_rng(kind)
    colour, width = own.uniform(60, 200, 3), own.uniform(0.5, 6, 2)
    rng = np.random.default_rng((kind, seed))
    drawn = []
    for _ in range(n):
        texture = gaussian_filter(rng.normal(size=(256, 256)), width)
        texture *= 20 / texture.std()
        drawn.append((colour + texture[:, :, None]).clip(0, 255).astype(np.uint8))
    return drawn


def of_categories(counts: tuple[int, ...], weights: str, preset: str) -> None:
    """Print a row a number of categories."""
    click.echo("| categories | fit, ms a picture | score of 64, ms each | of 1, ms | peak, MB |")
    click.echo("|---|---|---|---|---|")
    first = None
    for count in counts:
        images = [one for kind in range(count) for one in surfaces(kind, 12, 0)]
        labels = [f"c{i // 12}" for i in range(len(images))]
        start = time.process_time()
        detector = AnomalyDetector.from_images(
            images, labels, backbone="resnet18", weights=weights, preset=preset
        )
        fit = (time.process_time() - start) / len(images)
        new = [surfaces(i % count, 1, 1 + i)[0] for i in range(64)]
        detector.score(new)  # warm
        start = time.process_time()
        rows = detector.score(new)
        together = (time.process_time() - start) / len(new)
        start = time.process_time()
        for one in new[:16]:
            detector.score([one])
        alone = (time.process_time() - start) / 16
        assert all(rows["predicted_class"] == [f"c{i % count}" for i in range(64)])
        first = first or (together, alone)
        click.echo(
            f"| {count} | {1000 * fit:.1f} | {1000 * together:.1f} ({together / first[0]:.2f}x) "
            f"| {1000 * alone:.1f} ({alone / first[1]:.2f}x) | {peak_megabytes():.0f} |"
        )


@click.command(help=__doc__)
@click.option("--categories", multiple=True, type=int)
@click.option("--weights", default="random", show_default=True, help="Of ResNet-18: a file.")
@click.option("--preset", default="anomalib", show_default=True)
@click.option("--features", default=512, show_default=True)
@click.option(
    "--rows",
    "sizes",
    multiple=True,
    type=int,
    default=(10_000, 100_000, 1_000_000),
    show_default=True,
)
def main(
    features: int,
    sizes: tuple[int, ...],
    categories: tuple[int, ...],
    weights: str,
    preset: str,
) -> None:
    """Print a Markdown table."""
    if categories:
        of_categories(categories, weights, preset)
        return
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
