"""What a turned or mirrored copy teaches, in other good pictures: what ``augment=auto`` asks.

    python benchmarks/copies.py DATA_ROOT --category pill --elpv --weights resnet18.safetensors

Of each set 30 good pictures are held out against each other: alone, with one copy each beside them,
and with 30 other good pictures beside them (half of the set each where it has fewer than 60). Each
cell is the share of the fall of the held-out residual that copies bring, and its standard error;
``auto`` keeps those whose mean is above 0.25 by two standard errors. No label takes part. Prints
Markdown.
"""

from pathlib import Path

import click
import numpy as np

from dfm_mlflow.config import Options
from dfm_mlflow.data.catalog import ELPV, load_catalog
from dfm_mlflow.detector.augment import worth_of_copies
from dfm_mlflow.detector.grid import grids_of
from dfm_mlflow.network.builder import build_extractor
from dfm_mlflow.network.copies import UPRIGHT, Copy

KINDS = {
    "mirrored": (Copy(0, True),),
    "half turn": (Copy(2, False),),
    "quarter turns": (Copy(1, False), Copy(3, False)),
    "one of the three turns": (Copy(1, False), Copy(2, False), Copy(3, False)),
    "mirrored top to bottom": (Copy(2, True),),
}


def row_of(data: str, category: str, weights: str, n: int, seed: int) -> list[str]:
    """Try every kind of copy on some pictures of a set."""
    given = {"data": data, "category": category, "weights": weights, "backbone": "resnet18"}
    options = Options.parse(given | {"augment": "none"}).resolve()
    catalog = load_catalog(options.data, options.categories)
    extractor, _, options = build_extractor(options, catalog.train)
    order = np.random.default_rng(seed).permutation(len(catalog.train))
    n = min(n, len(order) // 2)
    own, others = ([catalog.train[i].path for i in order[a : a + n]] for a in (0, n))
    ways = (UPRIGHT, *dict.fromkeys(one for kind in KINDS.values() for one in kind))
    features = extractor.extract(own, copies=ways).features
    grids = grids_of([f.shape[1:] for f in features], extractor.pixels.roi_cells, options.rows_are)
    rows = [g.rows(f).cpu().numpy() for g, f in zip(grids, features, strict=True)]
    apart = extractor.extract(others).features
    others = [g.rows(f).cpu().numpy() for g, f in zip(grids, apart, strict=True)]
    levels = options.levels_of(len(grids))
    cells = [category, str(n)]
    for kind in KINDS.values():
        # picture i is copied in the i-th way, in turn
        place = [i + n * ways.index(kind[i % len(kind)]) for i in range(n)]
        copies = [x[place] for x in rows]
        worth = worth_of_copies([x[:n] for x in rows], copies, others, levels, options.seed)
        cells.append(f"{worth.mean:.2f} +- {worth.error:.2f}{', kept' * worth.kept()}")
    return cells


@click.command(help=__doc__)
@click.argument("root", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--category", "categories", multiple=True, help="Folders of ROOT; all by default.")
@click.option("--elpv", is_flag=True, help="Add the ELPV solar cells.")
@click.option("--weights", default="imagenet", show_default=True)
@click.option("--n", default=30, show_default=True, help="Pictures that are copied.")
@click.option("--seed", default=0, show_default=True, help="Of the draw of pictures.")
def main(
    root: Path, categories: tuple[str, ...], elpv: bool, weights: str, n: int, seed: int
) -> None:
    names = categories or [p.parent.parent.name for p in sorted(root.glob("*/train/good"))]
    places = [(str(root), name) for name in names] + [("elpv", name) for name in ELPV * elpv]
    click.echo(f"| set | pictures | {' | '.join(KINDS)} |")
    click.echo("|---" * (len(KINDS) + 2) + "|")
    for data, category in places:
        click.echo(f"| {' | '.join(row_of(data, category, weights, n, seed))} |")


if __name__ == "__main__":
    main()
