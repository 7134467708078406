"""Near-duplicates: what is found of re-encoded, shifted and noisy copies, and what is called so.

    python benchmarks/near_duplicates.py --data FOLDER --category magnetic_tile --category pill

Good pictures of ELPV (extra [sample]) and of MVTec-layout categories are split at random; a split
is warned of where any two of its pictures are called near-duplicates. Then three of its pictures
get a copy of each kind. Of sets that hold several pictures of one thing, only one of each is
drawn:
magnetic_tile has up to six exposures of a tile under consecutive numbers, kolektorsdd one item
twice (kos38 and kos39, shifted). Neighbouring poly cells of ELPV are wafers of one brick, alike to
the eye, and count as different ones.
"""

import io
import re

import click
import numpy as np
from PIL import Image

from dfm_mlflow.config import Options
from dfm_mlflow.core.duplicates import Likeness
from dfm_mlflow.data.catalog import ELPV, load_catalog
from dfm_mlflow.data.item import GOOD
from dfm_mlflow.detector.grid import grids_of
from dfm_mlflow.detector.held_out import sketches_of
from dfm_mlflow.images.decode import decode_image
from dfm_mlflow.network.builder import build_extractor

N_COPIED = 3  # pictures of a split that have a copy


def jpeg(picture: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
    return np.array(Image.open(buffer).convert("RGB"))


def shifted(picture: np.ndarray, by: int) -> np.ndarray:
    h, w = picture.shape[:2]
    return picture[np.maximum(np.arange(h) - by, 0)][:, np.maximum(np.arange(w) - by, 0)]


def noisy(picture: np.ndarray, sigma: float) -> np.ndarray:
    rng = np.random.default_rng(int(picture.sum()))
    noise = rng.normal(0, sigma, (*picture.shape[:2], 1))
    return (picture + noise).round().clip(0, 255).astype(np.uint8)


KINDS = {
    "JPEG 95": lambda p: jpeg(p, 95),
    "JPEG 90": lambda p: jpeg(p, 90),
    "JPEG 80": lambda p: jpeg(p, 80),
    "shift 1": lambda p: shifted(p, 1),
    "shift 2": lambda p: shifted(p, 2),
    "noise 1": lambda p: noisy(p, 1),
    "noise 2": lambda p: noisy(p, 2),
    "noise 4": lambda p: noisy(p, 4),
    "3 % brighter": lambda p: (p * 1.03).clip(0, 255).astype(np.uint8),
}


def things_of(category: str, names: list[str]) -> np.ndarray:
    """Number what pictures show, where some show the same thing."""
    things = np.arange(len(names))
    if category == "magnetic_tile":
        found = [re.search(r"exp(\d)_num_(\d+)", name) for name in names]
        exposure, number = (np.array([int(m[k]) for m in found]) for k in (1, 2))
        order = np.argsort(number)
        new = (np.diff(number[order]) > 150) | (np.diff(exposure[order]) <= 0)
        things[order] = np.cumsum(np.r_[True, new])
    if category == "kolektorsdd":
        parts = [re.search(r"kos(\d+)_Part(\d)", name) for name in names]
        again = {m[0]: f"kos38_Part{int(m[2]) + 2}" for m in parts if m[1] == "39"}
        known = {m[0]: i for i, m in enumerate(parts)}
        for i, m in enumerate(parts):
            things[i] = known.get(again.get(m[0]), i)
    return things


def one_of_each(rng: np.random.Generator, things: np.ndarray, n: int) -> np.ndarray:
    order = rng.permutation(len(things))
    order = order[np.sort(np.unique(things[order], return_index=True)[1])]
    return order[: min(n, int(0.9 * len(order)))]


@click.command()
@click.option("--data", help="Folder of MVTec-layout categories.")
@click.option("--category", "categories", multiple=True, help="Category in it; may be repeated.")
@click.option("--elpv/--no-elpv", default=True, help="The ELPV solar cells too.")
@click.option("--weights", default="imagenet", show_default=True)
@click.option("--n", "sizes", multiple=True, type=int, default=(30, 100, 300), show_default=True)
@click.option("--splits", default=50, show_default=True)
@click.option("--copied", default=24, show_default=True, help="Pictures of which copies are made.")
def main(data, categories, elpv, weights, sizes, splits, copied) -> None:
    """Print a row for each set and size: clean splits that are warned of, and copies found."""
    click.echo("| set | n | clean splits warned of | " + " | ".join(KINDS) + " |")
    click.echo("|---" * (3 + len(KINDS)) + "|")
    for category, place in [(c, "elpv") for c in ELPV if elpv] + [(c, data) for c in categories]:
        given = {"category": category, "data": place, "weights": weights, "augment": "none"}
        options = Options.parse(given).resolve()
        items = [i for i in load_catalog(place, (category,)).items if i.label == GOOD]
        extractor, _, _ = build_extractor(options)
        found = extractor.extract([i.path for i in items], progress=category)
        grids = grids_of((f.shape[1:] for f in found.features), extractor.pixels.roi_cells)
        sketches = sketches_of(found.features, grids)
        things = things_of(category, [i.path.name for i in items])
        rng = np.random.default_rng(0)
        sources = rng.permutation(len(items))[:copied]
        pictures = [decode_image(items[i].path.read_bytes()) for i in sources]
        copies = {
            kind: sketches_of(extractor.extract([make(p) for p in pictures]).features, grids)
            for kind, make in KINDS.items()
        }
        for n in sizes:
            warned, hits = 0, dict.fromkeys(KINDS, 0)
            for _ in range(splits):
                mine = one_of_each(rng, things, n)
                warned += len(Likeness(sketches[mine]).within().found) > 0
            rounds = max(1, splits // 5)
            for kind in KINDS:
                for _ in range(rounds):
                    some = rng.permutation(copied)[:N_COPIED]
                    mine = one_of_each(rng, things, n)
                    mine = mine[~np.isin(things[mine], things[sources[some]])]
                    mine = np.concatenate([sources[some], mine[: len(mine) - N_COPIED]])
                    near = Likeness(np.concatenate([sketches[mine], copies[kind][some]])).within()
                    hits[kind] += sum(near.of[len(mine) + j] == j for j in range(N_COPIED))
            cells = [f"{k / (rounds * N_COPIED):.0%}" for k in hits.values()]
            click.echo(f"| {category} | {n} | {warned} of {splits} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
