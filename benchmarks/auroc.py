"""Image AUROC of presets on ELPV (installed by the extra [sample]) and on MVTec-layout folders.

    python benchmarks/auroc.py --weights resnet18.safetensors --data FOLDER --category tile

Prints a Markdown table: one row a preset, one column a category. Weights are torchvision's ImageNet
ones unless a file is given. Nothing is logged.
"""

import click

from dfm_mlflow.config import Options
from dfm_mlflow.detector import AnomalyDetector
from dfm_mlflow.images.catalog import ELPV, load_catalog
from dfm_mlflow.jobs.evaluation import image_metrics, score_items
from dfm_mlflow.jobs.train import build_extractor


def measure(preset: str, data: str, category: str, backbone: str, weights: str) -> str:
    given = {
        "preset": preset, "data": data, "category": category, "backbone": backbone,
        "weights": weights,
    }  # fmt: skip
    options = Options.parse(given).resolve()
    catalog = load_catalog(options.data, options.categories)
    extractor, about, options = build_extractor(options)
    extraction = extractor.extract([i.path for i in catalog.train], progress=category)
    labels = [catalog.train[i].category for i in extraction.kept]
    detector = AnomalyDetector.fit(options, extractor, extraction, labels, about)
    metrics = image_metrics(score_items(detector, catalog.test).table)
    return " / ".join(f"{metrics[k]:.3f}" for k in ("image_auroc", "image_auroc_nll"))


@click.command()
@click.option("--data", help="Folder of MVTec-layout categories.")
@click.option("--category", "categories", multiple=True, help="Category in it; may be repeated.")
@click.option("--backbone", default="resnet18", show_default=True)
@click.option("--weights", default="imagenet", show_default=True)
@click.option("--preset", "presets", multiple=True, default=("anomalib", "default"))
def main(data, categories, backbone, weights, presets):
    """Print the table: AUROC of the preset's score / of the NLL."""
    places = [("elpv", c) for c in ELPV] + [(data, c) for c in categories]
    click.echo("| preset | " + " | ".join(c for _, c in places) + " |")
    click.echo("|---" * (1 + len(places)) + "|")
    for preset in presets:
        cells = [measure(preset, d, c, backbone, weights) for d, c in places]
        click.echo(f"| `{preset}` | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
