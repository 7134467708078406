"""A registered version in memory, if it is safe to load."""

import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow import MlflowClient, MlflowException
from mlflow.entities.model_registry import ModelVersion
from mlflow.models import Model

from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.errors import DfmError, PromotionError
from dfm_mlflow.mlflow_plugin.flavor import load_model

_PICKLES = {".pkl", ".pickle", ".joblib", ".dill", ".pt", ".pth", ".ckpt"}


@dataclass(frozen=True)
class Candidate:
    """A version with its detector in memory."""

    version: ModelVersion
    detector: AnomalyDetector
    n_bytes: int  # of all files of the model
    metrics: dict[str, float]  # of the run that made it; empty where it is unknown

    @property
    def name(self) -> str:
        """The version in words."""
        return f"version {self.version.version}"


def load_candidate(client: MlflowClient, version: ModelVersion) -> Candidate:
    """Load a version by the flavor, hashes checked, if it holds neither pickle nor code."""
    name = f"Version {version.version} of {version.name}"
    with tempfile.TemporaryDirectory() as folder:
        try:
            uri = f"models:/{version.name}/{version.version}"
            root = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=folder))
            found = unsafe_files(root)
            if found:
                raise PromotionError(
                    f"{name} holds {', '.join(found)}: a model of this flavor has neither pickle "
                    "nor code; log it again with dfm_mlflow.log_model."
                )
            n_bytes = sum(f.stat().st_size for f in root.rglob("*") if f.is_file())
            detector = load_model(str(root))
        except PromotionError:
            raise
        except (DfmError, MlflowException, OSError) as error:
            raise PromotionError(f"{name} does not load: {error}") from None
    try:
        metrics = dict(client.get_run(version.run_id).data.metrics) if version.run_id else {}
    except MlflowException:
        metrics = {}
    return Candidate(version, detector, n_bytes, metrics)


def unsafe_files(root: Path) -> list[str]:
    """List what of `root`, a model's folder, could run as code when somebody loads it."""
    found = [
        f"{f.relative_to(root)} (pickle)"
        for f in sorted(root.rglob("*"))
        if f.is_file() and _is_pickle(f)
    ]
    generic = Model.load(str(root)).flavors.get("python_function", {})
    if (root / "code").exists() or "code" in generic:
        found.append("code/")
    if generic.get("loader_module", "dfm_mlflow") != "dfm_mlflow":
        found.append(f"the loader {generic['loader_module']} in MLmodel")
    return found


def _is_pickle(path: Path) -> bool:
    if path.suffix in _PICKLES:
        return True
    with path.open("rb") as file:
        start = file.read(9)
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return start[8:] != b"{"  # the length of a safetensors header can look like that
    if start.startswith(b"PK") and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return any(Path(n).suffix in _PICKLES for n in archive.namelist())
    return False
