"""Files on disk and objects in S3 under one face, and a cache of what was read from S3.

An :class:`S3Object` is used where a file's path is, an :class:`S3Folder` where a folder's is; both
know just what a catalog asks of them. An object is named with the ETag and size that it had when
it was listed: other content under the same address is an error, never a silent mixture.
"""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import TypeVar

from joblib import cpu_count

from dfm_mlflow.errors import DataError
from dfm_mlflow.storage.cache_folder import cache_home
from dfm_mlflow.storage.content_cache import ContentCache
from dfm_mlflow.storage.paths import local_path

T = TypeVar("T")
SCHEME = "s3://"


@dataclass(frozen=True)
class S3Object:
    """One object as it was when it was listed."""

    uri: str  # ``s3://bucket/key``
    etag: str  # without quotation marks
    size: int  # in bytes
    cached: bool = True  # whether the cache keeps its content for the next time

    def __str__(self) -> str:
        return self.uri

    @property
    def name(self) -> str:
        """Last part of the key."""
        return PurePosixPath(self.uri).name

    @property
    def stem(self) -> str:
        """Name without its suffix."""
        return PurePosixPath(self.uri).stem

    @property
    def suffix(self) -> str:
        """Suffix of the name, with the dot."""
        return PurePosixPath(self.uri).suffix

    @property
    def parent(self) -> "S3Folder":
        """The folder that holds it."""
        return S3Folder(self.uri.rpartition("/")[0])

    def is_file(self) -> bool:
        """Tell it from a folder."""
        return True

    def is_dir(self) -> bool:
        """Tell it from a folder."""
        return False

    def read_bytes(self) -> bytes:
        """Read it, whatever its size."""
        return fetch(self)


class S3Folder:
    """A prefix; it is listed once, and all folders reached from it share what was listed."""

    def __init__(
        self, uri: str, _listed: dict[str, "list[S3Object | S3Folder]"] | None = None
    ) -> None:
        self.uri = uri.rstrip("/")
        split_uri(self.uri)
        self._listed = {} if _listed is None else _listed

    def __str__(self) -> str:
        return self.uri

    def __truediv__(self, name: str) -> "S3Folder":
        return S3Folder(f"{self.uri}/{name}", self._listed)

    @property
    def name(self) -> str:
        """Last part of the prefix."""
        return PurePosixPath(self.uri).name

    def is_file(self) -> bool:
        """Tell it from an object."""
        return False

    def is_dir(self) -> bool:
        """Whether anything lies under the prefix."""
        return bool(self.iterdir())

    def iterdir(self) -> "list[S3Object | S3Folder]":
        """Objects and folders one level below."""
        if self.uri not in self._listed:
            bucket, key = split_uri(self.uri)
            objects, prefixes = _s3().list_folder(bucket, f"{key}/" if key else "")
            self._listed[self.uri] = [
                *(S3Object(f"{SCHEME}{bucket}/{k}", etag, size) for k, etag, size in objects),
                *(S3Folder(f"{SCHEME}{bucket}/{p}", self._listed) for p in prefixes),
            ]
        return self._listed[self.uri]

    def walk(self) -> list[S3Object]:
        """Every object below, at any depth, in the order of the keys."""
        bucket, key = split_uri(self.uri)
        objects, _ = _s3().list_folder(bucket, f"{key}/" if key else "", recursive=True)
        return [S3Object(f"{SCHEME}{bucket}/{k}", etag, size) for k, etag, size in objects]


def split_uri(uri: str) -> tuple[str, str]:
    """Bucket and key of the ``s3://`` address `uri`; a key is taken as it is written."""
    bucket, _, key = uri.removeprefix(SCHEME).partition("/")
    if not uri.startswith(SCHEME) or not bucket:
        raise DataError(f"{uri} names no bucket: give s3://bucket/prefix.")
    return bucket, key


def folder(address: str) -> Path | S3Folder:
    """Folder of an `address`, which need not exist."""
    return S3Folder(address) if address.startswith(SCHEME) else local_path(address)


