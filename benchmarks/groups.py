"""Promised against measured false-positive rates where pictures come in groups, and with dirt.

    python benchmarks/groups.py

Scores are drawn: groups (captures) explain four fifths of their variance. A calibration is made
again for each draw and 20 pictures of a new group are compared with it, by p-values that count
pictures and by p-values that count groups. The second table leaves a declared share out of the
calibration where all pictures are good (the price) and where that share is dirty (what it buys).
Exits with status 1 where counting groups, or the price, breaks a promise by more than three
standard errors.
"""

import sys

import click
import numpy as np

from dfm_mlflow.core.calibration import Calibration, is_anomaly

RATES = (0.01, 0.05, 0.1)
SIZES = {
    "10 groups of 30": [30] * 10,
    "20 groups of 15": [15] * 20,
    "100 groups of 3": [3] * 100,
    "300 groups of 1": [1] * 300,
    "28 unequal groups, of 1 to 100": [1] * 12 + [5] * 8 + [40] * 6 + [100] * 2,
    "one group of 150 among 150 of 1": [150] + [1] * 150,
}


def group_rates(sizes: list[int], draws: int, seed: int = 0) -> dict[bool, np.ndarray]:
    """Rates of each draw at each promise, of shape (draws, len(RATES)), with and without groups."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(len(sizes)), sizes)
    rates = {counts: np.empty((draws, len(RATES))) for counts in (False, True)}
    for i in range(draws):
        scores = 2 * rng.normal(size=len(sizes))[groups] + rng.normal(size=len(groups))
        new = 2 * rng.normal() + rng.normal(size=20)
        for counts, found in rates.items():
            c = Calibration.of(scores, groups=groups if counts else None)
            p = c.p_value(new)
            found[i] = [is_anomaly(p, c.effective_fpr(fpr)).mean() for fpr in RATES]
    return rates


def dirt_rates(
    n: int, dirt: float, declared: float, fpr: float, draws: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Good and defective pictures flagged in each draw, and the promise for good ones."""
    rng = np.random.default_rng(0)
    good, defective = np.empty(draws), np.empty(draws)
    for i in range(draws):
        odd = rng.random(n) < dirt
        scores = np.where(odd, rng.normal(4, 1, n), rng.normal(size=n))
        c = Calibration.of(scores, contamination=declared)
        limit = c.threshold(fpr)
        good[i] = (rng.normal(size=200) > limit).mean()
        defective[i] = (rng.normal(4, 1, 200) > limit).mean()
    return good, defective, c.promised_fpr(fpr)


@click.command()
@click.option("--draws", default=4000, show_default=True)
def main(draws: int) -> None:
    """Print two Markdown tables."""
    kept = True
    click.echo("| pictures | p-values count | " + " | ".join(f"promised {r}" for r in RATES) + " |")
    click.echo("|---|---|" + "---|" * len(RATES))
    for name, sizes in SIZES.items():
        for counts, rates in group_rates(sizes, draws).items():
            units = len(sizes) if counts else sum(sizes)
            promised = np.maximum(RATES, 1 / (units + 1))
            mean, error = rates.mean(axis=0), rates.std(axis=0) / np.sqrt(draws)
            kept &= not counts or bool((mean <= promised + 3 * error).all())
            cells = [f"{p:.3f}: {m:.4f}" for p, m in zip(promised, mean, strict=True)]
            kind = "groups" if counts else "pictures"
            click.echo(f"| {name} | {kind} | " + " | ".join(cells) + " |")
    click.echo("\n| n | dirty | declared | fpr | promised | good flagged | defective flagged |")
    click.echo("|---|---|---|---|---|---|---|")
    for n in (50, 300):
        for fpr in (0.02, 0.05):
            for dirt, declared in ((0.0, 0.0), (0.0, 0.05), (0.05, 0.0), (0.05, 0.05)):
                good, defective, promised = dirt_rates(n, dirt, declared, fpr, draws)
                kept &= bool(good.mean() <= promised + 3 * good.std() / np.sqrt(draws))
                click.echo(
                    f"| {n} | {dirt:g} | {declared:g} | {fpr:g} | {promised:.4f} "
                    f"| {good.mean():.4f} | {defective.mean():.3f} |"
                )
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
