"""What ``DFM`` promises of new rows: noise outside the subspace, and the share of outliers.

    python benchmarks/estimator.py
    python benchmarks/estimator.py --features tile.npz --features pill.npz

Rows are drawn again for each of ``--draws`` fits, or sampled without replacement from float arrays
of shape (n, ...) in npz files of good features (with ``--key`` in the name of the array). New rows
come from the same source. Three tables:

- the noise variance over that which new rows show, for each way to estimate it (1 is right);
- the share of new rows that ``predict`` calls outliers, where the offset comes from held-out rows
  (``fit``), from the density (``partial_fit``), and from training rows, as scikit-learn's outlier
  detectors have it. No n rows can promise less than 1 / (n + 1);
- the same share where ``fit`` takes the offset from training rows: at the fewest rows of which it
  does so, ``100 D^1.5``.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np

from dfm_mlflow.core.dfm import DFM
from dfm_mlflow.core.dfm_fit import MANY_ROWS

Draw = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]
N_NEW = 500


def drawn(d: int, spread: np.ndarray | None = None, rank: int = 0) -> Draw:
    """Gaussian rows: independent features of a spread, beside a structure of low rank."""
    structure = 2 * np.random.default_rng(9).normal(size=(rank, d))

    def draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        x = rng.normal(size=(n + N_NEW, d)) * (1.0 if spread is None else spread)
        x += rng.normal(size=(n + N_NEW, rank)) @ structure
        return x[:n], x[n:]

    return draw


def sampled(x: np.ndarray) -> Draw:
    """Rows of real features."""

    def draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        order = rng.permutation(len(x))
        return x[order[:n]], x[order[n : n + N_NEW]]

    return draw


def sources(files: tuple[str, ...], key: str) -> Iterator[tuple[str, Draw, tuple[int, ...]]]:
    """Name, source and numbers of rows to fit."""
    yield "flat, D = 400", drawn(400), (20, 100, 300)
    yield "rank 10 + flat, D = 400", drawn(400, rank=10), (20, 100, 300)
    yield "spread 1/i, D = 400", drawn(400, 1 / np.arange(1, 401)), (20, 100, 300)
    yield "flat, D = 50", drawn(50), (100, 300)
    yield "spread 3 to 0.1, D = 40", drawn(40, np.linspace(3, 0.1, 40)), (60, 300)
    for file in files:
        with np.load(file) as arrays:
            for name in (n for n in arrays.files if key in n):
                if (x := arrays[name]).ndim < 2 or x.dtype.kind != "f":
                    continue
                x = x.reshape(len(x), -1).astype(np.float32)
                sizes = tuple(n for n in (20, 50, 100, 300) if n <= len(x) - 50)
                yield f"{Path(file).stem} {name}, D = {x.shape[1]:,}", sampled(x), sizes


def noise_ratios(draw: Draw, n: int, draws: int) -> dict[str, float]:
    """Estimated noise over that of new rows: the mean of each way."""
    found: dict[str, list[float]] = {}
    for seed in range(draws):
        x, new = draw(np.random.default_rng(seed), n)
        for noise in ("held-out", "gcv", "in-sample"):
            dfm = DFM(noise=noise, n_folds=None if noise == "held-out" else 2).fit(x)
            (s,) = dfm.subspaces_
            if rest := s.n_features - s.n_components:
                seen = s.fre(new).mean() / rest
                found.setdefault(noise, []).append(s.noise_variance / seen)
    return {noise: float(np.mean(ratios)) for noise, ratios in found.items()}


def outliers(draw: Draw, n: int, draws: int, share: float, score: str) -> dict[str, float]:
    """Share of new rows called outliers, of the mean draw, by where the offset comes from."""
    found: dict[str, list[float]] = {"held-out": [], "density": [], "training rows": []}
    for seed in range(draws):
        x, new = draw(np.random.default_rng(seed), n)
        dfm = DFM(contamination=share, score_type=score).fit(x)
        scores = dfm.score_samples(new)
        found["held-out"].append(float((scores < dfm.offset_).mean()))
        own = np.quantile(dfm.score_samples(x), share)
        found["training rows"].append(float((scores < own).mean()))
        if x.shape[1] <= 4096:
            other = DFM(contamination=share, score_type=score).partial_fit(x)
            found["density"].append(float((other.predict(new) == -1).mean()))
    return {how: float(np.mean(s)) if s else float("nan") for how, s in found.items()}


def at_the_border(d: int, share: float, draws: int) -> tuple[int, float]:
    """Fewest rows whose own scores give the offset, and the share of new rows called outliers."""
    n, rates = math.ceil(MANY_ROWS * d**1.5), []
    for seed in range(draws):
        x, new = drawn(d, np.linspace(3, 0.5, d))(np.random.default_rng(seed), n)
        rates.append(float((DFM(contamination=share).fit(x).predict(new) == -1).mean()))
    return n, float(np.mean(rates))


@click.command()
@click.option("--features", multiple=True, help="An npz file of good features; may be repeated.")
@click.option("--key", default="", help="Only arrays with this in their name.")
@click.option("--draws", default=20, show_default=True)
@click.option("--share", "shares", multiple=True, type=float, default=(0.05,), show_default=True)
def main(features: tuple[str, ...], key: str, draws: int, shares: tuple[float, ...]) -> None:
    """Print the tables."""
    known = list(sources(features, key))
    click.echo("| rows | n | noise held-out | gcv | in-sample |\n|---|---|---|---|---|")
    for name, draw, sizes in known:
        for n in sizes:
            r = noise_ratios(draw, n, draws)
            click.echo(
                f"| {name} | {n} | {r['held-out']:.2f} | {r['gcv']:.2f} | {r['in-sample']:.3f} |"
            )
    click.echo("\n| rows | n | score | share asked | held-out | density | training rows |")
    click.echo("|---|---|---|---|---|---|---|")
    for name, draw, sizes in known:
        for n in sizes:
            for score in ("nll", "fre"):
                for share in shares:
                    r = outliers(draw, n, draws, share, score)
                    click.echo(
                        f"| {name} | {n} | {score} | {share} | {r['held-out']:.3f} "
                        f"| {r['density']:.3f} | {r['training rows']:.3f} |"
                    )
    click.echo("\n| D | n | share asked | of new rows |\n|---|---|---|---|")
    for d in (1, 2, 5, 10):
        for share in (0.01, 0.05, 0.1):
            n, rate = at_the_border(d, share, 5 * draws)
            click.echo(f"| {d} | {n:,} | {share} | {rate:.4f} |")


if __name__ == "__main__":
    main()
