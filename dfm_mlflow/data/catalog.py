"""From a data source to labelled items."""

import hashlib
import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from dfm_mlflow.data.item import GOOD, Item
from dfm_mlflow.data.manifest import read_manifest
from dfm_mlflow.data.mvtec import mvtec_ad
from dfm_mlflow.errors import DataError
from dfm_mlflow.images.read import Look, look_at
from dfm_mlflow.storage import store
from dfm_mlflow.storage.paths import check_names
from dfm_mlflow.storage.store import S3Folder, S3Object, map_in_threads

EXTENSIONS = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
MVTEC = (
    "bottle",
    "cable",
    "capsule",
    "carpet",
    "grid",
    "hazelnut",
    "leather",
    "metal_nut",
    "pill",
    "screw",
    "tile",
    "toothbrush",
    "transistor",
    "wood",
    "zipper",
)
ELPV = ("mono", "poly")


@dataclass(frozen=True)
class Catalog:
    """The labelled pictures of one or several categories.

    Attributes
    ----------
    name : str
        The categories, separated by commas.
    source : str
        Where the pictures are: ``elpv``, a manifest, a folder or an ``s3://`` prefix.
    items : tuple of Item
    """

    name: str
    source: str
    items: tuple[Item, ...]

    @property
    def train(self) -> list[Item]:
        """Good pictures to fit on."""
        return [item for item in self.items if item.split == "train"]

    @property
    def test(self) -> list[Item]:
        """Pictures to evaluate on; empty for a flat folder."""
        return [item for item in self.items if item.split == "test"]

    @property
    def contents(self) -> dict[str, str]:
        """SHA-256 of every picture's content, by its path or address.

        Pictures that nobody has looked at yet are read for it, in parallel.
        """
        return {path: look.sha256 for path, look in self.looks.items()}

    @property
    def looks(self) -> dict[str, Look]:
        """Digest and size of every picture, by its path or address; unknown ones are read."""
        unknown = {str(i.path): i.path for i in self.items if str(i.path) not in self._known}
        self.note(dict(zip(unknown, map_in_threads(look_at, list(unknown.values())), strict=True)))
        return {str(item.path): self._known[str(item.path)] for item in self.items}

    def note(self, looks: Mapping[str, Look]) -> None:
        """Take over `looks` at pictures from whoever read them, by path or address."""
        self._known.update(looks)

    @cached_property
    def _known(self) -> dict[str, Look]:
        return {}

    @cached_property
    def digest(self) -> str:
        """First 16 hexadecimal digits of a SHA-256 over roles, labels and contents.

        The same for the same pictures on disk and in S3.
        """
        rows = sorted(
            f"{i.category}\0{i.split}\0{i.label}\0{self.contents[str(i.path)]}" for i in self.items
        )
        return hashlib.sha256("\n".join(rows).encode()).hexdigest()[:16]


def load_catalog(data: str, categories: Iterable[str], *, to_fit: bool = True) -> Catalog:
    """List the pictures of a source.

    Parameters
    ----------
    data : str
        ``auto``, ``mvtec_ad``, ``elpv``, a manifest (``.csv``), or a folder or ``s3://`` prefix:
        one that holds an MVTec-layout folder (``train/good``, ``test/<defect>``,
        ``ground_truth/<defect>/*_mask.png``) for each category, or a flat folder of good pictures
        that the only category names.
    categories : iterable of str
        Category names.
    to_fit : bool
        Whether every category must have at least 2 good pictures to fit on, or any picture will do.

    Returns
    -------
    Catalog

    Raises
    ------
    DataError
        If the source is missing, a category is empty or has fewer than 2 good pictures to fit on.
    """
    categories = tuple(categories)
    if data == "auto":
        data = _source_of(categories)
    if data == "elpv":
        items = [item for c in categories for item in _elpv(c)]
    elif data.lower().endswith(".csv"):
        items = read_manifest(data, categories)
    else:
        root = mvtec_ad() if data == "mvtec_ad" else store.folder(data)
        try:
            items = _from_folder(root, categories, flat_for_all=not to_fit)
        except OSError as error:
            raise DataError(
                f"The folder {root} cannot be searched ({error.strerror}): check its permissions "
                "and the names of the categories."
            ) from None
        data = str(root)
    check_names((*categories, data))
    for item in items:
        check_names(str(part) for part in (item.path, item.mask or "", item.label))
    _check(items, categories, to_fit)
    return Catalog(name=",".join(categories), source=data, items=tuple(items))


def _source_of(categories: tuple[str, ...]) -> str:
    if set(categories) <= set(ELPV):
        return "elpv"
    if set(categories) <= set(MVTEC):
        return "mvtec_ad"
    raise DataError(
        f"data=auto knows the categories of MVTec AD and ELPV ({', '.join(ELPV)}), not "
        f"{', '.join(categories)}: give data=<folder>."
    )


