"""From a model to one ONNX file; what stands against it is said before torch is loaded."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dfm_mlflow.artifact.portable import HALF, obstacle_of
from dfm_mlflow.artifact.record import DETECTOR, parse_record
from dfm_mlflow.config import ExportOptions
from dfm_mlflow.errors import ExportError
from dfm_mlflow.mlflow_plugin import _compat
from dfm_mlflow.mlflow_plugin.mlmodel import read_mlmodel

if TYPE_CHECKING:
    from dfm_mlflow.detector.anomaly_detector import AnomalyDetector

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportedResult:
    """What was written."""

    path: Path
    megabytes: float
    # Largest relative difference of a score from the detector's, on pictures made for the check.
    difference: float
    sentence: str = ""  # how the thresholds moved, where the model was recalibrated; else empty

    def summary(self) -> str:
        """Say it in a sentence or two."""
        wrote = (
            f"{self.path} has {self.megabytes:.1f} MB and scores within {self.difference:.1g} of "
            "the model."
        )
        return "\n".join(filter(None, (self.sentence, wrote)))

    def record(self) -> dict[str, object]:
        """Say it for scripts."""
        return {
            "output": str(self.path),
            "megabytes": self.megabytes,
            "difference": self.difference,
        }


def export(options: ExportOptions) -> ExportedResult:
    """Write a model as ONNX."""
    root = Path(_compat.download(artifact_uri=options.model))
    declared = read_mlmodel(root)
    record = parse_record((declared.folder / DETECTOR).read_bytes())
    recalibrate_first = options.images != "none"
    why = obstacle_of(record)
    if why and not (recalibrate_first and record.precision in HALF):
        raise ExportError(f"{options.model} cannot be exported: {why}")

    from dfm_mlflow.export.graph import check_target, export_onnx
    from dfm_mlflow.mlflow_plugin.flavor import load_model

    check_target(Path(options.output))
    about = {"dfm.model": options.model, "dfm.detector_sha256": declared.sha256}
    detector, sentence = load_model(str(root), device="cpu"), ""
    if recalibrate_first:
        detector, sentence = _calibrated(_in_fp32(detector), options)
        about["dfm.recalibrated_on"] = options.images
    written = export_onnx(detector, options.output, about)
    return ExportedResult(written.path, written.megabytes, written.difference, sentence)


def _in_fp32(detector: "AnomalyDetector") -> "AnomalyDetector":
    """Give the same subspaces behind a network that computes in fp32; thresholds do not hold."""
    from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
    from dfm_mlflow.network.extractor import Extractor

    known = detector.extractor
    options = detector.options.model_copy(update={"precision": "fp32", "device": "cpu"})
    extractor = Extractor.of(
        known.backbone,
        options,
        known.device,
        "fp32",
        known.batch_size,
        roi=known.roi,
        depth=known.decoder.depth,
    )
    return AnomalyDetector(
        options,
        extractor,
        detector.grids,
        detector.classes,
        detector.weights,
        detector.rule,
        detector.fitted,
    )


def _calibrated(
    detector: "AnomalyDetector", options: ExportOptions
) -> "tuple[AnomalyDetector, str]":
    """Calibrate a detector in the precision that it computes in, on pictures never fitted."""
    from dfm_mlflow.data.catalog import load_catalog
    from dfm_mlflow.data.folder import Naming
    from dfm_mlflow.jobs.recalibrate import calibrate_on

    names = detector.class_names
    if len(names) > 1:
        raise ExportError(
            f"The model has the categories {', '.join(names)}, and pictures of one can be given: "
            "train it with precision=fp32."
        )
    naming = Naming.of(options.good, options.bad)
    catalog = load_catalog(options.images, names, naming=naming)
    return calibrate_on(detector, names[0], catalog)
