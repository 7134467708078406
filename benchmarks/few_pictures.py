"""AUROC from few good pictures: cells of tokens, pictures of a ResNet, and both fused.

    python benchmarks/few_pictures.py DATA_ROOT --category pill --vit vit.safetensors \
        --resnet resnet18.safetensors --size 224
    python benchmarks/few_pictures.py --elpv --most 100 --vit FILE --resnet FILE

Rows are the presets `tokens`, `default` and `fusion`, columns the number of good pictures that are
fitted (means over draws). Below each: the share of good test pictures that are flagged at the rate
that so many pictures can promise, which is `1/(n+1)` and at least 0.05. `--vit` are weights of a
ViT-S/14 in timm's or its authors' names, `--resnet` those of ResNet-18; `--size` is the input of
tokens and fusion, a multiple of 14 (the presets' own is 448; smaller ones are quicker). No copies
are fitted. `--most N` looks at no more than N training, N good and N defective test pictures.
Nothing is chosen by a label.
"""

from pathlib import Path

import click
import numpy as np
import torch

from dfm_mlflow.config import Options
from dfm_mlflow.core.metrics import auroc
from dfm_mlflow.data.catalog import ELPV, GOOD, load_catalog
from dfm_mlflow.detector.class_fit import fit_class
from dfm_mlflow.detector.class_model import ClassScores, score_class
from dfm_mlflow.detector.grid import at_once, grids_of
from dfm_mlflow.detector.layer_fit import Deal
from dfm_mlflow.network.builder import build_extractor

VIT = "timm:vit_small_patch14_dinov2"
DRAWS = {1: 5, 4: 5, 16: 3, 50: 2}
FPR = 0.05


def options_of(preset, category, weights, size):
    given = {"preset": preset, "category": category, "precision": "fp32", "weights": weights}
    if preset != "default":
        backbone = VIT if preset == "tokens" else f"{VIT}+resnet18"
        given |= {"image_size": str(size), "backbone": backbone}
    return Options.parse(given).resolve()


def chosen(items, most, rng):
    order = rng.permutation(len(items))[:most]
    return [items[i] for i in sorted(order)]


def extract(options, items, name):
    extractor, _, options = build_extractor(options)
    found = extractor.extract([i.path for i in items], progress=name)
    return extractor, options, found.features


@torch.inference_mode()
def scored(model, features, grids, options):
    step = at_once(grids, 64)
    parts = [
        score_class(model, [f[i : i + step] for f in features], grids, options)
        for i in range(0, len(features[0]), step)
    ]
    return ClassScores.joined(parts).score.double().numpy()


def row(preset, extractor, options, features, n_train, defective):
    """AUROC and false alarms by the number of fitted pictures."""
    shapes = [f.shape[1:] for f in features]
    grids = grids_of(shapes, extractor.pixels.roi_cells, options.rows_are)
    test = [f[n_train:] for f in features]
    found = {}
    for n in (*DRAWS, n_train):
        if n > n_train or n < options.fewest_pictures:
            continue
        for draw in range(DRAWS.get(n, 1) if n < n_train else 1):
            rows = np.sort(np.random.default_rng(draw).permutation(n_train)[:n])
            deal = Deal.of([str(i) for i in rows], None, options.seed)
            mine = [f[torch.from_numpy(rows)] for f in features]
            model = fit_class("good", mine, deal, grids, options).on(torch.device("cpu"))
            score = scored(model, test, grids, options)
            area = auroc(defective, score)
            p = model.calibration.p_value(score)
            rate = model.calibration.effective_fpr(FPR)
            flagged = (p[~defective] <= rate * (1 + 1e-12)).mean()
            key = "all" if n == n_train else n
            found.setdefault(key, []).append((area, flagged, rate))
    return preset, {k: np.mean(v, axis=0) for k, v in found.items()}


def table(name, rows, n_train):
    columns = [*[n for n in DRAWS if n < n_train], "all"]
    click.echo(f"\n| {name} ({n_train}) | {' | '.join(f'n = {c}' for c in columns)} |")
    click.echo("|---" * (len(columns) + 1) + "|")
    for preset, found in rows:
        cells = [f"{found[c][0]:.3f}" if c in found else "" for c in columns]
        click.echo(f"| {preset}, AUROC | {' | '.join(cells)} |")
        cells = [f"{found[c][1]:.3f} of {found[c][2]:.3f}" if c in found else "" for c in columns]
        click.echo(f"| {preset}, flagged of promised | {' | '.join(cells)} |")


@click.command()
@click.argument("roots", nargs=-1, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--elpv", is_flag=True, help="Add the ELPV solar cells.")
@click.option("--category", "only", multiple=True, help="Only these categories.")
@click.option("--vit", required=True, help="Weights of a ViT-S/14.")
@click.option("--resnet", default="imagenet", show_default=True, help="Weights of ResNet-18.")
@click.option("--size", default=448, show_default=True, help="Input of tokens and fusion.")
@click.option("--most", type=int, default=10**6, help="Pictures of each kind.")
def main(roots, elpv, only, vit, resnet, size, most):
    """Print the tables."""
    places = [("elpv", c) for c in ELPV] if elpv else []
    places += [
        (str(root), folder.name)
        for root in roots
        for folder in sorted(root.iterdir())
        if (folder / "train" / "good").is_dir() and (folder / "test").is_dir()
    ]
    for data, category in [p for p in places if not only or p[1] in only]:
        catalog, rng = load_catalog(data, [category]), np.random.default_rng(0)
        train = chosen(catalog.train, most, rng)
        good = chosen([i for i in catalog.test if i.label == GOOD], most, rng)
        bad = chosen([i for i in catalog.test if i.label != GOOD], most, rng)
        items, defective = [*train, *good, *bad], np.arange(len(good) + len(bad)) >= len(good)
        rows = []
        known = options_of("fusion", category, f"{vit}+{resnet}", size)
        extractor, fusion, features = extract(known, items, f"{category}, fusion")
        tokens = options_of("tokens", category, vit, size)
        tokens = tokens.model_copy(update={"layers": fusion.layer_names[0]})
        # the first map of the fusion is that of the tokens
        rows.append(row("tokens", extractor, tokens, features[:1], len(train), defective))
        both = row("fusion", extractor, fusion, features, len(train), defective)
        del features
        known = options_of("default", category, resnet, size)
        alone = row("default", *extract(known, items, category), len(train), defective)
        table(category, [*rows, alone, both], len(train))


if __name__ == "__main__":
    main()
