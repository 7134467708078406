"""What a faded lamp and a moved camera do to the p-values of good pictures.

    python benchmarks/drift.py --data FOLDER --category magnetic_tile --weights resnet18.safetensors

Fits and calibrates on the training pictures, then scores the good test pictures as they are,
darkened by 10 %, and shifted by 5 % of their width and height (the border is repeated). Prints the
share flagged beside the promise, the Kolmogorov-Smirnov distances from uniform of the p-values and,
at most, of a leading coordinate (appearance), and how likely such distances are for good pictures.
"""

import click
import numpy as np

from dfm_mlflow.config import Options
from dfm_mlflow.core.drift import measure_drift
from dfm_mlflow.data.catalog import ELPV, GOOD, load_catalog
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.images.decode import decode_image
from dfm_mlflow.network.builder import build_extractor


def darkened(image: np.ndarray) -> np.ndarray:
    return (image * 0.9).round().astype(np.uint8)


def shifted(image: np.ndarray) -> np.ndarray:
    down, right = (max(1, round(0.05 * s)) for s in image.shape[:2])
    return np.pad(image, ((down, 0), (right, 0), (0, 0)), "edge")[:-down, :-right]


CHANGES = {"as they are": lambda image: image, "10 % darker": darkened, "5 % shifted": shifted}


@click.command()
@click.option("--data", help="Folder of MVTec-layout categories.")
@click.option("--category", "categories", multiple=True, help="Category in it; may be repeated.")
@click.option("--backbone", default="resnet18", show_default=True)
@click.option("--weights", default="imagenet", show_default=True)
def main(data: str, categories: tuple[str, ...], backbone: str, weights: str) -> None:
    """Print a Markdown table."""
    click.echo(
        "| good pictures of | n | change | promised | flagged | KS | appearance | significance |"
    )
    click.echo("|---|---|---|---|---|---|---|---|")
    for category, place in [(c, "elpv") for c in ELPV] + [(c, data) for c in categories]:
        given = {"category": category, "data": place, "backbone": backbone, "weights": weights}
        options = Options.parse(given).resolve()
        catalog = load_catalog(options.data, options.categories)
        extractor, about, options = build_extractor(options)
        extraction = extractor.extract([i.path for i in catalog.train], progress=category)
        labels = [category] * len(extraction.kept)
        detector = AnomalyDetector.fit(options, extractor, extraction, labels, about)
        good = [decode_image(i.path.read_bytes()) for i in catalog.test if i.label == GOOD]
        for name, change in CHANGES.items():
            places = []
            scores = detector.score(
                [change(image) for image in good],
                on_image=lambda i, seen, places=places: places.append(seen.places),
            )
            drift = measure_drift(
                scores["p_value"].to_numpy(),
                scores["is_anomaly"].to_numpy(),
                np.stack(places),
                len(labels),
            )
            click.echo(
                f"| {category} | {len(good)} | {name} | {detector.effective_fpr():.3f} "
                f"| {drift.flagged:.3f} | {drift.statistic:.2f} | {drift.appearance:.2f} "
                f"| {drift.significance:.1g} |"
            )


if __name__ == "__main__":
    main()
