"""Features kept on disk, addressed by what they were computed from."""

import zlib
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from dfm_mlflow.storage.cache_folder import CacheFolder, cache_home

DEFAULT_LIMIT = 4 * 1024**3
_SEAL = "seal"  # name of the sum among the arrays of an entry


def default_cache_folder() -> Path:
    """``features`` in the cache folder of the package."""
    return cache_home() / "features"


class FeatureCache(CacheFolder):
    """A bounded folder of feature maps; each file holds a sum that tells of damage."""

    def __init__(self, folder: Path | None = None, limit: int = DEFAULT_LIMIT):
        super().__init__(folder or default_cache_folder(), limit, ".safetensors")

    def get(self, key: str) -> list[np.ndarray] | None:
        """Return the arrays stored under a `key`, in their order, or None."""
        try:
            found = load_file(self.path(key))
            seal = found.pop(_SEAL)
            arrays = [found[str(i)] for i in range(len(found))]
            whole = int(seal) == _sum(arrays)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (SafetensorError, OSError, KeyError, TypeError):  # TypeError: a seal of many numbers
            whole = False
        self.mark(key, whole)
        return arrays if whole else None

    def put(self, key: str, arrays: list[np.ndarray]) -> None:
        """Store `arrays`, of any shape, under a `key`."""
        named = {str(i): np.asarray(a, order="C") for i, a in enumerate(arrays)}
        seal = np.array(_sum(list(named.values())), np.uint64)

        def save(path: Path) -> None:
            try:
                save_file(named | {_SEAL: seal}, path)
            except SafetensorError as error:  # how it reports a full disk
                raise OSError(str(error)) from None

        self.write(key, save)


def _sum(arrays: list[np.ndarray]) -> int:
    """Sum the words of arrays: as fast as memory, where a hash would be felt."""
    total = 0
    for array in arrays:
        data = array.reshape(-1).view(np.uint8)
        end = data.size & ~7
        words, rest = data[:end].view(np.uint64), data[end:].tobytes()
        about = zlib.crc32(repr((array.dtype.char, array.shape, rest)).encode())
        total = 3 * total + int(np.add.reduce(words)) + about  # in this order
    return total & 0xFFFFFFFFFFFFFFFF
