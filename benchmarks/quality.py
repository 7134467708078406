"""Quality of presets on folders of MVTec-layout categories, beside published figures.

    python benchmarks/quality.py DATA_ROOT... --weights resnet18.safetensors --csv quality.csv
    python benchmarks/quality.py DATA_ROOT... --elpv --weights FILE --floors
    python benchmarks/quality.py DATA_ROOT... --elpv --weights FILE --ablation
    python benchmarks/quality.py DATA_ROOT... --weights FILE --few 4 --few 8 --few 16 --few 50
    python benchmarks/quality.py DATA_ROOT... --weights FILE --peer
    python benchmarks/quality.py MVTEC_ROOT --protocol mvtec --shots 1,4,full --csv protocol.csv

One row a category and preset: image AUROC, average precision and F1 at its best threshold (F1-max,
optimistic, for comparison with published tables), AUROC by the NLL, pixel AUROC and AUPRO where
there are masks, seconds of extracting and fitting with calibration, megabytes of the model, scored
images a second. `--elpv` adds the solar cells of the extra [sample]. Published columns (image
AUROC, ResNet-18, MVTec AD): anomalib 0.3's README (average pool) and anomalib's since 0.4 (layer3,
pooled by 2). Nothing is logged and no label chooses anything. Prints Markdown.

`--floors` fails where a figure is below what it was on a development set (ResNet-18 up to layer3);
the tests hold one of each preset. `--ablation` takes the parts of the default away one by one,
`--few N` fits to N of the good pictures (the mean of three draws) with and without copies, and
`--peer` adds PatchCore of anomalib with the same weights (layers 2 and 3, 1 % of the patches), in
the environment of `speed.py`.

`--protocol mvtec|visa` runs the published protocol on all categories of a folder with the preset
`tokens` (or `--preset`), prints means and deviations beside the published figures, and goes on from
the rows of its CSV after a break.
"""

import csv
import itertools
import json
import subprocess
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import protocol as published_protocol
from anomalib_env import DEFAULT, anomalib_python

from dfm_mlflow.artifact.save_load import save_detector
from dfm_mlflow.config import Options
from dfm_mlflow.data.catalog import ELPV, load_catalog
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.detector.augment import extract_to_fit
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
    "megabytes": "MB",
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
# Each row takes one part of the default away: the first is the default of version 0.1.
_BEFORE = {"pooling": "stride:32", "normalize": "position", "augment": "none"}
ABLATION = {
    "one grid, by position": _BEFORE,
    "one grid, blend": _BEFORE | {"normalize": "blend"},
    "16 and 32 pixels": {"pooling": "stride:16+stride:32", "augment": "none"},
    "no copies": {"augment": "none"},
    "default": {},
    "flips": {"augment": "flips"},
    "rotations": {"augment": "rotations"},
    "fine": {"preset": "fine"},
    "anomalib": {"preset": "anomalib"},
}
# What may not be fallen below, by category and preset: image AUROC, and AUPRO where there are masks
# (of the default, what preset anomalib reaches).
FLOORS = {
    ("magnetic_tile", "default"): (0.988, 0.759),
    ("magnetic_tile", "anomalib"): (0.985, 0.75),
    ("pill", "default"): (0.965, 0.878),
    ("pill", "anomalib"): (0.955, 0.875),
    ("kolektorsdd", "default"): (0.87, 0.632),
    ("mono", "default"): (0.955, None),
    ("mono", "anomalib"): (0.935, None),
    ("poly", "default"): (0.89, None),
}
FEW = {a: {"augment": a} for a in ("none", "flips", "rotations", "all", "auto")}
DRAWS = 3


