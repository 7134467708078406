"""The files of a model, read as what anybody may have put there: bounded, regular, checked."""

import hashlib
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from dfm_mlflow.artifact.record import DETECTOR
from dfm_mlflow.errors import ArtifactError

STATISTICS, BACKBONE = "statistics.safetensors", "backbone.safetensors"
MAX_RECORD = 16 * 1024**2  # bytes of detector.json; a usual one has a few thousand
_HEADER, _ENTRY = 1 << 16, 512  # bytes of a safetensors file beside its tensors; names are short


def read_file(path: Path, most: int, expected: str | None = None) -> bytes:
    """Read a regular file."""
    try:
        # a pipe without a writer would be waited for
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise ArtifactError(f"{path} cannot be read (no regular file): put the file there.")
            data = file.read(min(about.st_size, most) + 1)
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be read ({error.strerror}): give the folder of a whole model."
        ) from None
    except MemoryError:
        raise ArtifactError(
            f"{path} has {about.st_size} bytes, more than the memory holds: free some."
        ) from None
    if len(data) > most:
        raise ArtifactError(f"{path} has {about.st_size} bytes, more than the limit of {most}.")
    found = hashlib.sha256(data).hexdigest()
    if expected is not None and found != expected:
        raise ArtifactError(f"{path} has SHA-256 {found}, expected {expected}: it was changed.")
    return data


def read_tensors(
    load: Callable[[bytes], dict[str, Any]], path: Path, expected: str | None, most: int
) -> dict[str, Any]:
    """Read a safetensors file."""
    if expected is None:
        raise ArtifactError(f"{DETECTOR} gives no SHA-256 of {path.name}.")
    data = read_file(path, most, expected)
    try:
        return load(data)
    except (SafetensorError, ValueError, TypeError, KeyError) as error:  # a type that NumPy lacks
        raise ArtifactError(f"{path} is not a safetensors file ({str(error)[:200]}).") from None


def most_bytes(sizes: Iterable[int]) -> int:
    """Bytes that a safetensors file can have whose tensors hold `sizes` numbers, of any type."""
    sizes = list(sizes)
    return 8 * sum(sizes) + _ENTRY * len(sizes) + _HEADER


def sha256(path: Path) -> str:
    """SHA-256 of the file `path`, hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
