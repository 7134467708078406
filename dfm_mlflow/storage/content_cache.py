"""Contents of objects in S3, kept on disk."""

import hashlib
from pathlib import Path

from dfm_mlflow.storage.cache_folder import CacheFolder

CONTENT_LIMIT = 10 * 1024**3


class ContentCache(CacheFolder):
    """Contents of objects; each file ends with the SHA-256 of what stands before it."""

    def __init__(self, folder: Path, limit: int = CONTENT_LIMIT):
        super().__init__(folder, limit)
        self._written = limit  # so that the first write trims what earlier processes left

    def get(self, key: str) -> bytes | None:
        """Return the content stored under a `key`, or None."""
        try:
            stored = self.path(key).read_bytes()
        except OSError:
            return None
        data, seal = stored[:-32], stored[-32:]
        whole = hashlib.sha256(data).digest() == seal
        self.mark(key, whole)
        return data if whole else None

    def put(self, key: str, data: bytes) -> None:
        """Store `data` under a `key`, and trim once in a while."""
        self.write(key, lambda path: path.write_bytes(data + hashlib.sha256(data).digest()))
        self._written += len(data)
        if self._written > self.limit // 20:
            self._written = 0
            self.trim()