def find(uri: str) -> S3Object:
    """Look up the object of an ``s3://`` address, `uri`."""
    bucket, key = split_uri(uri)
    if not key:
        raise DataError(f"{uri} names a bucket, not an object: give s3://bucket/key.")
    return S3Object(uri, *_s3().look_up(bucket, key))


def find_all(uris: Sequence[str]) -> dict[str, S3Object | DataError]:
    """Look up the objects of many `uris` in parallel; an error stands in the place of its own."""

    def find_one(uri: str) -> S3Object | DataError:
        try:
            return find(uri)
        except DataError as error:
            return error

    if not uris:
        return {}
    with ThreadPoolExecutor(min(_s3().READERS, len(uris))) as pool:
        return dict(zip(uris, pool.map(find_one, uris), strict=True))


def read(source: str | Path | S3Object) -> bytes:
    """Read a `source`, a file or an object, given by its path, its address or itself."""
    if isinstance(source, str):
        return fetch(find(source)) if source.startswith(SCHEME) else Path(source).read_bytes()
    return source.read_bytes()


_READERS: dict[str, Callable[[str], bytes]] = {}


def read_by(scheme: str, reader: Callable[[str], bytes]) -> None:
    """Let a `reader` read the addresses that begin with a `scheme`, such as ``runs:/``.

    This room knows files and S3; whoever knows more brings it along.
    """
    _READERS[scheme] = reader


def read_address(address: str) -> bytes:
    """Read what somebody wrote as an `address`: a path, ``s3://``, or of a :func:`read_by`."""
    for scheme, reader in _READERS.items():
        if address.startswith(scheme):
            return reader(address)
    return read(address if address.startswith(SCHEME) else local_path(address))


def read_text(address: str, what: str) -> str:
    """Read the text that somebody wrote as an `address`; an error begins with `what` it is."""
    try:
        return read_address(address).decode("utf-8-sig")
    except OSError as error:
        raise DataError(
            f"{what} cannot be read ({error.strerror or error}): give a file that can."
        ) from None
    except UnicodeDecodeError:
        raise DataError(f"{what} is not UTF-8: save it as UTF-8.") from None


def fetch(source: S3Object) -> bytes:
    """Read `source`, of any size, from the cache where its ETag and size are known there."""
    # The address too: not every store's ETag follows from the content alone.
    if not source.cached:
        content: bytes = _s3().download(*split_uri(source.uri), source.etag, source.size)
        return content
    identity = f"{_s3().endpoint()}\0{source.uri}\0{source.etag}\0{source.size}"
    key = hashlib.sha256(identity.encode()).hexdigest()
    cache = _cache(cache_home() / "content")
    data = cache.get(key)
    if data is None:
        data = _s3().download(*split_uri(source.uri), source.etag, source.size)
        cache.put(key, data)
    return data


def map_in_threads(
    work: Callable[[Path | S3Object], T], sources: Sequence[Path | S3Object]
) -> list[T]:
    """Give what `work` gives for each of `sources`, as many at a time as read well."""
    with ThreadPoolExecutor(threads_for(sources)) as pool:
        return list(pool.map(work, sources))


def threads_for(sources: Sequence[object]) -> int:
    """How many threads read `sources` well: a store is waited for, a disk is not."""
    if any(isinstance(source, S3Object) for source in sources):
        return int(_s3().READERS)
    return min(int(cpu_count()), 16)


@lru_cache(maxsize=4)
def _cache(folder: Path) -> ContentCache:
    return ContentCache(folder)


def _s3() -> ModuleType:
    from dfm_mlflow.storage import s3  # boto3 takes a while to import, and most data is local

    return s3


def upload(uri: str, data: bytes) -> None:
    """Write `data` as the object at `uri`; it appears whole or not at all."""
    _s3().upload(*split_uri(uri), data)


def delete(uri: str) -> None:
    """Remove the object at `uri`, if it is there."""
    _s3().delete(*split_uri(uri))
