"""Every picture below a folder or prefix, or that a pattern names; paths only, nothing is read."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from dfm_mlflow.data.catalog import EXTENSIONS
from dfm_mlflow.errors import DataError
from dfm_mlflow.storage.paths import check_names, local_path
from dfm_mlflow.storage.store import SCHEME, S3Folder, S3Object, find, split_uri

T = TypeVar("T", Path, S3Object)
_WILD = re.compile(r"[*?\[]")


def find_pictures(address: str) -> list[Path | S3Object]:
    """List pictures.

    Parameters
    ----------
    address : str
        A folder or ``s3://`` prefix, which is searched at any depth for pictures; one file or
        object; or a pattern, local or ``s3://``: ``*`` and ``?`` stay within a folder's name and
        ``**`` goes to any depth. What a pattern names need not end like a picture.

    Returns
    -------
    list of Path or S3Object
        In the order of their names.

    Raises
    ------
    DataError
        If there is nothing, the store cannot be reached, or a name is no text.
    """
    pattern = bool(_WILD.search(address))
    found = _in_s3(address, pattern) if address.startswith(SCHEME) else _local(address, pattern)
    if not found:
        kinds = "" if pattern else f" ({', '.join(sorted(EXTENSIONS))})"
        raise DataError(f"There is no picture{kinds} in {address}: correct the address.")
    check_names(map(str, found))
    return sorted(found, key=str)


def _local(address: str, pattern: bool) -> list[Path]:
    path = local_path(address)
    if path.is_file():
        return [path]
    if path.is_dir():
        return _pictures(p for p in path.rglob("*") if p.is_file())
    if not pattern:
        raise DataError(f"{address} is not there: give a folder, a pattern or an s3:// prefix.")
    parts = path.parts
    fixed = next(i for i, part in enumerate(parts) if _WILD.search(part))
    root = Path(*parts[:fixed])
    if not root.is_dir():
        raise DataError(f"The folder {root} of {address} is not there: correct the pattern.")
    matches = _matcher("/".join(parts[fixed:]))
    return [p for p in root.rglob("*") if matches(p.relative_to(root).as_posix()) and p.is_file()]


def _in_s3(address: str, pattern: bool) -> list[S3Object]:
    bucket, key = split_uri(address)
    if not pattern:
        below = _pictures(S3Folder(address).walk())
        return below or ([find(address)] if Path(key).suffix.lower() in EXTENSIONS else [])
    head = key[: _WILD.search(key).start()].rpartition("/")[0]  # type: ignore[union-attr]  # it has one
    root = S3Folder(f"{SCHEME}{bucket}/{head}")
    matches = _matcher(key)
    return [o for o in root.walk() if matches(split_uri(o.uri)[1])]


def _pictures(files: Iterable[T]) -> list[T]:
    return [f for f in files if f.suffix.lower() in EXTENSIONS]


def _matcher(pattern: str) -> Callable[[str], re.Match[str] | None]:
    """Shell pattern over whole paths; pathlib has one from Python 3.13 on."""
    words = re.split(r"(\*\*/|\*\*|\*|\?|\[!?[^\]]+\])", pattern)
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    expression = ""
    for word in words:
        if word.startswith("[") and word.endswith("]"):
            expression += "[^" + word[2:] if word.startswith("[!") else word
        else:
            expression += known.get(word, re.escape(word))
    try:
        return re.compile(expression, re.S).fullmatch
    except re.error as error:
        raise DataError(f"The pattern {pattern} is none ({error.msg}): correct it.") from None
