"""Pictures that a person has looked at and leaves out of fitting and calibration."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from dfm_mlflow.data.catalog import Catalog
from dfm_mlflow.data.item import Item
from dfm_mlflow.data.listed import Finder, nothing_found, read_list
from dfm_mlflow.errors import DataError

REASON = "named by exclude"


def without_excluded(catalog: Catalog, address: str, *, of_several: bool = False) -> Catalog:
    """Mark the training pictures that a file names, so that nothing is fitted to them."""
    if address == "none":
        return catalog
    lines = read_list(address, "exclude")
    training = [item for item in catalog.items if item.split == "train"]
    by_content = any(line.sha256 for line in lines)
    finder = Finder(training, catalog.contents if by_content else None)
    reasons: dict[str, str] = {}
    for line in lines:
        found = finder.find(line)
        if not found and not (of_several and not finder.ambiguous(line)):
            raise nothing_found("exclude", address, line, finder)
        why = line.cells.get("reason") or line.cells.get("excluded") or REASON
        reasons |= {str(item.path): why for item in found}
    items = tuple(
        replace(item, excluded=reasons.get(str(item.path), item.excluded))
        if item.split == "train"
        else item
        for item in catalog.items
    )
    _check_enough_left(items, address)
    kept = replace(catalog, items=items)
    kept.note(catalog.known)
    return kept


def _check_enough_left(items: Sequence[Item], address: str) -> None:
    before = Counter(i.category for i in items if i.split == "train")
    after = Counter(i.category for i in items if i.split == "train" and not i.excluded)
    for category, n in before.items():
        if after[category] < min(2, n):
            raise DataError(
                f"exclude={address} leaves {after[category]} of {n} good pictures of {category} to "
                "fit on, and at least 2 are needed: leave out fewer."
            )
