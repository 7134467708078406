"""From a data source to labelled items."""

import hashlib
import importlib.util
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from dfm_mlflow.data.accounting import Account, total, used_of
from dfm_mlflow.data.folder import Naming, read_folder
from dfm_mlflow.data.item import GOOD, Item
from dfm_mlflow.data.manifest import read_manifest
from dfm_mlflow.data.mvtec import mvtec_ad
from dfm_mlflow.data.names import EXTENSIONS, means_bad, means_good
from dfm_mlflow.data.source import (
    absolute,
    check_folder,
    holds_categories,
    is_category,
    listing,
)
from dfm_mlflow.errors import DataError
from dfm_mlflow.images.read import Look, look_at
from dfm_mlflow.storage import store
from dfm_mlflow.storage.paths import check_names
from dfm_mlflow.storage.store import S3Folder, map_in_threads

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

_logger = logging.getLogger(__name__)


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
    account : Account
        What was used of the source, and what was not.
    """

    name: str
    source: str
    items: tuple[Item, ...]
    account: Account = field(default_factory=Account)

    @property
    def train(self) -> list[Item]:
        """Good pictures to fit on, without those that are excluded."""
        return [item for item in self.items if item.split == "train" and not item.excluded]

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

    @property
    def known(self) -> Mapping[str, Look]:
        """Digest and size of the pictures that somebody has looked at already."""
        return self._known

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
            f"{i.category}\0{'excluded' if i.excluded else i.split}\0{i.label}\0"
            f"{self.contents[str(i.path)]}"
            for i in self.items
        )
        return hashlib.sha256("\n".join(rows).encode()).hexdigest()[:16]


def load_catalog(
    data: str,
    categories: Iterable[str],
    *,
    to_fit: bool = True,
    naming: Naming | None = None,
    all_tested: bool = False,
    fewest: int = 2,
) -> Catalog:
    """List the pictures of a source; the log says in one line what is used and what is not.

    Parameters
    ----------
    data : str
        ``auto``, ``mvtec_ad``, ``elpv``, a manifest (``.csv``), or a folder or ``s3://`` prefix:
        one that holds a folder for each category, or that of the only category itself.
        ``docs/inputs.md`` has the layouts.
    categories : iterable of str
        Category names.
    to_fit : bool
        Whether every category must have good pictures to fit on, or any picture will do.
    naming : Naming, optional
        Folders, or labels of a manifest, that options say the meaning of.
    all_tested : bool
        Whether good pictures that no folder deals to fitting or testing are all tested on.
    fewest : int
        Good pictures to fit on that every category must have.

    Returns
    -------
    Catalog

    Raises
    ------
    DataError
        If the source is missing, a category is empty or has too few good pictures to fit on,
        a name may mean either way, or more than half of a category's pictures would not be used.
    """
    categories, naming = tuple(categories), naming or Naming.of()
    if data == "auto":
        data = _source_of(categories)
    if naming and data in ("elpv", "mvtec_ad"):
        raise DataError(f"good=, bad= and masks= have no meaning for data={data}: leave them out.")
    account = None
    if data == "elpv":
        items = [item for c in categories for item in _elpv(c)]
    elif data.lower().endswith(".csv"):
        items = read_manifest(data, categories, naming.good, naming.bad)
    else:
        root = mvtec_ad() if data == "mvtec_ad" else store.folder(absolute(data))
        try:
            items, account = _from_folder(root, categories, naming, to_fit, all_tested)
        except OSError as error:
            raise DataError(
                f"The folder {root} cannot be searched ({error.strerror}): check its permissions "
                "and the names of the categories."
            ) from None
        data = str(root)
    check_names((*categories, data))
    for item in items:
        check_names(str(part) for part in (item.path, item.mask or "", item.label))
    _check(items, categories, to_fit, fewest)
    name = ",".join(categories)
    account = account or Account(used_of(name, items, data))
    account.log(_logger)
    return Catalog(name=name, source=data, items=tuple(items), account=account)


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
    root: Path | S3Folder,
    categories: tuple[str, ...],
    naming: Naming,
    to_fit: bool,
    all_tested: bool,
) -> tuple[list[Item], Account]:
    check_folder(root)
    nested = [c for c in categories if (root / c).is_dir()]
    missing = [c for c in categories if c not in nested]
    # Of pictures that are only to be scored, nobody need say which of several categories they are.
    itself = len(categories) == 1 or not (to_fit or nested or is_category(root, labelled=True))
    if missing and not itself:
        raise DataError(
            f"{root} holds no folder with pictures for {', '.join(missing)}: it holds "
            f"{listing(root)}."
        )
    if missing and not naming and holds_categories(root):
        raise DataError(
            f"{root} holds neither the folder {categories[0]} nor pictures "
            f"({', '.join(sorted(EXTENSIONS))}): it holds {listing(root)}. Call the category's "
            "folder by its name, or say what its folders hold with good= and bad=."
        )
    folders = [(root, categories[0])] if missing else [(root / c, c) for c in categories]
    parts = [read_folder(*pair, naming, all_tested=all_tested) for pair in folders]
    return [item for items, _ in parts for item in items], total(a for _, a in parts)


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


def _check(items: list[Item], categories: tuple[str, ...], to_fit: bool, fewest: int) -> None:
    for category in categories:
        if means_good(category) or means_bad(category):
            raise DataError(
                f"'{category}' is a label, not a category: name the category by the product, with "
                "category=<name>."
            )
        n_train = sum(
            i.category == category and i.split == "train" and not i.excluded for i in items
        )
        n_test = sum(i.category == category and i.split == "test" for i in items)
        if not to_fit:
            if not items:
                raise DataError(f"The category {category} has no pictures at all: add some.")
            continue
        if n_train == 0 and n_test > 0:
            raise DataError(
                f"The category {category} has {n_test} test pictures and none to fit on: "
                "put good pictures into its train/good folder, or name their folder with good=."
            )
        if n_train < fewest:
            raise DataError(
                f"The category {category} has {n_train} good pictures to fit on, and at least "
                f"{fewest} are needed: add some"
                + (", or give preset=tokens, which fits to one." if n_train else ".")
            )
