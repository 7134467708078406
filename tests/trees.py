"""Folders of small files, whose content nobody reads, and what a catalog makes of them."""

from pathlib import Path

from dfm_mlflow.data.catalog import Catalog


def plant(root: Path, *places: str) -> Path:
    """Write files; ``train/good/{0..9}.png`` stands for ten of them."""
    for place in places:
        head, brace, rest = place.partition("{")
        numbers, _, tail = rest.partition("}")
        first, _, last = numbers.partition("..")
        names = [f"{head}{i}{tail}" for i in range(int(first), int(last) + 1)] if brace else [place]
        for name in names:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(name.encode())
    return root


def roles(catalog: Catalog, root: object) -> dict[str, str]:
    """Split and label of each picture, by its place below a folder or prefix."""
    return {str(i.path).removeprefix(f"{root}/"): f"{i.split} {i.label}" for i in catalog.items}


def counts(catalog: Catalog) -> dict[str, int]:
    """How many pictures have each split and label."""
    found: dict[str, int] = {}
    for item in catalog.items:
        key = f"{item.split} {item.label}"
        found[key] = found.get(key, 0) + 1
    return found


def masks(catalog: Catalog, root: object) -> dict[str, str]:
    """Places of the masks of each picture that has some, by its place."""
    head = f"{root}/"
    return {
        str(i.path).removeprefix(head): str(i.mask).replace(head, "")
        for i in catalog.items
        if i.mask
    }
