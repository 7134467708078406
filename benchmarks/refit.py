"""What is gained where held-out scores are brought to the final model, and whether promises hold.

    python benchmarks/refit.py --gaussian --no-elpv
    python benchmarks/refit.py --data FOLDER --category magnetic_tile --category pill

A model of part of the pictures leaves larger residuals than the final one, so p-values of held-out
scores as they are waste part of what they promise. Here n pictures are drawn to fit and calibrate
on and up to 200 others are compared with both calibrations, over many splits: "as they are", and
multiplied by :func:`dfm_mlflow.core.refit.refit_ratio`. Good pictures of ELPV (extra [sample]) and
of MVTec-layout categories, and Gaussian rows whose mean held-out residual is all that scores them.
Exits with status 1 where a measured rate, after it, is above its promise by more than 0.015, or the
mean over all sets of one size by more than two of its standard errors.
"""

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace

import click
import numpy as np
from calibration import features_of

from dfm_mlflow.core.calibration import Calibration, is_anomaly
from dfm_mlflow.core.crossfit import assign_folds, crossfit
from dfm_mlflow.core.solvers import fit_subspace
from dfm_mlflow.data.catalog import ELPV
from dfm_mlflow.detector.class_fit import finish_class
from dfm_mlflow.detector.class_model import score_class
from dfm_mlflow.detector.layer_fit import Deal, fit_layers

RATES = (0.01, 0.05, 0.1)
MOST = 200  # new pictures of a split
SPECTRA: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "decaying": lambda i: i**-0.5,
    "slowly decaying": lambda i: i**-0.3,
    "flat": lambda i: np.where(i <= len(i) // 10, 3.0, 1.0),
}
GAUSSIAN = (
    (400, 50, "decaying"),
    (400, 100, "decaying"),
    (400, 100, "flat"),
    (2000, 100, "slowly decaying"),
    (400, 300, "decaying"),
    (400, 300, "flat"),
    (2000, 300, "slowly decaying"),
)

Split = tuple[Calibration, Calibration, np.ndarray]


def of_pictures(features, grids, options, n: int, splits: int) -> Iterator[Split]:
    """Both calibrations of n random pictures, and scores of others."""
    rng = np.random.default_rng(0)
    for s in range(splits):
        order = rng.permutation(len(features[0]))
        seen, unseen = order[:n], order[n : n + MOST]
        deal = Deal.of([str(i) for i in seen], None, s)
        fitted = fit_layers([f[seen] for f in features], deal, grids, options)
        plain = finish_class(
            "good", replace(fitted, refit_ratios=[np.ones(n)] * len(grids)), grids, options
        )
        model = finish_class("good", fitted, grids, options)
        new = score_class(
            model.on(features[0].device), [f[unseen] for f in features], grids, options
        )
        yield plain.calibration, model.calibration, new.score.double().cpu().numpy()


def of_gaussian(dimension: int, n: int, spectrum: str, splits: int) -> Iterator[Split]:
    """The same for rows of a Gaussian, by their FRE."""
    rng = np.random.default_rng(0)
    spread = SPECTRA[spectrum](np.arange(1, dimension + 1))
    for s in range(splits):
        x, new = (rng.normal(size=(m, dimension)) * spread for m in (n, MOST))
        held_out = crossfit(x, assign_folds(n, seed=s), 0.97)
        plain = Calibration.of(held_out.fre)
        refit = Calibration.of(held_out.fre, refit_ratio=held_out.refit_ratio())
        yield plain, refit, fit_subspace(x, 0.97).fre(new)


class Table:
    """Lines as they come, and what all of them say."""

    def __init__(self) -> None:
        self.kept = True
        self._sizes: dict[int, list[tuple[np.ndarray, np.ndarray]]] = defaultdict(list)
        heads = [f"promised {rate}: as they are | brought to the final model" for rate in RATES]
        click.echo("| set | n | factor | " + " | ".join(heads) + " |")
        click.echo("|---|---|---|" + "---|---|" * len(RATES))

    def add(self, name: str, n: int, splits: Iterator[Split]) -> None:
        """Measure and print one line."""
        found, factors = [], []
        for *both, new in splits:
            factors.append(both[1].refit_ratio)
            found.append(
                [
                    [is_anomaly(c.p_value(new), c.effective_fpr(r)).mean() for r in RATES]
                    for c in both
                ]
            )
        rates = np.array(found)
        promised = np.maximum(RATES, 1 / (n + 1))
        mean, error = rates.mean(axis=0), rates.std(axis=0) / np.sqrt(len(rates))
        self.kept &= bool((mean[1] <= promised + 0.015).all())
        self._sizes[n].append((mean, error))
        self._line(name, n, f"{np.mean(factors):.3f}", promised, mean)

    def finish(self) -> None:
        """Print the means over sets of each size."""
        for n, lines in sorted(self._sizes.items()):
            promised = np.maximum(RATES, 1 / (n + 1))
            mean = np.mean([m for m, _ in lines], axis=0)
            error = np.sqrt(np.sum([e**2 for _, e in lines], axis=0)) / len(lines)
            self.kept &= bool((mean[1] <= promised + 2 * error[1]).all())
            self._line(f"mean of {len(lines)} sets", n, "", promised, mean)

    def _line(self, name: str, n: int, factor: str, promised: np.ndarray, mean: np.ndarray) -> None:
        cells = [
            f"{p:.3f}: {a:.4f} | **{b:.4f}**" for p, (a, b) in zip(promised, mean.T, strict=True)
        ]
        click.echo(f"| {name} | {n} | {factor} | " + " | ".join(cells) + " |")


@click.command()
@click.option("--data", help="Folder of MVTec-layout categories.")
@click.option("--category", "categories", multiple=True, help="Category in it; may be repeated.")
@click.option("--backbone", default="resnet18", show_default=True)
@click.option("--weights", default="imagenet", show_default=True)
@click.option("--preset", default="default", show_default=True)
@click.option("--splits", default=200, show_default=True)
@click.option("--n", "sizes", multiple=True, type=int, default=(50, 100, 300), show_default=True)
@click.option("--elpv/--no-elpv", default=True, help="The ELPV solar cells too.")
@click.option("--gaussian/--no-gaussian", default=False, help="Gaussian rows, too.")
def main(data, categories, backbone, weights, preset, splits, sizes, elpv, gaussian) -> None:
    """Print a Markdown table."""
    table = Table()
    if gaussian:
        for dimension, n, spectrum in GAUSSIAN:
            if n in sizes:
                name = f"Gaussian, D = {dimension}, {spectrum}"
                table.add(name, n, of_gaussian(dimension, n, spectrum, splits))
    for category, place in [(c, "elpv") for c in ELPV if elpv] + [(c, data) for c in categories]:
        features, grids, options = features_of(category, place, backbone, weights, preset)
        for n in sizes:
            if len(features[0]) >= n + 50:
                table.add(category, n, of_pictures(features, grids, options, n, splits))
    table.finish()
    sys.exit(0 if table.kept else 1)


if __name__ == "__main__":
    main()
