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
from dfm_mlflow.detector.class_fit import Deal, fit_class
from dfm_mlflow.detector.class_model import ClassModel, score_class
from dfm_mlflow.detector.decision import decide
from dfm_mlflow.detector.grid import Grid, grids_of
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
def rows_of(models, features, grids, options, fpr):
    scored = [score_class(m, features, grids, options) for m in models]
    return decide(models, scored, fpr, None)[0]


def rates(models, own, part: Split, grids, options, fpr):
    """Recall and false alarms of all models together and of its own, and accuracy of both kinds."""
    found = []
    for among in (models, [own]):
        good, bad = (rows_of(among, f, grids, options, fpr) for f in (part.good, part.bad))
        found += [np.mean([r["is_anomaly"] for r in rows]) for rows in (bad, good)]
        if among is models:
            right = [np.mean([r["predicted_class"] == own.name for r in k]) for k in (good, bad)]
    return [*found, *right]


def table(title, categories, sizes, arguments, grids, options, odd=None):
    print(f"\n{title}, target rate {arguments.fpr}, {arguments.splits} splits")
    print(
        f"{'category':16s} {'n':>4s} {'promise':>8s} {'recall':>7s} {'own':>7s} {'flagged':>8s} "
        f"{'own':>7s} {'accuracy good':>14s} {'defective':>10s}"
    )
    rng = np.random.default_rng(0)
    seen = {c.name: [] for c in categories}
    for seed in range(arguments.splits):
        parts = [split(c, sizes[c.name], arguments.test, rng, c.name == odd) for c in categories]
        models = [
            fit(c.name, p.fitted, grids, options, seed)
            for c, p in zip(categories, parts, strict=True)
        ]
        for own, part in zip(models, parts, strict=True):
            promise = own.calibration.effective_fpr(arguments.fpr)
            seen[own.name].append(
                [promise, *rates(models, own, part, grids, options, arguments.fpr)]
            )
    for name, values in seen.items():
        p, recall, own_recall, flagged, own_flagged, good, bad = np.mean(values, axis=0)
        print(
            f"{name:16s} {sizes[name]:4d} {p:8.4f} {recall:7.3f} {own_recall:7.3f} {flagged:8.4f} "
            f"{own_flagged:7.4f} {good:14.4f} {bad:10.4f}"
        )


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
            fit(n, draw(k, m), grids, options, seed)
            for n, k, m in (("small", 0, 20), ("large", 1, 1000))
        )
        new = draw(1, 2000)
        pair = [rows_of(among, new, grids, options, 0.01) for among in ([small, large], [large])]
        flagged.append([np.mean([r["is_anomaly"] for r in rows]) for rows in pair])
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
    parser.add_argument("--n", type=int, default=300)
    parser.add_argument("--test", type=int, default=150)
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--fpr", type=float, default=0.05)
    arguments = parser.parse_args()
    names = arguments.categories.split(",")
    given = {"preset": arguments.preset, "weights": arguments.weights}
    given |= {"backbone": arguments.backbone, "precision": "fp32", "category": names[0]}
    extractor, _, options = build_extractor(Options.parse(given).resolve())
    categories = [extract(arguments.data, name, extractor) for name in names]
    grids = grids_of((f.shape[1:] for f in categories[0].good), extractor.roi_cells)
    # of few good images enough are left to be scored
    sizes = {c.name: min(arguments.n, len(c.good[0]) - 60) for c in categories}
    table("As many images of each", categories, sizes, arguments, grids, options)
    for odd in names[:2]:
        title = f"30 images of {odd}, one of them defective"
        table(title, categories, sizes | {odd: 30}, arguments, grids, options, odd)
    unequal(arguments)


if __name__ == "__main__":
    main()