def measure(
    given: dict[str, str], data: str, category: str, backbone: str, few: tuple[int, int] | None
) -> tuple[str, dict[str, float]]:
    """Fit, score and compute every metric of one category; gives what was done, too."""
    given = {**given, "data": data, "category": category}
    if backbone != "auto":
        given["backbone"] = backbone
    options = Options.parse(given).resolve()
    catalog = load_catalog(options.data, options.categories, fewest=options.fewest_pictures)
    extractor, about, options = build_extractor(options, catalog.train)
    if not few:
        extractor.cache = None  # speed is that of a first run
    good = catalog.train
    if few:
        n, draw = few
        rng = np.random.default_rng(draw)
        good = [good[i] for i in sorted(rng.permutation(len(good))[:n])]
    names = [i.category for i in good]
    start = time.perf_counter()
    extractor, extraction, trial = extract_to_fit(
        extractor, [i.path for i in good], names, options, progress=category
    )
    labels = [names[i] for i in extraction.kept]
    detector = AnomalyDetector.fit(options, extractor, extraction, labels, about)
    del extraction
    fitted = time.perf_counter()
    evaluation = score_items(detector, catalog.test)
    scored = time.perf_counter()
    metrics = image_metrics(evaluation.table)
    metrics |= {} if few else pixel_metrics_of(detector, catalog.test, evaluation)
    metrics["megabytes"] = megabytes(detector)
    if not few:
        metrics["fit_seconds"] = fitted - start
        metrics["images_per_second"] = len(catalog.test) / (scored - fitted)
    published = {k: v[category] for k, v in PUBLISHED.items() if category in v}
    if trial.sentence:
        click.echo(f"{category}: {trial.sentence}", err=True)
    return f"{extractor.precision}, {trial.augment}", metrics | published


def published(name, shots, roots, preset, backbone, weights, csv_file):
    """Run a published protocol on one folder of categories."""
    if len(roots) != 1:
        raise click.UsageError("--protocol needs one folder that holds all categories.")
    if bad := [s for s in shots if s != "full" and not (s.isdigit() and int(s))]:
        raise click.UsageError(f"--shots={bad[0]} is no number of pictures: give 1,4,full.")
    settings = f"preset={preset} backbone={backbone} weights={Path(weights).name}"
    given = {"preset": preset, "weights": weights}

    def one(cell: published_protocol.Cell) -> dict[str, float]:
        few = None if cell.shots == "full" else (int(cell.shots), cell.draw)
        click.echo(f"{cell.category}, {cell.shots}, draw {cell.draw}", err=True)
        return measure(given, str(roots[0]), cell.category, backbone, few)[1]

    file = csv_file or Path(f"{name}.csv")
    rows = published_protocol.run(name, shots, roots[0], file, settings, one)
    click.echo(f"{settings}; rows in {file}")
    click.echo("\n".join(published_protocol.table(name, shots, rows)))


def megabytes(detector: AnomalyDetector) -> float:
    """Size of the model's files."""
    with tempfile.TemporaryDirectory() as folder:
        save_detector(detector, Path(folder) / "dfm")
        return sum(f.stat().st_size for f in (Path(folder) / "dfm").iterdir()) / 1e6


