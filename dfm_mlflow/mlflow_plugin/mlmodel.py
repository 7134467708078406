"""What ``MLmodel`` says of a detector, strictly validated: a model comes from anybody."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from mlflow.models.model import MLMODEL_FILE_NAME

from dfm_mlflow.artifact.files import BACKBONE, STATISTICS, read_file
from dfm_mlflow.artifact.record import DETECTOR
from dfm_mlflow.errors import ArtifactError

FLAVOR_NAME = "dfm"
_MOST = 1024**2  # bytes, of which YAML can cost seconds; what a training logs has thousands
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's, where PyYAML has it, is faster
_SHA256 = re.compile("[0-9a-f]{64}")
_PLAIN = re.compile(r"[\w-][\w.-]{0,254}", re.ASCII)  # one folder below the model's own


@dataclass(frozen=True)
class Declared:
    """Where a detector lies, and what it must be."""

    folder: Path  # of the files of the detector
    sha256: str  # of ``detector.json``, which holds those of the other files

    def files(self) -> list[Path]:
        """Give the files of the detector, whatever else may lie there."""
        return [self.folder / name for name in (DETECTOR, STATISTICS, BACKBONE)]


def read_mlmodel(root: Path) -> Declared:
    """Read the section of the flavor."""
    path = root / MLMODEL_FILE_NAME
    return declared_in(root, _entry(path, _document(path), "flavors"))


def declared_in(root: Path | str, flavors: dict[Any, Any]) -> Declared:
    """Check what a model's flavors say."""
    path = f"{root}/{MLMODEL_FILE_NAME}"
    if FLAVOR_NAME not in flavors:
        others = ", ".join(map(str, flavors))[:200] or "none"
        raise ArtifactError(
            f"{path} has the flavors {others}, not {FLAVOR_NAME}: give a model of dfm-mlflow."
        )
    section = _entry(path, flavors, FLAVOR_NAME)
    data, sha256 = section.get("data"), section.get("sha256")
    if not isinstance(data, str) or not _PLAIN.fullmatch(data):
        raise _damaged(path, f"{FLAVOR_NAME}.data is not the name of a folder")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise _damaged(path, f"{FLAVOR_NAME}.sha256 is not the SHA-256 of {DETECTOR}")
    return Declared(Path(root) / data, sha256)


def _document(path: Path) -> Any:
    try:
        return yaml.load(read_file(path, _MOST), _LOADER)
    except ArtifactError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _damaged(path, f"no YAML ({' '.join(str(error).split())[:200]})") from None


def _entry(path: Path | str, value: Any, name: str) -> dict[Any, Any]:
    found = value.get(name) if isinstance(value, dict) else None
    if not isinstance(found, dict):
        raise _damaged(path, f"{name} is missing or no table")
    return found


def _damaged(path: Path | str, what: str) -> ArtifactError:
    return ArtifactError(f"{path} is damaged ({what}): log the model again, or fetch it again.")
