"""One model over several categories against a model of each: recall, false alarms, accuracy.

    python benchmarks/categories.py --data FOLDER --categories magnetic_tile,mono,poly,pill

`mono` and `poly` are the ELPV solar cells (extra `sample`), the others folders of `--data` in the
layout of MVTec AD. All are development sets of this project. Of each category `--n` random good
images are fitted, and up to `--test` other good and as many defective ones are scored, by one model
over all categories and by the category's own, at the same rate; means over `--splits` splits. Then
the same with one category of 30 images of which one is defective; and, on drawn features, a
category of 20 beside one of 1,000.
"""

import argparse
from dataclasses import dataclass

import numpy as np
import torch

from dfm_mlflow.config import Options
from dfm_mlflow.data.catalog import ELPV, GOOD, load_catalog
from dfm_mlflow.detector.class_fit import fit_class
from dfm_mlflow.detector.class_model import ClassModel, score_class
from dfm_mlflow.detector.decision import decide
from dfm_mlflow.detector.grid import Grid, grids_of
from dfm_mlflow.detector.layer_fit import Deal
from dfm_mlflow.network.builder import build_extractor


@dataclass
class Category:
    """Features of one category's images in each layer."""

    name: str
    good: list[torch.Tensor]
    bad: list[torch.Tensor]


@dataclass
class Split:
    """Images to fit and to score, by their rows."""

    fitted: list[torch.Tensor]
    good: list[torch.Tensor]
    bad: list[torch.Tensor]


def extract(data, name, extractor) -> Category:
    catalog = load_catalog("elpv" if name in ELPV else data, [name])
    features = [[], []]
    for k, defective in enumerate((False, True)):
        paths = [i.path for i in catalog.items if (i.label != GOOD) == defective]
        features[k] = extractor.extract(paths, progress=f"{name} {'bad' if k else 'good'}").features
    return Category(name, *features)


def take(features, rows):
    return [f[torch.as_tensor(rows)] for f in features]


def split(category: Category, n: int, most: int, rng, odd: bool = False) -> Split:
    good, bad = (rng.permutation(len(f[0])) for f in (category.good, category.bad))
    fitted = take(category.good, good[: n - odd])
    if odd:
        fitted = [torch.cat(p) for p in zip(fitted, take(category.bad, bad[:1]), strict=True)]
        bad = bad[1:]
    return Split(fitted, take(category.good, good[n : n + most]), take(category.bad, bad[:most]))


def fit(name: str, features, grids, options, seed: int) -> ClassModel:
    deal = Deal.of([str(i) for i in range(len(features[0]))], None, seed)
    return fit_class(name, features, deal, grids, options).on(features[0].device)


@torch.inference_mode()
def flags(models, own: int, part: Split, grids, options, fpr):
    """Recall and false alarms of all models together and of its own, and accuracy of both kinds."""
    together, alone, right = [], [], []
    for features in (part.bad, part.good):
        scored = [score_class(m, features, grids, options) for m in models]
        rows, best = decide(models, scored, fpr, None)
        by_own, _ = decide([models[own]], [scored[own]], fpr, None)
        together.append(np.mean([r["is_anomaly"] for r in rows]))
        alone.append(np.mean([r["is_anomaly"] for r in by_own]))
        right.append(np.mean(best == own))
    promise = models[own].calibration.effective_fpr(fpr)
    return [promise, together[0], alone[0], together[1], alone[1], right[1], right[0]]


def show(title, found):
    print(
        f"\n{title}\n{'category':16s} {'n':>4s} {'promise':>8s} {'recall':>7s} {'own':>7s} "
        f"{'flagged':>8s} {'own':>7s} {'accuracy good':>14s} {'defective':>10s}"
    )
    for (name, n), values in found.items():
        p, recall, own_recall, flagged, own_flagged, good, bad = np.mean(values, axis=0)
        print(
            f"{name:16s} {n:4d} {p:8.4f} {recall:7.3f} {own_recall:7.3f} {flagged:8.4f} "
            f"{own_flagged:7.4f} {good:14.4f} {bad:10.4f}",
            flush=True,
        )


