"""Features kept on disk, addressed by what they were computed from."""

import os
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from dfm_mlflow.cache_folder import CacheFolder, cache_home

DEFAULT_LIMIT = 4 * 1024**3


def default_cache_folder() -> Path:
    """``features`` in the cache folder of the package."""
    return cache_home() / "features"


class FeatureCache(CacheFolder):
    """A bounded folder of feature maps.

    Parameters
    ----------
    folder : Path, optional
        Where the files lie; :func:`default_cache_folder` by default.
    limit : int
        Bytes kept by :meth:`trim`; the longest unused files go first.
    """

    def __init__(self, folder: Path | None = None, limit: int = DEFAULT_LIMIT):
        super().__init__(folder or default_cache_folder(), limit, ".safetensors")

    def get(self, key: str) -> list[np.ndarray] | None:
        """Return the arrays stored under a key, or None."""
        path = self.path(key)
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
        """Store arrays."""

        def save(path: Path) -> None:
            try:
                save_file({str(i): a for i, a in enumerate(arrays)}, path)
            except SafetensorError as error:  # how it reports a full disk
                raise OSError(str(error)) from None

        self.write(key, save)
