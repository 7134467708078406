"""A bounded folder of files, addressed by what they were computed from.

A file is written under a temporary name and renamed, so that a killed process leaves no damaged
entry and concurrent processes never see half of one.
"""

import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dfm_mlflow.storage.whole_file import DRAFT, draft_of

_ABANDONED = 3600  # seconds; no write takes so long

_logger = logging.getLogger(__name__)


def cache_home() -> Path:
    """``$DFM_CACHE_HOME`` or ``~/.cache/dfm-mlflow``."""
    return Path(os.environ.get("DFM_CACHE_HOME") or "~/.cache/dfm-mlflow").expanduser()


class CacheFolder:
    """What every cache on disk does: write atomically, give up quietly, keep a limit."""

    def __init__(self, folder: Path, limit: int, suffix: str = ""):
        self.folder = folder
        self.limit = limit
        self._suffix = suffix
        self._broken = False

    def path(self, key: str) -> Path:
        """Where the entry of a `key` lies, whether it is there or not."""
        return self.folder / key[:2] / f"{key}{self._suffix}"

    def write(self, key: str, save: Callable[[Path], object]) -> None:
        """Store under `key` what `save` writes to the path that it is given.

        A folder that cannot be written is warned of once and then left alone: a cache costs no run.
        """
        if self._broken:
            return
        path = self.path(key)
        try:
            with draft_of(path) as draft:
                save(draft)
        except OSError as error:
            self._broken = True
            _logger.warning("The cache %s cannot be written (%s).", self.folder, error)

    def mark(self, key: str, whole: bool) -> None:
        """Note that the entry of a `key` was used if it is `whole`, and remove it otherwise.

        A disk that lost bytes costs the work again, and no run.
        """
        path = self.path(key)
        with suppress(OSError):  # the entry may be another user's
            if whole:
                os.utime(path)
            else:
                path.unlink(missing_ok=True)

    def trim(self) -> None:
        """Remove the longest unused files until the folder keeps its limit, and abandoned ones."""
        files = []
        for path in self.folder.glob("*/*"):
            try:
                stat = path.stat()
            except OSError:  # another process was faster
                continue
            if path.name.startswith(DRAFT) and stat.st_mtime < time.time() - _ABANDONED:
                with suppress(OSError):
                    path.unlink(missing_ok=True)  # of a process that was killed
                continue
            files.append((stat.st_mtime, stat.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self.limit:
                return
            with suppress(OSError):  # the entry may be another user's
                path.unlink(missing_ok=True)
                total -= size
