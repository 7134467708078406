"""Quality of presets on folders of MVTec-layout categories, beside published figures.

    python benchmarks/quality.py DATA_ROOT... --weights resnet18.safetensors --csv quality.csv

One row a category and preset: image AUROC, average precision and F1 at its best threshold (F1-max,
optimistic, for comparison with published tables), AUROC by the NLL, pixel AUROC and AUPRO where
there are masks, seconds of fitting with calibration, scored images a second. `--elpv` adds the
solar cells of the extra [sample]. Published columns (image AUROC, ResNet-18, MVTec AD): anomalib
0.3's README (average pool) and anomalib's since 0.4 (layer3, pooled by 2). Nothing is logged and
no label chooses anything. Prints Markdown.
"""

import csv
import itertools
import time
from pathlib import Path

import click

from dfm_mlflow.config import Options
from dfm_mlflow.data.catalog import ELPV, load_catalog
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.network.builder import build_extractor
from dfm_mlflow.scores.evaluation import image_metrics, pixel_metrics_of, score_items

COLUMNS = {
    "image_auroc": "image AUROC",
    "image_average_precision": "AP",
    "image_f1_max": "F1-max",
    "image_auroc_nll": "AUROC by NLL",
    "pixel_auroc": "pixel AUROC",
    "pixel_aupro": "AUPRO",
    "fit_seconds": "fit, s",
    "images_per_second": "images/s",
    "anomalib-0.3": "anomalib 0.3",
    "anomalib": "anomalib",
}
PUBLISHED = {
    "anomalib-0.3": {
        "carpet": 0.864,
        "grid": 0.558,
        "leather": 0.945,
        "tile": 0.984,
        "wood": 0.946,
        "bottle": 0.994,
        "cable": 0.913,
        "capsule": 0.871,
        "hazelnut": 0.979,
        "metal_nut": 0.941,
        "pill": 0.838,
        "screw": 0.761,
        "toothbrush": 0.95,
        "transistor": 0.911,
        "zipper": 0.949,
    },
    "anomalib": {
        "carpet": 0.817,
        "grid": 0.736,
        "leather": 0.993,
        "tile": 0.966,
        "wood": 0.977,
        "bottle": 1.0,
        "cable": 0.956,
        "capsule": 0.944,
        "hazelnut": 0.994,
        "metal_nut": 0.922,
        "pill": 0.961,
        "screw": 0.89,
        "toothbrush": 0.969,
        "transistor": 0.939,
        "zipper": 0.969,
    },
}


def measure(
    preset: str, data: str, category: str, backbone: str, weights: str, precision: str
) -> tuple[str, dict[str, float]]:
    """Fit, score and compute every metric of one category; gives the precision, too."""
    given = {
        "preset": preset,
        "data": data,
        "category": category,
        "weights": weights,
        "precision": precision,
    }
    if backbone != "auto":
        given["backbone"] = backbone
    options = Options.parse(given).resolve()
    catalog = load_catalog(options.data, options.categories)
    extractor, about, options = build_extractor(options, catalog.train)
    extractor.cache = None  # speed is that of a first run
    extraction = extractor.extract([i.path for i in catalog.train], progress=category)
    labels = [catalog.train[i].category for i in extraction.kept]
    start = time.perf_counter()
    detector = AnomalyDetector.fit(options, extractor, extraction, labels, about)
    fitted = time.perf_counter()
    evaluation = score_items(detector, catalog.test)
    scored = time.perf_counter()
    metrics = image_metrics(evaluation.table)
    metrics |= pixel_metrics_of(detector, catalog.test, evaluation)
    metrics |= {
        "fit_seconds": fitted - start,
        "images_per_second": len(catalog.test) / (scored - fitted),
    }
    published = {k: v[category] for k, v in PUBLISHED.items() if category in v}
    return extractor.precision, metrics | published


def cell(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if name == "images_per_second" else f"{value:.4f}"


@click.command()
@click.argument("roots", nargs=-1, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--elpv", is_flag=True, help="Add the ELPV solar cells.")
@click.option("--category", "only", multiple=True, help="Only these categories.")
@click.option("--backbone", default="auto", show_default=True)
@click.option("--weights", default="imagenet", show_default=True)
@click.option("--preset", "presets", multiple=True, default=("anomalib", "default"))
@click.option("--precision", "precisions", multiple=True, default=("auto",), show_default=True)
@click.option(
    "--csv", "csv_file", type=click.Path(path_type=Path), help="Write the table here too."
)
def main(roots, elpv, only, backbone, weights, presets, precisions, csv_file):
    """Print the table."""
    places = [("elpv", c) for c in ELPV] if elpv else []
    places += [
        (str(root), folder.name)
        for root in roots
        for folder in sorted(root.iterdir())
        if (folder / "train" / "good").is_dir() and (folder / "test").is_dir()
    ]
    places = [p for p in places if not only or p[1] in only]
    click.echo(f"| category | preset | precision | {' | '.join(COLUMNS.values())} |")
    click.echo("|---" * (len(COLUMNS) + 3) + "|")
    rows = []
    for data, category in places:
        for preset, asked in itertools.product(presets, precisions):
            precision, metrics = measure(preset, data, category, backbone, weights, asked)
            about = {"category": category, "preset": preset, "precision": precision}
            rows.append(about | metrics)
            cells = [*about.values(), *(cell(name, metrics.get(name)) for name in COLUMNS)]
            click.echo(f"| {' | '.join(cells)} |")
    if csv_file and rows:
        with csv_file.open("w", newline="") as file:
            names = ["category", "preset", "precision", *COLUMNS]
            writer = csv.DictWriter(file, names, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
