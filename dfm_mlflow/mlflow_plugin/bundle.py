"""A model as bytes, for machines that reach neither the registry nor its store."""

import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from dfm_mlflow.artifact.files import read_file
from dfm_mlflow.artifact.save_load import load_detector
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.mlflow_plugin import _compat
from dfm_mlflow.mlflow_plugin.mlmodel import read_mlmodel


@dataclass(frozen=True)
class Bundle:
    """The files of a detector as bytes, to be sent to other machines."""

    sha256: str  # of ``detector.json``, which holds those of the other files
    files: dict[str, bytes] = field(compare=False, repr=False)

    @classmethod
    def of(cls, model_uri: str) -> "Bundle":
        """Download the model at `model_uri`, which is any that MLflow knows."""
        root = Path(_compat.download(artifact_uri=model_uri))
        declared = read_mlmodel(root)
        files = {path.name: read_file(path, sys.maxsize) for path in declared.files()}
        return cls(declared.sha256, files)

    def load(self) -> AnomalyDetector:
        """Build the detector, and check everything about it."""
        with tempfile.TemporaryDirectory(prefix="dfm-model-") as name:
            for file, data in self.files.items():
                (Path(name) / file).write_bytes(data)
            return load_detector(Path(name), expected_sha256=self.sha256)
