"""Defective pictures among those to train on: what they cost, who is warned, who finds them.

    python benchmarks/dirt.py --data FOLDER --category magnetic_tile --category pill --splits 20

Good pictures of ELPV's mono cells (extra [sample]) and of categories of a folder with test/<defect>
are split at random into some to fit on and the rest, unseen. Two tables:

- *planted*: 1, 5 and 10 % of the pictures to fit on are replaced by defective ones. Shown are those
  that the report shows, the most unusual fifth but at most 12; a perfect eye takes the defective
  ones of them out with exclude=, and trains again, once and twice.
- *warned*: how often the log warns that one picture alone sets the threshold, of clean splits and
  of splits with one defective picture that has the largest held-out score and costs recall.
"""

import math

import click
import numpy as np
import torch

from dfm_mlflow.config import Options
from dfm_mlflow.core.calibration import is_anomaly
from dfm_mlflow.core.metrics import auroc
from dfm_mlflow.core.outliers import find_setter
from dfm_mlflow.data.catalog import load_catalog
from dfm_mlflow.data.item import GOOD
from dfm_mlflow.detector.class_fit import fit_class_held_out
from dfm_mlflow.detector.class_model import score_class
from dfm_mlflow.detector.grid import grids_of
from dfm_mlflow.detector.layer_fit import Deal
from dfm_mlflow.network.builder import build_extractor
from dfm_mlflow.scores.training import MOST, SHARE

COSTS = (0.2, 0.3, 0.4, 0.5)
MOST_UNSEEN = 80  # pictures of each kind that a split is scored on


class Pictures:
    """Features of all pictures of a category, and which are good."""

    def __init__(self, category: str, data: str, given: dict[str, str]):
        options = Options.parse(
            {"category": category, "data": data, "augment": "none", **given}
        ).resolve()
        items = load_catalog(options.data, options.categories).items
        extractor, _, self.options = build_extractor(options)
        found = extractor.extract([i.path for i in items], progress=category)
        self.features = found.features
        self.grids = grids_of((f.shape[1:] for f in self.features), extractor.pixels.roi_cells)
        self.keys = [found.digests[i] for i in found.kept]
        good = np.array([items[i].label == GOOD for i in found.kept])
        self.good, self.bad = np.flatnonzero(good), np.flatnonzero(~good)

    def fit(self, mine: np.ndarray, seed: int):
        """Fit to some of them; held-out scores come back in their order."""
        deal = Deal.of([self.keys[i] for i in mine], None, seed)
        own = [f[torch.from_numpy(mine)] for f in self.features]
        model, held_out = fit_class_held_out("fitted", own, deal, self.grids, self.options)
        return model, held_out.score

    def judge(self, model, mine: np.ndarray, fpr: float) -> tuple[np.ndarray, np.ndarray]:
        """Scores of some pictures, and which are flagged."""
        device = self.features[0].device
        own = [f[torch.from_numpy(mine)] for f in self.features]
        scored = score_class(model.on(device), own, self.grids, self.options)
        scores = scored.score.double().cpu().numpy()
        p_value = model.calibration.p_value(scores)
        return scores, is_anomaly(p_value, model.calibration.effective_fpr(fpr))


def planted(p: Pictures, n: int, share: float, split: int, fpr: float) -> dict[str, float]:
    """One split with a share of defective pictures: what is shown, and what that brings."""
    rng = np.random.default_rng([n, split, int(1000 * share)])
    good, bad = rng.permutation(p.good), rng.permutation(p.bad)
    n_bad = max(1, round(share * n))
    clean, dirt = good[: n - n_bad], bad[:n_bad]
    unseen = np.concatenate([good[n : n + MOST_UNSEEN], bad[n_bad : n_bad + MOST_UNSEEN]])
    truth = np.isin(unseen, p.bad)
    mine, result = np.concatenate([clean, dirt]), {}
    for looks in range(3):
        model, held_out = p.fit(mine, split)
        scores, flagged = p.judge(model, unseen, fpr)
        result[f"auroc {looks}"] = auroc(truth, scores)
        result[f"recall {looks}"] = flagged[truth].mean()
        order = mine[np.argsort(-held_out)]
        fifth = order[: math.ceil(SHARE * len(mine))]
        if looks == 0:
            result["shown"] = np.isin(dirt, fifth[:MOST]).mean()
            result["fifth"] = np.isin(dirt, fifth).mean()
        mine = np.setdiff1d(mine, np.intersect1d(fifth[:MOST], dirt))
    scores, flagged = p.judge(p.fit(clean, split)[0], unseen, fpr)
    return result | {"auroc clean": auroc(truth, scores), "recall clean": flagged[truth].mean()}


