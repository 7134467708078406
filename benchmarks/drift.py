"""What a faded lamp and a moved camera do to the p-values of good pictures.

    python benchmarks/drift.py --data FOLDER --category magnetic_tile --weights resnet18.safetensors
    python benchmarks/drift.py --elpv --weights resnet18.safetensors

Fits and calibrates on the training pictures, then compares the good test pictures with them by what
`evaluate` uses: as they are, darkened by 10 %, and shifted by 5 % of their width and height (the
border is repeated). Prints for all of them the share flagged beside the promise, the
Kolmogorov-Smirnov distance of the p-values, that of the leading coordinate that moved most, and how
likely such distances are for good pictures; then, for 200 batches of 50 of them, the median of that
and the share below 0.001.
"""

import tempfile
from pathlib import Path

import click
import numpy as np
from PIL import Image

from dfm_mlflow.config import Options
from dfm_mlflow.data.catalog import ELPV, GOOD, load_catalog
from dfm_mlflow.data.item import Item
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.images.decode import decode_image
from dfm_mlflow.network.builder import build_extractor
from dfm_mlflow.scores.evaluation import Evaluation, score_items
from dfm_mlflow.scores.measure import drift_of

BATCHES, BATCH, CLEAR = 200, 50, 1e-3


def darkened(image: np.ndarray) -> np.ndarray:
    return (image * 0.9).round().astype(np.uint8)


def shifted(image: np.ndarray) -> np.ndarray:
    down, right = (max(1, round(0.05 * s)) for s in image.shape[:2])
    return np.pad(image, ((down, 0), (right, 0), (0, 0)), "edge")[:-down, :-right]


CHANGES = {"as they are": lambda image: image, "10 % darker": darkened, "5 % shifted": shifted}


def changed(items: list[Item], change, folder: Path) -> list[Item]:
    """The same pictures, changed, as files of a folder."""
    found = []
    for number, item in enumerate(items):
        path = folder / f"{number}.png"
        Image.fromarray(change(decode_image(item.path.read_bytes()))).save(path)
        found.append(Item(path, item.category, item.split, item.label))
    return found


def of_batches(detector: AnomalyDetector, scored: Evaluation) -> tuple[float, float]:
    """Median significance of batches drawn without replacement, and the share that is clear."""
    draw = np.random.default_rng(0)
    size = min(BATCH, len(scored.table))
    found = []
    for _ in range(BATCHES):
        rows = draw.choice(len(scored.table), size, replace=False)
        batch = drift_of(detector, Evaluation(scored.table.iloc[rows], scored.seen))
        found.append(batch.significance)
    return float(np.median(found)), float(np.mean(np.array(found) < CLEAR))


@click.command()
@click.option("--data", help="Folder of MVTec-layout categories.")
@click.option("--category", "categories", multiple=True, help="Category in it; may be repeated.")
@click.option("--elpv", is_flag=True, help="The ELPV solar cells, mono and poly.")
@click.option("--preset", default="default", show_default=True)
@click.option("--backbone", default="resnet18", show_default=True)
@click.option("--weights", default="imagenet", show_default=True)
def main(data, categories, elpv, preset, backbone, weights) -> None:
    """Print a Markdown table."""
    click.echo(
        "| good pictures of | n | change | promised | flagged | KS | appearance | significance "
        f"| of {BATCH}: median | below {CLEAR:g} |"
    )
    click.echo("|---|---|---|---|---|---|---|---|---|---|")
    places = [(c, data) for c in categories] + [(c, "elpv") for c in ELPV if elpv]
    for category, place in places:
        given = {"category": category, "data": place, "backbone": backbone, "weights": weights}
        options = Options.parse(given | {"preset": preset}).resolve()
        catalog = load_catalog(options.data, options.categories)
        extractor, about, options = build_extractor(options)
        extraction = extractor.extract([i.path for i in catalog.train], progress=category)
        labels = [category] * len(extraction.kept)
        detector = AnomalyDetector.fit(options, extractor, extraction, labels, about)
        good = [i for i in catalog.test if i.label == GOOD]
        for name, change in CHANGES.items():
            with tempfile.TemporaryDirectory() as folder:
                scored = score_items(detector, changed(good, change, Path(folder)), None)
            drift = drift_of(detector, scored)
            median, clear = of_batches(detector, scored)
            click.echo(
                f"| {category} | {len(good)} | {name} | {detector.promised_fpr():.3f} "
                f"| {drift.flagged:.3f} | {drift.statistic:.2f} | {drift.appearance:.2f} "
                f"| {drift.significance:.1g} | {median:.1g} | {clear:.2f} |"
            )


if __name__ == "__main__":
    main()
