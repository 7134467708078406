"""MVTec AD: found on disk, or fetched from its owners, checked and unpacked.

Where it lies: ``mvtec_ad`` in ``$DFM_DATA_HOME`` (default ``~/.local/share/dfm-mlflow``). A mirror
of the archive is named by ``$DFM_MVTEC_URL``; its content is checked like the official one's.
"""

import fcntl
import hashlib
import io
import logging
import lzma
import os
import shutil
import sys
import tarfile
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dfm_mlflow.errors import DataError

NAME = "mvtec_anomaly_detection.tar.xz"
URL = (
    "https://www.mydrive.ch/shares/150996/b52ecdcbf521176e9db9c731f2304b27/download/"
    f"420938113-1629960298/{NAME}"
)
SHA256 = "cf4313b13603bec67abb49ca959488f7eedce2a9f7795ec54446c649ac98cd3d"
ARCHIVE_BYTES = 5_300_000_000  # a little more than it has; nobody may send more
UNPACKED_BYTES = 5_500_000_000  # pictures are PNG already: little more than the archive
TRIES = 4

_CHUNK = 1024**2
_logger = logging.getLogger(__name__)


def mvtec_ad() -> Path:
    """Give the folder of MVTec AD, and fetch it first where it is not there."""
    home = Path(os.environ.get("DFM_DATA_HOME") or "~/.local/share/dfm-mlflow").expanduser()
    root = home / "mvtec_ad"
    _show_licence(home)
    if root.is_dir():
        return root
    try:
        home.mkdir(parents=True, exist_ok=True)
        with _alone(home):
            if not root.is_dir():  # another process may have fetched it meanwhile
                _install(home, root)
    except OSError as error:
        raise DataError(
            f"MVTec AD is not at {root} and cannot be put there ({error}): free or choose a disk "
            "with DFM_DATA_HOME, or give data=<folder>."
        ) from None
    return root


def _install(home: Path, root: Path) -> None:
    if not hasattr(tarfile, "data_filter"):
        raise DataError(
            f"This Python cannot unpack safely (tarfile has no filters): update it within "
            f"its series, or unpack {NAME} to {root} by hand."
        )
    for stale in home.glob(".mvtec_ad-unpacking-*"):  # of a process that was killed
        shutil.rmtree(stale, ignore_errors=True)
    url = urllib.parse.urlsplit(os.environ.get("DFM_MVTEC_URL") or URL)
    on_disk = Path(urllib.request.url2pathname(url.path)) if url.scheme == "file" else home / NAME
    if url.scheme == "file" and not on_disk.is_file():
        raise _unavailable(root, url.geturl(), "there is no such file")
    if on_disk.is_file():  # brought here by hand, so it stays
        _check_space(home, UNPACKED_BYTES)
        _check_hash(on_disk, f"fetch it again to {on_disk}")
        _unpack(on_disk, root)
        return
    fetching = home / ".mvtec_ad-fetching"
    try:
        archive = _fetched(fetching, url.geturl(), root)
        _check_hash(archive, "it was removed; start again, or correct DFM_MVTEC_URL")
        _unpack(archive, root)
    except DataError:
        shutil.rmtree(fetching, ignore_errors=True)
        raise
    shutil.rmtree(fetching)


def _show_licence(home: Path) -> None:
    marker = home / ".mvtec_ad-licence-shown"
    if marker.exists():
        return
    text = (
        "MVTec AD is licensed CC BY-NC-SA 4.0: not for commercial use, name its authors (Bergmann "
        "et al., CVPR 2019), share alike. https://creativecommons.org/licenses/by-nc-sa/4.0/"
    )
    _logger.warning(text)
    try:
        home.mkdir(parents=True, exist_ok=True)
        marker.write_text(text + "\n")
    except OSError:  # read-only data: then it is said again next time
        pass


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Let one process of a machine fetch, and the others wait for it."""
    with open(home / ".mvtec_ad.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# -- fetching --------------------------------------------------------------------------------------


def _fetched(folder: Path, url: str, root: Path) -> Path:
    """Give the archive in a folder; one that an earlier run could not unpack lies there whole."""
    import pooch
    import requests

    fetch = pooch.HTTPDownloader(sys.stderr.isatty(), chunk_size=_CHUNK, timeout=60)

    def download(url: str, path: str, caller: Any) -> None:
        try:
            with _Bounded(path, "wb") as file:
                fetch(url, file, caller)
        except requests.HTTPError as error:
            if getattr(error.response, "status_code", 0) in (408, 429, *range(500, 600)):
                raise
            raise _InVainError(_unavailable(root, url, error)) from None

    if not (folder / NAME).exists():
        shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
        _check_space(root.parent, ARCHIVE_BYTES + UNPACKED_BYTES)
    shelf = pooch.create(
        folder, base_url="", urls={NAME: url}, registry={NAME: None}, retry_if_failed=TRIES - 1
    )
    try:
        return Path(shelf.fetch(NAME, downloader=download))
    except _InVainError as error:
        raise error.args[0] from None
    except requests.RequestException as error:
        raise _unavailable(root, url, error) from None


class _InVainError(Exception):
    """Carry a sentence past pooch, which would ask again after a ValueError, as a DataError is."""


class _Bounded(io.FileIO):
    """A file that takes no more than the archive has."""

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > ARCHIVE_BYTES:
            said = (
                f"The server sends more than the {ARCHIVE_BYTES / 1e9:.1f} GB of {NAME}: nothing "
                "of it was kept; correct DFM_MVTEC_URL."
            )
            raise _InVainError(DataError(said))
        return super().write(data)


def _check_space(home: Path, needed: int) -> None:
    free = shutil.disk_usage(home).free
    if free < needed:
        raise DataError(
            f"MVTec AD needs {needed / 1e9:.1f} GB at {home}, archive and pictures together, and "
            f"{free / 1e9:.1f} GB are free: free some or set DFM_DATA_HOME to a larger disk."
        )


def _unavailable(root: Path, url: str, why: object) -> DataError:
    return DataError(
        f"MVTec AD is not at {root} and cannot be fetched from {url} ({why}): connect and start "
        f"again, or put the archive at {root.parent / NAME}, or its unpacked folders at {root}, "
        "or name a mirror by DFM_MVTEC_URL, or give data=<folder>."
    )


# -- checking and unpacking ------------------------------------------------------------------------


def _check_hash(archive: Path, remedy: str) -> None:
    digest = hashlib.sha256()
    with open(archive, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != SHA256:
        raise DataError(
            f"The archive {archive} has the SHA-256 {digest.hexdigest()} and not {SHA256}: "
            f"{remedy}."
        )


def _unpack(archive: Path, root: Path) -> None:
    """Unpack beside `root` and rename, so that `root` is whole or not there."""
    _logger.info("Unpacking %s", archive)
    temporary = Path(tempfile.mkdtemp(prefix=".mvtec_ad-unpacking-", dir=root.parent))
    try:
        with tarfile.open(archive, "r:xz") as tar:
            total = 0
            for member in tar:  # the filter: nothing outside, no link out, no device
                total += member.size
                if total > 2 * UNPACKED_BYTES:
                    raise tarfile.TarError(f"it holds more than {2 * UNPACKED_BYTES} bytes")
                tar.extract(member, temporary, filter="data")
        if not any(temporary.glob("*/train/good")):
            raise DataError(f"The archive {archive} holds no <category>/train/good: get another.")
        temporary.chmod(0o755)  # mkdtemp keeps others out
        temporary.rename(root)
    except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
        raise DataError(
            f"The archive {archive} cannot be unpacked safely ({error}): nothing of it was kept; "
            "get another."
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
