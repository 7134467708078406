"""Promised against measured false-positive rates, over random splits of real good pictures.

    python benchmarks/calibration.py --data FOLDER --category magnetic_tile --splits 200

Good pictures of ELPV (extra [sample]) and of MVTec-layout categories are split at random into some
to fit and calibrate on and the rest, unseen, whose measured rate is compared with the promise. The
band is the beta-binomial that exact exchangeability gives: of m unseen pictures, with n held-out
ones, the number flagged is BetaBinomial(m, a, n + 1 - a) with a = floor(fpr (n + 1)). Exits with
status 1 where a split leaves the band of all splits, the mean is above the promise by more than two
standard errors, or, for n of at least 300, below half of a promised 0.05 or 0.1.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import click
import numpy as np
from scipy.stats import betabinom

from dfm_mlflow.config import Options
from dfm_mlflow.core.calibration import is_anomaly
from dfm_mlflow.data.catalog import ELPV, GOOD, load_catalog
from dfm_mlflow.detector.class_fit import fit_class
from dfm_mlflow.detector.class_model import score_class
from dfm_mlflow.detector.grid import Grid
from dfm_mlflow.detector.layer_fit import Deal
from dfm_mlflow.network.builder import build_extractor

RATES = (0.01, 0.05, 0.1)


@dataclass(frozen=True)
class Measured:
    """Rates of one category, size and tail over all splits.

    Attributes
    ----------
    rates : ndarray of shape (splits, len(RATES))
    promised : ndarray of shape (len(RATES),)
        Effective rates: no less than 1 / (n + 1) where the tail is empirical.
    band : ndarray of shape (len(RATES),)
        Largest rate that one of that many splits may show by chance (1 in 100 for all together).
    """

    rates: np.ndarray
    promised: np.ndarray
    band: np.ndarray


def features_of(category: str, data: str, backbone: str, weights: str, preset: str):
    """Features of all good pictures of a category, and the options."""
    given = {
        "category": category,
        "data": data,
        "backbone": backbone,
        "weights": weights,
        "preset": preset,
    }
    options = Options.parse(given).resolve()
    catalog = load_catalog(options.data, options.categories)
    extractor, _, options = build_extractor(options)
    good = [i.path for i in catalog.items if i.label == GOOD]
    features = extractor.extract(good, progress=category).features
    grids = [
        Grid(tuple(f.shape[1:]), extractor.pixels.roi_cells(tuple(f.shape[2:]))) for f in features
    ]
    return features, grids, options


def measure(features, grids, options, n: int, splits: int, seed: int = 0) -> Measured:
    """Fit on n random pictures, score the others; repeat."""
    rng = np.random.default_rng(seed)
    total, rates = len(features[0]), np.zeros((splits, len(RATES)))
    for s in range(splits):
        order = rng.permutation(total)
        seen, unseen = order[:n], order[n:]
        options = options.model_copy(update={"seed": s})
        deal = Deal.of([str(i) for i in seen], None, s)
        model = fit_class("good", [f[seen] for f in features], deal, grids, options)
        scored = score_class(
            model.on(features[0].device), [f[unseen] for f in features], grids, options
        )
        p = model.calibration.p_value(scored.score.double().numpy())
        for j, fpr in enumerate(RATES):
            flagged = is_anomaly(p, model.calibration.effective_fpr(fpr))
            rates[s, j] = flagged.mean()
    m = total - n
    promised = np.array([model.calibration.effective_fpr(fpr) for fpr in RATES])
    steps = promised * (n + 1) * (1 + 1e-12)
    steps = steps if model.calibration.tail else np.floor(steps)
    return Measured(rates, promised, np.array([_band(m, n, a, splits) for a in steps]))


def _band(m: int, n: int, a: float, splits: int) -> float:
    return float(betabinom(m, a, n + 1 - a).ppf(1 - 0.01 / splits)) / m


def row(name: str, n: int, tail: str, measured: Measured) -> tuple[str, bool]:
    """One line of the table, and whether every promise was kept."""
    mean, worst = measured.rates.mean(axis=0), measured.rates.max(axis=0)
    error = 2 * measured.rates.std(axis=0) / np.sqrt(len(measured.rates))
    kept = bool((worst <= measured.band).all() and (mean <= measured.promised + error).all())
    if n >= 300:  # and not wasted
        kept &= bool((mean[1:] >= measured.promised[1:] / 2).all())
    cells = [
        f"{p:.4f}: {a:.4f} (at most {b:.3f}, band {c:.3f})"
        for p, a, b, c in zip(measured.promised, mean, worst, measured.band, strict=True)
    ]
    return f"| {name} | {n} | {tail} | " + " | ".join(cells) + " |", kept


@click.command()
@click.option("--data", help="Folder of MVTec-layout categories.")
@click.option("--category", "categories", multiple=True, help="Category in it; may be repeated.")
@click.option("--backbone", default="resnet18", show_default=True)
@click.option("--weights", default="imagenet", show_default=True)
@click.option("--preset", default="default", show_default=True)
@click.option("--splits", default=200, show_default=True)
@click.option("--n", "sizes", multiple=True, type=int, default=(50, 300), show_default=True)
@click.option("--tail", "tails", multiple=True, default=("empirical",), show_default=True)
@click.option("--elpv/--no-elpv", default=True, help="The ELPV solar cells too.")
def main(
    data, categories: Sequence[str], elpv, backbone, weights, preset, splits, sizes, tails
) -> None:
    """Print for each rate what is promised and measured: mean, largest split, and its band."""
    click.echo(
        "| good pictures of | n | tail | fpr 0.01, promised: measured | fpr 0.05 | fpr 0.1 |"
    )
    click.echo("|---|---|---|---|---|---|")
    all_kept = True
    places = [(c, data) for c in categories]
    for category, place in [(c, "elpv") for c in ELPV if elpv] + places:
        features, grids, options = features_of(category, place, backbone, weights, preset)
        for n in sizes:
            for tail in tails:
                asked = options.model_copy(update={"tail": tail})
                line, kept = row(category, n, tail, measure(features, grids, asked, n, splits))
                click.echo(line)
                all_kept &= kept
    sys.exit(0 if all_kept else 1)


if __name__ == "__main__":
    main()
