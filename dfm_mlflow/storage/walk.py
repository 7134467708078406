"""Every file below a folder or prefix, in one order, with what was left out and why."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from dfm_mlflow.storage.store import S3Folder, S3Object, split_uri

# Left out under any case; and so is every name that begins with a dot, such as
# .ipynb_checkpoints, .DS_Store and the ._* of a Mac.
_HIDDEN = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx"}
HIDDEN = "hidden"
NOWHERE = "links that lead nowhere"
AGAIN = "links to folders that are listed already"


@dataclass(frozen=True)
class File:
    """One file or object."""

    folders: tuple[str, ...]  # names of the folders between the root of the walk and the file
    source: Path | S3Object

    @property
    def name(self) -> str:
        """Name with its suffix."""
        return self.source.name

    @property
    def suffix(self) -> str:
        """Suffix in lower case, with the dot."""
        return self.source.suffix.lower()

    @property
    def place(self) -> str:
        """Path below the root of the walk, with slashes."""
        return "/".join((*self.folders, self.name))


@dataclass(frozen=True)
class Walk:
    """What is below a folder."""

    files: list[File] = field(default_factory=list)  # in the order of their places
    # How many entries were not looked at, by reason: :data:`HIDDEN` (a hidden folder counts as
    # one), :data:`NOWHERE`, :data:`AGAIN`.
    left_out: Counter[str] = field(default_factory=Counter)


def is_hidden(name: str) -> bool:
    """Whether a file or folder called `name` is some program's own, and no picture."""
    return name.startswith(".") or name.casefold() in _HIDDEN


def walk(root: Path | S3Folder) -> Walk:
    """List what is below a folder, at any depth; nothing is read.

    Links to folders are followed, and each folder is listed once: where it lies itself, if that is
    below the root, else where the first link to it is.
    """
    found = _in_s3(root) if isinstance(root, S3Folder) else _on_disk(root)
    found.files.sort(key=lambda file: file.place)
    return found


def _on_disk(root: Path) -> Walk:
    found = Walk()
    seen: set[tuple[int, int]] = set()
    links: list[tuple[Path, tuple[str, ...]]] = []  # to folders, looked at after what is no link
    for file in _below(root, (), seen, links, found.left_out):
        found.files.append(file)
    real = root.resolve()
    while links:
        links.sort(key=lambda link: link[1])
        folder, folders = links.pop(0)
        # a folder above the root would bring all that lies beside the root
        if _identity(folder) in seen or real.is_relative_to(folder.resolve()):
            found.left_out[AGAIN] += 1
            continue
        found.files.extend(_below(folder, folders, seen, links, found.left_out))
    return found


def _below(
    folder: Path,
    folders: tuple[str, ...],
    seen: set[tuple[int, int]],
    links: list[tuple[Path, tuple[str, ...]]],
    left_out: Counter[str],
) -> Iterator[File]:
    """Give the files below a folder that are reached without a link."""
    waiting = [(folder, folders)]
    while waiting:
        here, above = waiting.pop()
        seen.add(_identity(here))
        with os.scandir(here) as entries:
            for entry in entries:
                inside = (*above, entry.name)
                if is_hidden(entry.name):
                    left_out[HIDDEN] += 1
                elif entry.is_dir():
                    target = links if entry.is_symlink() else waiting
                    target.append((here / entry.name, inside))
                elif entry.is_file():
                    yield File(above, here / entry.name)
                elif entry.is_symlink():
                    left_out[NOWHERE] += 1


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _in_s3(root: S3Folder) -> Walk:
    found, hidden = Walk(), set()
    key = split_uri(root.uri)[1]
    for thing in root.walk():
        inside = split_uri(thing.uri)[1].removeprefix(key).lstrip("/")
        parts = PurePosixPath(inside).parts
        first = next((i for i, part in enumerate(parts) if is_hidden(part)), None)
        if first is None:
            found.files.append(File(parts[:-1], thing))
        else:
            hidden.add(parts[: first + 1])
    if hidden:
        found.left_out[HIDDEN] = len(hidden)
    return found