def _from_folder(
    root: Path | S3Folder, categories: tuple[str, ...], *, flat_for_all: bool = False
) -> list[Item]:
    if root.is_file():
        raise DataError(f"{root} is a file and no .csv: give its folder, or a manifest .csv.")
    if not root.is_dir():
        raise DataError(f"The folder {root} does not exist: give data=<folder> that does.")
    nested = [c for c in categories if any((root / c / s).is_dir() for s in ("train", "test"))]
    if len(nested) == len(categories):
        return [item for c in categories for item in _mvtec_layout(root / c, c)]
    if nested or (len(categories) > 1 and not (flat_for_all and _images(root))):
        missing = ", ".join(c for c in categories if c not in nested)
        raise DataError(
            f"{root} holds no MVTec-layout folder (train/good, test/<defect>) for {missing}: "
            f"it holds {_listing(root)}."
        )
    if (root / "train").is_dir() or (root / "test").is_dir():
        raise DataError(
            f"{root} is itself an MVTec-layout folder: give the folder above it as data and "
            f"category={root.name}."
        )
    files = _images(root)
    if not files:
        raise DataError(
            f"{root} holds neither the folder {categories[0]}/train/good nor pictures "
            f"({', '.join(sorted(EXTENSIONS))}): it holds {_listing(root)}."
        )
    return [Item(path, categories[0], "train", GOOD) for path in files]


def _mvtec_layout(root: Path | S3Folder, category: str) -> list[Item]:
    items = [Item(p, category, "train", GOOD) for p in _images(root / "train" / GOOD)]
    others = [d.name for d in _folders(root / "train") if d.name != GOOD]
    if others:
        raise DataError(
            f"{root / 'train'} may hold only '{GOOD}', and holds {', '.join(others)}: "
            "the model is fitted on good pictures alone; move the others to test/."
        )
    for folder in _folders(root / "test"):
        masks = {p.name: p for p in _images(root / "ground_truth" / folder.name)}
        for path in _images(folder):
            mask = masks.get(f"{path.stem}_mask.png")
            items.append(Item(path, category, "test", folder.name, mask))
    return items


def _elpv(category: str) -> list[Item]:
    """Cells of one type: good = probability 0, defective = 1, 70 % of the good ones to fit on."""
    if category not in ELPV:
        raise DataError(f"ELPV has the categories {', '.join(ELPV)}, not {category}: name those.")
    spec = importlib.util.find_spec("elpv_dataset")
    if spec is None or spec.origin is None:
        raise DataError(
            "The ELPV solar cells are not installed (CC BY-NC-SA 4.0, non-commercial): "
            "pip install 'dfm-mlflow[sample]'."
        )
    root = Path(spec.origin).parent / "data"
    rows = [line.split() for line in (root / "labels.csv").read_text().splitlines() if line]
    cells = [(root / name, float(p)) for name, p, kind in rows if kind == category]
    good = [path for path, p in cells if p == 0]
    # The split is a property of the data set: it does not follow the run's seed.
    order = np.random.default_rng(42).permutation(len(good))
    n_train = int(0.7 * len(good))
    items = [Item(good[i], category, "train", GOOD) for i in order[:n_train]]
    items += [Item(good[i], category, "test", GOOD) for i in order[n_train:]]
    items += [Item(path, category, "test", "defective") for path, p in cells if p == 1]
    return items


def _check(items: list[Item], categories: tuple[str, ...], to_fit: bool) -> None:
    for category in categories:
        if category in (GOOD, "defect"):
            raise DataError(
                f"'{category}' is a label, not a category: name the category by the product, and "
                "keep good and defective pictures in its train/good and test/<defect> folders."
            )
        n_train = sum(i.category == category and i.split == "train" for i in items)
        n_test = sum(i.category == category and i.split == "test" for i in items)
        if not to_fit:
            if not items:
                raise DataError(f"The category {category} has no pictures at all: add some.")
            continue
        if n_train == 0 and n_test > 0:
            raise DataError(
                f"The category {category} has {n_test} test pictures and none to fit on: "
                "put good pictures into its train/good folder."
            )
        if n_train < 2:
            raise DataError(
                f"The category {category} has {n_train} good pictures to fit on, and at least 2 "
                "are needed: add some."
            )


def _images(folder: Path | S3Folder) -> list[Path | S3Object]:
    if not folder.is_dir():
        return []
    files = (p for p in folder.iterdir() if not isinstance(p, S3Folder) and p.is_file())
    found = [p for p in files if p.suffix.lower() in EXTENSIONS]
    return sorted(found, key=lambda p: p.name)


def _folders(folder: Path | S3Folder) -> list[Path | S3Folder]:
    if not folder.is_dir():
        return []
    found = [p for p in folder.iterdir() if not isinstance(p, S3Object) and p.is_dir()]
    return sorted(found, key=lambda p: p.name)


def _listing(folder: Path | S3Folder, most: int = 5) -> str:
    names = sorted(p.name for p in folder.iterdir())
    shown = ", ".join(names[:most]) or "nothing"
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