def warned(p: Pictures, n: int, split: int, fpr: float) -> tuple[bool, list[tuple[float, bool]]]:
    """Whether a clean split is warned of, and with each defective picture what it costs and that.

    A planted picture hardly moves the scores of the others: it is scored by the model of the clean
    split, as it would be while held out.
    """
    rng = np.random.default_rng([n, split])
    good, bad = rng.permutation(p.good), rng.permutation(p.bad)[:MOST_UNSEEN]
    model, held_out = p.fit(good[:n], split)
    scores, _ = p.judge(model, bad, fpr)
    clean = find_setter(held_out, None, fpr)
    found = []
    recall = (scores > clean.threshold).mean()
    for score in scores[scores > held_out.max()]:
        setter = find_setter(np.append(held_out, score), None, fpr)
        found.append((recall - (scores > setter.threshold).mean(), setter.apart))
    return clean.apart, found


def print_planted(category: str, p: Pictures, n: int, splits: int) -> None:
    """Print a row for each share and rate."""
    for share in (0.01, 0.05, 0.1):
        rows = [planted(p, n, share, s, 0.05) for s in range(splits)]
        m = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
        cells = [f"{m['shown']:.0%}", f"{m['fifth']:.0%}"]
        for name in ("auroc", "recall"):
            cells += [f"{m[f'{name} {k}']:.3f}" for k in (0, 1, 2, "clean")]
        click.echo(f"| {category} | {n} | {share:.0%} | " + " | ".join(cells) + " |")


def print_warned(category: str, p: Pictures, n: int, splits: int, fpr: float) -> None:
    """Print a row for one size and rate."""
    rows = [warned(p, n, s, fpr) for s in range(splits)]
    harm = [pair for _, found in rows for pair in found]
    cells = [f"{sum(clean for clean, _ in rows)} of {splits}"]
    for cost in COSTS:
        said = [apart for lost, apart in harm if lost >= cost]
        cells.append(f"{np.mean(said):.0%} of {len(said)}" if said else "-")
    click.echo(f"| {category} | {n} | {fpr} | " + " | ".join(cells) + " |")


@click.command()
@click.option("--data", help="Folder of MVTec-layout categories.")
@click.option("--category", "categories", multiple=True, help="Category in it; may be repeated.")
@click.option("--elpv/--no-elpv", default=True, help="ELPV's mono cells, too.")
@click.option("--weights", default="imagenet", show_default=True)
@click.option("--preset", default="default", show_default=True)
@click.option("--layers", default="auto", show_default=True)
@click.option("--pooling", default="auto", show_default=True)
@click.option("--n", "sizes", multiple=True, type=int, default=(30, 100), show_default=True)
@click.option("--planted", "n_planted", default=200, show_default=True, help="Pictures to fit on.")
@click.option("--splits", default=20, show_default=True, help="Of the planted shares.")
@click.option("--warned", "n_warned", default=100, show_default=True, help="Splits of warnings.")
def main(
    data, categories, elpv, weights, preset, layers, pooling, sizes, n_planted, splits, n_warned
) -> None:
    """Print both tables."""
    given = {"weights": weights, "preset": preset, "layers": layers, "pooling": pooling}
    places = [("mono", "elpv")] * elpv + [(c, data) for c in categories]
    sets = [(c, Pictures(c, d, given)) for c, d in places]
    if splits:
        click.echo(
            "| set | n | planted | shown in the report | in the fifth | AUROC dirty | one look | "
            "two looks | clean | recall at fpr .05, dirty | one look | two looks | clean |"
        )
        click.echo("|---" * 13 + "|")
        for category, p in sets:
            print_planted(category, p, min(n_planted, int(0.8 * len(p.good))), splits)
    if n_warned:
        costs = " | ".join(f"costs {c} of recall or more" for c in COSTS)
        click.echo(f"\n| set | n | fpr | clean splits warned of | {costs} |")
        click.echo("|---" * (4 + len(COSTS)) + "|")
        for category, p in sets:
            for n in sizes:
                for fpr in (0.01, 0.05):
                    print_warned(category, p, min(n, int(0.8 * len(p.good))), n_warned, fpr)


if __name__ == "__main__":
    main()
