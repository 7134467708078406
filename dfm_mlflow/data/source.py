"""Where ``data`` is, and which category it holds where nobody names one."""

import os
import re
from pathlib import Path, PurePosixPath

from dfm_mlflow.data.folder import Naming
from dfm_mlflow.data.manifest import categories_of
from dfm_mlflow.data.names import (
    BAD_NAMES,
    EXTENSIONS,
    GOOD_NAMES,
    TEST_NAMES,
    TRAIN_NAMES,
    VALIDATION_NAMES,
)
from dfm_mlflow.errors import DataError
from dfm_mlflow.storage import store
from dfm_mlflow.storage.paths import local_path
from dfm_mlflow.storage.store import S3Folder, S3Object
from dfm_mlflow.storage.walk import is_hidden

AUTO = "auto"
SETS = ("auto", "elpv", "mvtec_ad")  # whose categories must be named
_LABELLED = TRAIN_NAMES | VALIDATION_NAMES | TEST_NAMES | GOOD_NAMES | BAD_NAMES
_SCHEME = re.compile(r"[a-z]\w+:")  # s3://, and those of sources that somebody adds
_REFUSED = re.compile(r"[/\\,:%\"']")  # in the name of a category


def absolute(data: str) -> str:
    """Write a relative local path out; data sets and ``s3://`` addresses stay."""
    if data in SETS or _SCHEME.match(data):
        return data
    return os.path.abspath(local_path(data))


def category_of(data: str, category: str, naming: Naming) -> str:
    """Say which category a source holds, where that is left to it.

    A folder with ``train``, labels or pictures is called by its own name; one that holds one such
    folder by that one's; a manifest by its classes, or by its name without them.
    """
    if category != AUTO:
        return category
    if data in SETS:
        raise DataError(
            f"data={data} does not say which category is meant: give category=<name>, such as "
            "category=bottle of MVTec AD or category=mono of ELPV, or data=<folder>."
        )
    address = absolute(data)
    if data.lower().endswith(".csv"):
        found = categories_of(address)
        return ",".join(found) or _name(PurePosixPath(address).stem)
    root = store.folder(address)
    try:
        check_folder(root)
        if naming or is_category(root):
            return _name(root.name)
        folders = [f for f in _folders(root) if is_category(f, labelled=True)]
    except OSError as error:
        raise DataError(
            f"The folder {root} cannot be searched ({error.strerror}): check its permissions."
        ) from None
    if len(folders) > 1:
        raise DataError(
            f"{root} holds the categories {', '.join(f.name for f in folders)}: give "
            "category=<name>, or several separated by commas."
        )
    return _name((folders[0] if folders else root).name)


def check_folder(root: Path | S3Folder) -> None:
    """Refuse what is not a folder; an absolute path says which one was meant."""
    if root.is_file():
        raise DataError(f"{root} is a file and no .csv: give its folder, or a manifest .csv.")
    if not root.is_dir():
        raise DataError(f"The folder {root} does not exist: give data=<folder> that does.")


def is_category(root: Path | S3Folder, *, labelled: bool = False) -> bool:
    """Whether a folder is that of one category: with splits, labels or pictures in it."""
    names = {folder.name.casefold() for folder in _folders(root)}
    if names & _LABELLED or {"0", "1"} <= names:
        return True
    if "data" in names and any(
        inside.name.casefold() == "images"
        for folder in _folders(root)
        if folder.name.casefold() == "data"
        for inside in _folders(folder)
    ):
        return True  # VisA
    if labelled:
        return False
    return any(
        not isinstance(thing, S3Folder)
        and Path(thing.name).suffix.lower() in EXTENSIONS
        and not is_hidden(thing.name)
        and thing.is_file()
        for thing in root.iterdir()
    )


def holds_categories(root: Path | S3Folder) -> bool:
    """Whether a folder, `root`, is that of no category, and holds folders that are."""
    if is_category(root):
        return False
    return any(is_category(folder, labelled=True) for folder in _folders(root))


def listing(folder: Path | S3Folder, most: int = 5) -> str:
    """Name the first things, at `most` so many, in a `folder`, for a message."""
    names = sorted(p.name for p in folder.iterdir())
    shown = ", ".join(names[:most]) or "nothing"
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def _name(name: str) -> str:
    """Turn the name of a folder into one that a category may have."""
    clean = _REFUSED.sub("-", name).strip().lstrip(".").strip()
    if not clean:
        raise DataError(f"The name {name!r} of the data names no category: give category=<name>.")
    return clean


def _folders(folder: Path | S3Folder) -> list[Path | S3Folder]:
    found: list[Path | S3Folder] = []
    for thing in folder.iterdir():
        if not isinstance(thing, S3Object) and not is_hidden(thing.name) and thing.is_dir():
            found.append(thing)
    return sorted(found, key=lambda f: f.name)
