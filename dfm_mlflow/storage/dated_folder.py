"""A folder on disk or in S3 whose files have an age: written whole, listed, removed."""

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dfm_mlflow.errors import DataError
from dfm_mlflow.storage.paths import local_path
from dfm_mlflow.storage.store import SCHEME, delete, read, split_uri, upload
from dfm_mlflow.storage.whole_file import DRAFT, whole_file

_ABANDONED = 600  # seconds; no write of a file takes so long


@dataclass(frozen=True)
class Dated:
    """A file, and when it was written."""

    name: str  # below the folder, with slashes
    size: int  # in bytes
    stamp: float  # seconds since 1970


class DatedFolder:
    """Files below a local folder or an ``s3://`` prefix."""

    def __init__(self, address: str):
        self._uri: str | None = None
        self._path = Path()
        if address.startswith(SCHEME):
            split_uri(address)
            self._uri = address.rstrip("/")
        else:
            self._path = local_path(address).absolute()

    def __str__(self) -> str:
        return self._uri or str(self._path)

    @property
    def path(self) -> Path | None:
        """The folder on this machine; None where it is in S3."""
        return None if self._uri else self._path

    def address(self, name: str) -> str:
        """Give the full address of the file `name`."""
        return f"{self}/{name}"

    def files(self, below: str) -> list[Dated]:
        """List all files of the folder `below`, at any depth, in no order; drafts are left out.

        Drafts of writers that were killed are removed.
        """
        if self._uri is None:
            return self._local(below)
        from dfm_mlflow.storage import s3

        bucket, key = split_uri(f"{self._uri}/{below}/")
        cut = len(split_uri(f"{self._uri}/")[1])
        return [Dated(k[cut:], size, stamp) for k, size, stamp in s3.list_dated(bucket, key)]

    def write(self, name: str, data: bytes) -> None:
        """Write `data` as a file, whole or not at all; what has that `name` is replaced."""
        if self._uri is not None:
            upload(self.address(name), data)
            return
        with whole_file(self._path / name) as draft:
            draft.write_bytes(data)

    def read(self, name: str) -> bytes:
        """Read the file `name`."""
        return read(self.address(name)) if self._uri else (self._path / name).read_bytes()

    def delete(self, name: str) -> None:
        """Remove the file `name`, if it is there."""
        if self._uri is not None:
            delete(self.address(name))
            return
        try:
            (self._path / name).unlink(missing_ok=True)
        except OSError as error:
            raise DataError(
                f"{self.address(name)} cannot be removed ({error.strerror}): check its folder."
            ) from None

    def _local(self, below: str) -> list[Dated]:
        found, folders = [], [self._path / below]
        while folders:
            try:
                entries = list(os.scandir(folders.pop()))
            except (FileNotFoundError, NotADirectoryError):
                continue
            for entry in entries:
                with suppress(FileNotFoundError):  # another process removed it
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(Path(entry.path))
                    elif entry.is_file(follow_symlinks=False):
                        found += self._dated(entry)
        return found

    def _dated(self, entry: "os.DirEntry[str]") -> list[Dated]:
        stat = entry.stat(follow_symlinks=False)
        if entry.name.startswith(DRAFT):
            if abs(time.time() - stat.st_mtime) > _ABANDONED:
                Path(entry.path).unlink(missing_ok=True)
            return []
        name = Path(entry.path).relative_to(self._path).as_posix()
        return [Dated(name, stat.st_size, stat.st_mtime)]
