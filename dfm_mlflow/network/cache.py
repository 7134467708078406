"""Features kept on disk, addressed by what they were computed from.

A file is written under a temporary name and renamed, so that a killed process leaves no damaged
entry and concurrent processes never see half of one.
"""

import logging
import os
import tempfile
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

_logger = logging.getLogger(__name__)

DEFAULT_LIMIT = 4 * 1024**3


def default_cache_folder() -> Path:
    """``$DFM_CACHE_HOME`` or ``~/.cache/dfm-mlflow``, then ``features``."""
    home = os.environ.get("DFM_CACHE_HOME") or Path("~/.cache/dfm-mlflow").expanduser()
    return Path(home) / "features"


class FeatureCache:
    """A bounded folder of feature maps.

    Parameters
    ----------
    folder : Path, optional
        Where the files lie; :func:`default_cache_folder` by default.
    limit : int
        Bytes kept by :meth:`trim`; the longest unused files go first.
    """

    def __init__(self, folder: Path | None = None, limit: int = DEFAULT_LIMIT):
        self.folder = folder or default_cache_folder()
        self.limit = limit
        self._broken = False

    def get(self, key: str) -> list[np.ndarray] | None:
        """Return the arrays stored under a key, or None."""
        path = self._path(key)
        try:
            arrays = load_file(path)
            os.utime(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (SafetensorError, OSError):  # a disk that lost bytes costs one extraction, no run
            path.unlink(missing_ok=True)
            return None
        return [arrays[str(i)] for i in range(len(arrays))]

    def put(self, key: str, arrays: list[np.ndarray]) -> None:
        """Store arrays; a folder that cannot be written is warned of once and then left alone."""
        if self._broken:
            return
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".tmp-")
            os.close(handle)
            try:
                save_file({str(i): a for i, a in enumerate(arrays)}, temporary)
                os.replace(temporary, path)
            finally:
                Path(temporary).unlink(missing_ok=True)
        except (OSError, SafetensorError) as error:
            self._broken = True
            _logger.warning("The feature cache %s cannot be written (%s).", self.folder, error)

    def trim(self) -> None:
        """Remove the longest unused files until the folder keeps its limit."""
        files = []
        for path in self.folder.glob("*/*"):
            try:
                stat = path.stat()
            except OSError:  # another process was faster
                continue
            files.append((stat.st_mtime, stat.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self.limit:
                return
            path.unlink(missing_ok=True)
            total -= size

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"