def several(categories, sizes, odd, arguments, grids, options):
    """Both tables; the second differs from the first in one category alone."""
    rng = np.random.default_rng(0)
    equal, with_odd = {}, {}
    for seed in range(arguments.splits):
        parts = [split(c, sizes[c.name], arguments.test, rng) for c in categories]
        models = [
            fit(c.name, p.fitted, grids, options, seed)
            for c, p in zip(categories, parts, strict=True)
        ]
        k = [c.name for c in categories].index(odd)
        few = split(categories[k], 30, arguments.test, rng, odd=True)
        others = [*models[:k], fit(odd, few.fitted, grids, options, seed), *models[k + 1 :]]
        for found, among, given in (
            (equal, models, parts),
            (with_odd, others, [*parts[:k], few, *parts[k + 1 :]]),
        ):
            for own, part in enumerate(given):
                key = categories[own].name, len(part.fitted[0])
                figures = flags(among, own, part, grids, options, arguments.fpr)
                found.setdefault(key, []).append(figures)
    said = f"target rate {arguments.fpr}, means over {arguments.splits} splits"
    show(f"One model over all categories beside one of each, {said}", equal)
    show(f"The same with 30 images of {odd}, one of them defective", with_odd)


def unequal(arguments):
    """Drawn features: 20 images of one category beside 1,000 of another."""
    options = Options.parse({"layers": "layer2", "pca_level": "0.9"}).resolve()
    shape = (8, 4, 4)
    grids = [Grid(shape, np.ones(shape[1:], dtype=bool))]
    rng = np.random.default_rng(0)
    structures = [np.random.default_rng(k).normal(size=(12, int(np.prod(shape)))) for k in (1, 2)]

    def draw(k, n):
        x = rng.normal(size=(n, 12)) @ structures[k] + rng.normal(size=(n, int(np.prod(shape))))
        return [torch.tensor(x.reshape(n, *shape), dtype=torch.float32)]

    flagged = []
    for seed in range(arguments.splits):
        small, large = (
            fit("small", draw(0, 20), grids, options, seed),
            fit("large", draw(1, 1000), grids, options, seed),
        )
        new = Split([], draw(1, 2000), draw(1, 2))
        values = flags([small, large], 1, new, grids, options, 0.01)
        flagged.append(values[3:5])
    both, own = np.mean(flagged, axis=0)
    print(
        f"\nDrawn features, 20 images beside 1,000, target rate 0.01: of the large category "
        f"{both:.4f} are flagged, and {own:.4f} by its own model"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--categories", default="magnetic_tile,mono,poly,pill")
    parser.add_argument("--weights", default="imagenet")
    parser.add_argument("--preset", default="default")
    parser.add_argument("--backbone", default="auto")
    parser.add_argument("--odd", help="Category of 30 images of which one is defective.")
    parser.add_argument("--n", type=int, default=300)
    parser.add_argument("--test", type=int, default=100)
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--fpr", type=float, default=0.05)
    arguments = parser.parse_args()
    names = arguments.categories.split(",")
    given = {"preset": arguments.preset, "weights": arguments.weights}
    given |= {"backbone": arguments.backbone, "precision": "fp32", "category": names[0]}
    extractor, _, options = build_extractor(Options.parse(given).resolve())
    categories = [extract(arguments.data, name, extractor) for name in names]
    grids = grids_of((f.shape[1:] for f in categories[0].good), extractor.pixels.roi_cells)
    # of few good pictures enough are left to be scored
    sizes = {c.name: min(arguments.n, len(c.good[0]) - 60) for c in categories}
    several(categories, sizes, arguments.odd or names[0], arguments, grids, options)
    unequal(arguments)


if __name__ == "__main__":
    main()
