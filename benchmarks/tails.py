"""True over promised rates beyond the largest held-out score, by the old and the new tail.

    python benchmarks/tails.py

Held-out scores of seven known distributions are drawn again many times. For a promise of 0.1, 0.5
and 1 times 1 / (n + 1), below which counting ends, the true rate at the threshold is computed from
the distribution and its mean over the draws divided by the promise: above 1 the promise is broken,
far below 1 the threshold is higher than it need be. "format 1" is the tail of models of format 1.
Exits with status 1 where the new tail is above 1.5 for the first four at 0.5 or 1, or anywhere
further above 1 than the old one (both with four standard errors of slack).
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import click
import numpy as np
from scipy import stats

from dfm_mlflow.core.calibration import Calibration

PARTS = (0.1, 0.5, 1.0)
SIZES = (50, 300, 1000)


@dataclass(frozen=True)
class Distribution:
    """Scores of good pictures: how they are drawn, and how many lie above a score."""

    draw: Callable[[np.random.Generator, int], np.ndarray]
    above: Callable[[float], float]


def _odd(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.where(rng.random(n) < 0.005, rng.normal(10, 3, n), rng.normal(size=n))


DISTRIBUTIONS = {
    "normal": Distribution(lambda rng, n: rng.normal(size=n), stats.norm.sf),
    "exponential": Distribution(lambda rng, n: rng.exponential(size=n), stats.expon.sf),
    "lognormal": Distribution(lambda rng, n: rng.lognormal(size=n), stats.lognorm(1).sf),
    "t, 3 degrees": Distribution(lambda rng, n: rng.standard_t(3, n), stats.t(3).sf),
    "Pareto, index 2": Distribution(lambda rng, n: 1 + rng.pareto(2, n), stats.pareto(2).sf),
    "Pareto, index 1": Distribution(lambda rng, n: 1 + rng.pareto(1, n), stats.pareto(1).sf),
    "normal, 0.5 % odd": Distribution(
        _odd, lambda s: 0.995 * stats.norm.sf(s) + 0.005 * stats.norm.sf((s - 10) / 3)
    ),
}


def ratios(distribution: Distribution, n: int, draws: int, seed: int = 0) -> np.ndarray:
    """True over promised rates of each draw.

    Returns
    -------
    ndarray of shape (draws, 2, len(PARTS))
        By the old tail and by the new one.
    """
    rng = np.random.default_rng(seed)
    thresholds = np.empty((draws, 2, len(PARTS)))
    for i in range(draws):
        new = Calibration.of(distribution.draw(rng, n), 0, "gpd")
        for j, calibration in enumerate((replace(new, rule=1), new)):
            thresholds[i, j] = [calibration.threshold(part / (n + 1)) for part in PARTS]
    true: np.ndarray = distribution.above(thresholds) * (n + 1) / np.array(PARTS)
    return true


@click.command()
@click.option("--draws", default=4000, show_default=True, help="Calibrations of each cell.")
def main(draws: int) -> None:
    """Print a Markdown table."""
    heads = [f"{part:g}: format 1 | {part:g}: now" for part in PARTS]
    click.echo("true rate over promised rate, promised 0.1, 0.5 and 1 times 1 / (n + 1)\n")
    click.echo("| distribution | n | " + " | ".join(heads) + " |")
    click.echo("|---|---|" + "---|---|" * len(PARTS))
    kept = True
    for place, (name, distribution) in enumerate(DISTRIBUTIONS.items()):
        for n in SIZES:
            found = ratios(distribution, n, draws)
            mean, error = found.mean(axis=0), 4 * found.std(axis=0) / np.sqrt(draws)
            cells = [f"{old:.2f} | **{new:.2f}**" for old, new in mean.T]
            click.echo(f"| {name} | {n} | " + " | ".join(cells) + " |")
            kept &= bool((mean[1] <= np.maximum(mean[0], 1) + error[1]).all())
            kept &= place > 3 or bool((mean[1, 1:] <= 1.5).all())
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
