"""MVTec AD: found on disk, or fetched from its owners, checked and unpacked.

Where it lies: ``mvtec_ad`` in ``$DFM_DATA_HOME`` (default ``~/.local/share/dfm-mlflow``). A mirror
of the archive is named by ``$DFM_MVTEC_URL``; its content is checked like the official one's.
"""

import errno
import fcntl
import hashlib
import http.client
import logging
import lzma
import os
import shutil
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from dfm_mlflow.errors import DataError

NAME = "mvtec_anomaly_detection.tar.xz"
URL = (
    "https://www.mydrive.ch/shares/150996/b52ecdcbf521176e9db9c731f2304b27/download/"
    f"420938113-1629960298/{NAME}"
)
SHA256 = "cf4313b13603bec67abb49ca959488f7eedce2a9f7795ec54446c649ac98cd3d"
ARCHIVE_BYTES = 5_300_000_000  # a little more than it has; nobody may send more
UNPACKED_BYTES = 5_500_000_000  # pictures are PNG already: little more than the archive
TRIES = 5  # in a row without a new byte

_CHUNK = 1024**2
_BROKEN = (OSError, http.client.HTTPException)  # URLError and timeouts are OSErrors
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
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
    given = home / NAME
    if given.is_file():  # brought here by hand, so it stays
        _check_space(home, UNPACKED_BYTES)
        _check_hash(given, f"fetch it again to {given}")
        _unpack(given, root)
        return
    part = home / f"{NAME}.part"
    _download(part, root)
    try:
        _check_hash(part, "it was removed; start again, or correct DFM_MVTEC_URL")
        _unpack(part, root)
    except DataError:
        part.unlink()
        raise
    part.unlink()


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


def _download(part: Path, root: Path) -> None:
    """Fetch to `part`; what is there already is continued, however often the connection breaks."""
    url = os.environ.get("DFM_MVTEC_URL") or URL
    _logger.info("Fetching MVTec AD from %s", url)
    failures = 0
    while True:
        before = _size(part)
        try:
            if _fetch_rest(url, part):
                return
            why: object = "the connection was closed early"
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):
                raise _unavailable(root, url, error) from None
            why = error
        except _BROKEN as error:
            if isinstance(error, OSError) and (error.filename or error.errno in _DISK_FULL):
                raise  # the disk, not the network
            why = error
        failures = 1 if _size(part) > before else failures + 1
        if failures == TRIES:
            raise _unavailable(root, url, why)
        _pause(failures)


def _fetch_rest(url: str, part: Path) -> bool:
    """Append what is missing, and tell whether the file is complete."""
    start = _size(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        answer = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # there is nothing after the last byte: the hash will tell
            raise
        return True
    with answer:
        if start and answer.status != 206:  # the server began at the beginning
            start = 0
        length = int(answer.headers.get("Content-Length") or 0)
        total = start + length if length else None
        left = length or max(ARCHIVE_BYTES - start, 0)
        if start + length > ARCHIVE_BYTES:
            raise _too_large(part, url)
        _check_space(part.parent, left + UNPACKED_BYTES)
        bar = tqdm(
            total=total, initial=start, unit="B", unit_scale=True, desc="MVTec AD", disable=None
        )
        with open(part, "ab" if start else "wb") as file, bar:
            while chunk := answer.read(_CHUNK):
                if file.tell() + len(chunk) > ARCHIVE_BYTES:
                    raise _too_large(part, url)
                file.write(chunk)
                bar.update(len(chunk))
    return total is None or _size(part) == total


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _pause(failures: int) -> None:
    time.sleep(2**failures / 2)


def _check_space(home: Path, needed: int) -> None:
    free = shutil.disk_usage(home).free
    if free < needed:
        raise DataError(
            f"MVTec AD needs {needed / 1e9:.1f} GB at {home}, archive and pictures together, and "
            f"{free / 1e9:.1f} GB are free: free some or set DFM_DATA_HOME to a larger disk."
        )


def _too_large(part: Path, url: str) -> DataError:
    part.unlink(missing_ok=True)
    return DataError(
        f"{url} sends more than the {ARCHIVE_BYTES / 1e9:.1f} GB of {NAME}: nothing of it was "
        "kept; correct DFM_MVTEC_URL."
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