def patchcore(python: Path, data: str, category: str, weights: str) -> dict[str, float]:
    """Image AUROC, seconds and speed of the peer."""
    script = Path(__file__).with_name("anomalib_patchcore.py")
    command = [python, script, str(Path(data) / category), "--weights", weights]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise click.ClickException(f"{script.name} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def below(rows: list[dict]) -> list[str]:
    """Say what is below its floor."""
    said = []
    for row in rows:
        floors = FLOORS.get((row["category"], row["preset"]), (None, None))
        for name, least in zip(("image_auroc", "pixel_aupro"), floors, strict=True):
            if least is not None and not row[name] >= least:
                said.append(
                    f"{row['category']}, {row['preset']}: {COLUMNS[name]} {row[name]:.4f} is below "
                    f"its floor {least}."
                )
    return said


def cell(name: str, value: float | None) -> str:
    if value is None:
        return ""
    coarse = ("images_per_second", "fit_seconds", "megabytes")
    return f"{value:.1f}" if name in coarse else f"{value:.4f}"


def echo_row(row: dict) -> None:
    cells = [row["category"], row["preset"], row["how"]]
    cells += [cell(name, row.get(name)) for name in COLUMNS]
    click.echo(f"| {' | '.join(cells)} |")


@click.command()
@click.argument("roots", nargs=-1, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--elpv", is_flag=True, help="Add the ELPV solar cells.")
@click.option("--category", "only", multiple=True, help="Only these categories.")
@click.option("--backbone", default="auto", show_default=True)
@click.option("--weights", default="imagenet", show_default=True)
@click.option("--preset", "presets", multiple=True, default=("anomalib", "default"))
@click.option("--precision", "precisions", multiple=True, default=("auto",), show_default=True)
@click.option("--floors", is_flag=True, help="Fail where one is not reached.")
@click.option("--ablation", is_flag=True, help="Take the parts of the default away.")
@click.option("--few", multiple=True, type=int, help="Fit to so few of the good images.")
@click.option("--peer", is_flag=True, help="Add PatchCore of anomalib.")
@click.option("--anomalib-venv", "venv", type=click.Path(path_type=Path), default=DEFAULT)
@click.option(
    "--protocol", type=click.Choice(sorted(published_protocol.CATEGORIES)), help="Run it whole."
)
@click.option("--shots", default="1,4,full", show_default=True, help="Pictures of the protocol.")
@click.option(
    "--csv", "csv_file", type=click.Path(path_type=Path), help="Write the table here too."
)
def main(
    roots,
    elpv,
    only,
    backbone,
    weights,
    presets,
    precisions,
    floors,
    ablation,
    few,
    peer,
    venv,
    protocol,
    shots,
    csv_file,
):
    """Print the table."""
    if protocol:
        preset = presets[0] if len(presets) == 1 else "tokens"
        published(protocol, tuple(shots.split(",")), roots, preset, backbone, weights, csv_file)
        return
    places = [("elpv", c) for c in ELPV] if elpv else []
    places += [
        (str(root), folder.name)
        for root in roots
        for folder in sorted(root.iterdir())
        if (folder / "train" / "good").is_dir() and (folder / "test").is_dir()
    ]
    places = [p for p in places if not only or p[1] in only]
    named = ABLATION if ablation else {p: {"preset": p} for p in presets}
    named = FEW if few else named
    python = anomalib_python(venv) if peer else None
    click.echo(f"| category | preset | precision, copies | {' | '.join(COLUMNS.values())} |")
    click.echo("|---" * (len(COLUMNS) + 3) + "|")
    rows = []
    for data, category in places:
        for (name, options), asked, n in itertools.product(
            named.items(), precisions, few or (None,)
        ):
            given = {"weights": weights, "precision": asked, **options}
            draws = [(n, draw) for draw in range(DRAWS)] if n else [None]
            found = [measure(given, data, category, backbone, draw) for draw in draws]
            # a draw that flags nothing has no precision
            in_all = set.intersection(*(set(m) for _, m in found))
            metrics = {k: float(np.mean([m[k] for _, m in found])) for k in sorted(in_all)}
            about = {
                "category": category,
                "preset": f"{name}, {n} images" if n else name,
                "how": found[0][0],
            }
            rows.append(about | metrics)
            echo_row(rows[-1])
        if python and data != "elpv":
            about = {"category": category, "preset": "PatchCore", "how": "fp32"}
            rows.append(about | patchcore(python, data, category, weights))
            echo_row(rows[-1])
    if csv_file and rows:
        with csv_file.open("w", newline="") as file:
            names = ["category", "preset", "how", *COLUMNS]
            writer = csv.DictWriter(file, names, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
    if floors:
        said = below(rows)
        click.echo("\n".join(said) if said else "Every floor is reached.")
        raise SystemExit(bool(said))


if __name__ == "__main__":
    main()
