"""The published few-picture protocol on all categories of MVTec AD or VisA; ``quality.py`` runs it.

Settings are fixed before anything is run: the preset as it is, three draws of the pictures for few
shots and one fit for `full`, no picture of the test split looked at before it is scored. Each row
goes to the CSV as soon as it is there, and rows that are there are not run again.
"""

import csv
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

CATEGORIES = {
    "mvtec": (
        *("bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut"),
        *("pill", "screw", "tile", "toothbrush", "transistor", "wood", "zipper"),
    ),
    "visa": (
        *("candle", "capsules", "cashew", "chewinggum", "fryum", "macaroni1", "macaroni2"),
        *("pcb1", "pcb2", "pcb3", "pcb4", "pipe_fryum"),
    ),
}
# Mean image AUROC over all categories, by source and shots.
PUBLISHED = {
    "mvtec": {
        "SubspaceAD (CVPR 2026), a large network": {"1": 0.971, "4": 0.980},
        "AnomalyDINO, nearest neighbours": {"1": 0.966, "4": 0.977},
        "anomalib since 0.4, DFM, ResNet-18": {"full": 0.936},
    },
    "visa": {},
}
DRAWS = 3
METRICS = ("image_auroc", "image_average_precision", "image_f1_max", "pixel_auroc", "pixel_aupro")
_KEY = ("protocol", "settings", "category", "shots", "draw")


@dataclass(frozen=True)
class Cell:
    """One fit: a category, its pictures, and the draw of them."""

    category: str
    shots: str
    draw: int


def cells(protocol: str, shots: Iterable[str], root: Path) -> list[Cell]:
    """What is to be run; categories that the folder lacks are said."""
    known = CATEGORIES[protocol]
    there = [c for c in known if (root / c).is_dir()]
    if missing := [c for c in known if c not in there]:
        click.echo(f"Not in {root}: {', '.join(missing)}.", err=True)
    return [
        Cell(category, s, draw)
        for category in there
        for s in shots
        for draw in range(1 if s == "full" else DRAWS)
    ]


def run(
    protocol: str,
    shots: tuple[str, ...],
    root: Path,
    file: Path,
    settings: str,
    measure: Callable[[Cell], dict[str, float]],
) -> list[dict[str, str]]:
    """Run what the CSV does not hold; gives all rows of these settings."""
    rows = read(file)
    done = {tuple(row[k] for k in _KEY) for row in rows}
    for cell in cells(protocol, shots, root):
        key = (protocol, settings, cell.category, cell.shots, str(cell.draw))
        if key in done:
            continue
        metrics = measure(cell)
        values = {m: f"{metrics[m]:.6f}" if m in metrics else "" for m in METRICS}
        rows.append(dict(zip(_KEY, key, strict=True)) | values)
        write(file, rows)
    return [r for r in rows if r["protocol"] == protocol and r["settings"] == settings]


def read(file: Path) -> list[dict[str, str]]:
    if not file.is_file():
        return []
    with file.open(newline="") as source:
        return list(csv.DictReader(source))


def write(file: Path, rows: list[dict[str, str]]) -> None:
    draft = file.with_suffix(".tmp")
    with draft.open("w", newline="") as target:
        writer = csv.DictWriter(target, [*_KEY, *METRICS])
        writer.writeheader()
        writer.writerows(rows)
    draft.replace(file)


def table(protocol: str, shots: tuple[str, ...], rows: list[dict[str, str]]) -> list[str]:
    """Lines of Markdown: image AUROC by category, mean and deviation, and what was published."""
    lines = [f"| {protocol} | {' | '.join(shots)} |", "|---" * (len(shots) + 1) + "|"]
    by: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        by.setdefault((row["category"], row["shots"]), []).append(float(row["image_auroc"]))
    there = [c for c in CATEGORIES[protocol] if any((c, s) in by for s in shots)]
    for category in there:
        found = [by.get((category, s)) for s in shots]
        lines.append(f"| {category} | {' | '.join(map(_mean, found))} |")
    means = []
    for s in shots:
        # the mean over categories of each draw, and the deviation of these over draws
        draws = zip(*(by[c, s] for c in there if (c, s) in by), strict=False)
        of_draws = [float(np.mean(d)) for d in draws]
        means.append(_mean(of_draws or None))
    lines.append(f"| **mean of {len(there)}, +- over draws** | {' | '.join(means)} |")
    for source, values in PUBLISHED[protocol].items():
        cells_ = [f"{values[s]:.3f}" if s in values else "" for s in shots]
        lines.append(f"| {source} | {' | '.join(cells_)} |")
    if len(there) < len(CATEGORIES[protocol]):
        lines.append(
            f"\nOnly {len(there)} of {len(CATEGORIES[protocol])} categories: the mean is not that "
            "of the published figures."
        )
    return lines


def _mean(values: list[float] | None) -> str:
    if not values:
        return ""
    spread = f" +- {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"
