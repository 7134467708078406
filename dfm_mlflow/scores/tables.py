"""The tables of a training run's pictures: ``train_scores.parquet`` and ``training.csv``."""

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from dfm_mlflow.core.groups import group_rows
from dfm_mlflow.data.catalog import Catalog
from dfm_mlflow.data.item import Item
from dfm_mlflow.detector.held_out import HeldOutScores


def _group_names(
    items: Sequence[Item], groups: Sequence[str] | None, contents: Mapping[str, str]
) -> dict[str, str]:
    """Name of the group of each picture that shares one with others, by path."""
    keys = [contents[str(i.path)] for i in items]
    numbers = group_rows(keys, groups)
    size = Counter(numbers.tolist())
    names: dict[str, str] = {}
    of_group: dict[int, str] = {}
    for row, item in enumerate(items):
        number, path = int(numbers[row]), str(item.path)
        declared = None if groups is None or groups[row] == path else groups[row]
        if size[number] > 1 or declared:
            names[path] = of_group.setdefault(number, declared or f"copies-of-{keys[row][:12]}")
    return names


def score_table(
    catalog: Catalog,
    items: Sequence[Item],
    held_out: HeldOutScores,
    groups: Sequence[str] | None,
) -> pd.DataFrame:
    """Make the table of the training pictures, one row each."""
    place = {str(item.path): i for i, item in enumerate(items)}
    contents = catalog.contents
    names = _group_names(items, groups, contents)
    rows = []
    for item in (i for i in catalog.items if i.split == "train"):
        path = str(item.path)
        i = place.get(path)
        rows.append(
            {
                "path": path,
                "sha256": contents[path],
                "category": item.category,
                "group": names.get(path),
                "held_out_score": math.nan if i is None else float(held_out.score[i]),
                "p_value": math.nan if i is None else float(held_out.p_value[i]),
                "used": i is not None,
            }
        )
    return pd.DataFrame(rows)


def picture_table(
    catalog: Catalog, items: Sequence[Item], groups: Sequence[str] | None
) -> pd.DataFrame:
    """Make the list of all pictures, good as the manifest of another run."""
    contents = catalog.contents
    names = _group_names(items, groups, contents)
    table = pd.DataFrame(
        {
            "path": [_from_anywhere(i.path) for i in catalog.items],
            "sha256": [contents[str(i.path)] for i in catalog.items],
            "split": [i.split for i in catalog.items],
            "label": [i.label for i in catalog.items],
            "mask": [
                "|".join(map(_from_anywhere, i.mask.files)) if i.mask else "" for i in catalog.items
            ],
            "category": [i.category for i in catalog.items],
            "group": [names.get(str(i.path)) or i.group or "" for i in catalog.items],
            "excluded": [i.excluded or "" for i in catalog.items],
        }
    )
    if any(i.part for i in catalog.items):
        table["part"] = [i.part or "" for i in catalog.items]
    return table


def _from_anywhere(path: object) -> str:
    """Give a path that means the same in a list that lies elsewhere, or an address."""
    return os.path.abspath(path) if isinstance(path, Path) else str(path)
