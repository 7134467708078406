"""A detector as one ONNX graph: from the pixels of a picture to its score, p-value and map.

Network, pooling and scores are traced from the detector's own code. One part is restated: the
preprocessing, whose sizes are known only when a picture comes.
Every file is compared with the detector before it gets its name.
"""

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

import dfm_mlflow
from dfm_mlflow.artifact.portable import why_not
from dfm_mlflow.artifact.record import FORMAT
from dfm_mlflow.core.calibration import combine_classes
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.detector.class_model import score_class
from dfm_mlflow.errors import ExportError
from dfm_mlflow.export.onnx_pixels import PixelsForOnnx, picture_like
from dfm_mlflow.network.forward import Network
from dfm_mlflow.storage.whole_file import whole_file

if TYPE_CHECKING:
    from onnx import ModelProto

OUTPUTS = ("anomaly_score", "p_value", "predicted_class", "fre", "nll", "anomaly_map")
TOLERANCE = 1e-3  # relative, of anomaly_score, fre and nll
OPSET = 18
_LIMIT = 2**31  # bytes of a protobuf message
_WORTH_HALVING = 4096  # values of an initializer


@dataclass(frozen=True)
class ExportResult:
    """What was written."""

    path: Path
    megabytes: float
    # Largest relative difference of a score from the detector's, on pictures made for the check.
    difference: float


def export_onnx(
    detector: AnomalyDetector, path: str | Path, metadata: dict[str, str] | None = None
) -> ExportResult:
    """Write a detector as ONNX; the file appears whole and checked, or not at all.

    Its input ``image`` has the shape ``(n, height, width, 3)``, uint8 RGB; its outputs are
    :data:`OUTPUTS`, one row an image, the map on the feature grid.
    """
    path = Path(path)
    check_target(path)
    _check_detector(detector)
    from onnx import helper

    model = _trace(detector)
    _halve(model)
    model.producer_name, model.producer_version = "dfm-mlflow", dfm_mlflow.__version__
    model.graph.name = "dfm"
    helper.set_model_props(model, _metadata(detector) | (metadata or {}))
    data = model.SerializeToString()
    difference = _difference(data, detector)
    if not difference <= TOLERANCE:
        raise ExportError(
            f"The ONNX graph of {detector.options.backbone} scores {difference:.2g} away from the "
            f"model, and {TOLERANCE:g} is the limit: choose another backbone."
        )
    with whole_file(path) as draft:
        draft.write_bytes(data)
    return ExportResult(path, len(data) / 1e6, difference)


# -- the graph -------------------------------------------------------------------------------------


class _Graph(nn.Module):
    """From pictures to :data:`OUTPUTS`, by the detector's own parts."""

    def __init__(self, detector: AnomalyDetector):
        super().__init__()
        self.grids, self.options = detector.grids, detector.options
        self.resized = PixelsForOnnx(detector.extractor)
        extractor = detector.extractor
        # without fused operations, which ONNX does not have
        self.network = Network(
            extractor.backbone,
            extractor.size,
            extractor.pooling,
            extractor.device,
            extractor.precision,
            fuse=False,
        )
        self.module = self.network.module  # its weights keep their names
        self.classes = [c.on(torch.device("cpu")) for c in detector.classes]
        self.rule = detector.rule
        self.held_out = [
            torch.as_tensor(c.calibration.scores, dtype=torch.float32) for c in detector.classes
        ]
        self.counted = [
            torch.as_tensor(c.calibration.counted, dtype=torch.float32) for c in detector.classes
        ]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        features = self.network.maps(self.resized(image))
        scored = [score_class(c, features, self.grids, self.options) for c in self.classes]
        score, fre, nll, maps = (
            torch.stack([getattr(s, name) for s in scored], dim=1)
            for name in ("score", "fre", "nll", "maps")
        )
        columns = [
            # ONNX has no searchsorted, so it counts
            c.calibration.beyond_counting(counted[(held_out >= s[:, None]).sum(dim=1)], s)
            for c, held_out, counted, s in zip(
                self.classes, self.held_out, self.counted, score.T, strict=True
            )
        ]
        p = torch.stack(columns, dim=1)
        best = combine_classes(p, -nll) if self.rule == 1 else nll.argmin(dim=1)
        row = torch.arange(image.shape[0])
        return (
            score[row, best],
            p[row, best],
            best,
            fre[row, best],
            nll[row, best],
            maps[row, best],
        )


def _trace(detector: AnomalyDetector) -> "ModelProto":
    """Trace :class:`_Graph` with pictures of any number and size."""
    from onnxscript import opset18 as op

    def sort(values: Any, stable: bool = False, dim: int = -1, descending: bool = False) -> Any:
        # torch's exporter knows no stable sort; of the sorted values alone TopK gives the same.
        count = op.Shape(values, start=1, end=2)
        return op.TopK(values, count, axis=dim, largest=int(descending), sorted=1)

    height, width = detector.extractor.size
    example = torch.zeros((2, height + 7, width + 5, 3), dtype=torch.uint8)
    names = ("n", "height", "width")
    try:
        program = torch.onnx.export(
            _Graph(detector).eval(),
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["image"],
            output_names=list(OUTPUTS),
            dynamic_shapes={"image": {i: torch.export.Dim(n) for i, n in enumerate(names)}},
            custom_translation_table={torch.ops.aten.sort.stable: sort},
            verbose=False,
        )
    except Exception as error:  # whatever a network holds that the exporter does not know
        why = " ".join(str(error.__cause__ or error).split())[:200]
        raise ExportError(
            f"The backbone {detector.options.backbone} cannot be written as ONNX ({why}): choose "
            "another one."
        ) from error
    assert program is not None
    model = program.model_proto
    del model.graph.value_info[:]  # shapes between the nodes, which a reader infers
    for part in (model.graph, *model.graph.node, *model.graph.input, *model.graph.output):
        part.ClearField("metadata_props")  # the stack of each node, with paths of this machine
    return model


def _halve(model: "ModelProto") -> None:
    """Keep in half precision what half precision holds exactly: the bases, most of the file."""
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < _WORTH_HALVING:
            continue
        values = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if not np.array_equal(half, values):
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(half, f"{name}_half"))
        casts.append(helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


# -- checks and the file ---------------------------------------------------------------------------


def check_target(path: Path) -> None:
    """Refuse a `path` that no graph can be written to, and an installation that makes none."""
    if path.suffix != ".onnx":
        raise ExportError(f"{path} does not end in .onnx: give a name that does.")
    if not path.absolute().parent.is_dir():
        raise ExportError(f"The folder {path.parent} does not exist: make it first.")
    missing = [n for n in ("onnx", "onnxscript", "onnxruntime") if not importlib.util.find_spec(n)]
    if missing:
        raise ExportError(
            f"Exporting needs the packages {', '.join(missing)}: pip install 'dfm-mlflow[onnx]'."
        )


def _check_detector(detector: AnomalyDetector) -> None:
    if why := obstacle(detector):
        raise ExportError(f"The model cannot be exported: {why}")
    if detector.extractor.device.type != "cpu":
        raise ExportError(f"The model is on {detector.extractor.device}: load it with device=cpu.")


def obstacle(detector: AnomalyDetector) -> str | None:
    """Say why a `detector` cannot be exported; None where nothing is known against it."""
    extractor = detector.extractor
    if why := why_not(extractor.tile, extractor.precision):
        return why
    weights = sum(p.numel() for p in extractor.backbone.module.parameters())
    bases = sum(layer.subspace.basis.size for c in detector.classes for layer in c.layers)
    if 4 * (weights + bases) >= _LIMIT:
        return (
            f"it has {4 * (weights + bases) / 1e9:.1f} GB of tensors, and an ONNX file "
            "holds 2; use a larger pooling or a smaller pca_level."
        )
    return None


def _metadata(detector: AnomalyDetector) -> dict[str, str]:
    rate = {c.name: c.calibration.effective_fpr(detector.options.fpr) for c in detector.classes}
    return {
        "dfm.format": str(FORMAT),
        "dfm.classes": json.dumps(detector.class_names),
        "dfm.fpr": repr(detector.options.fpr),
        "dfm.effective_fpr": json.dumps(rate),
        "dfm.thresholds": json.dumps(detector.thresholds()),
        "dfm.map_scale": json.dumps({c.name: c.map_scale for c in detector.classes}),
        "dfm.calibration": detector.calibration_sentence(),
        **_preprocessing(detector),
    }


def _preprocessing(detector: AnomalyDetector) -> dict[str, str]:
    """What becomes of a picture's values before the graph, whose input has 8 bits."""
    depth, reals = detector.extractor.decoder.depth, detector.extractor.decoder.real_range
    known = {} if reals is None else {"dfm.float_range": json.dumps(reals)}
    if depth is not None:
        known |= {"dfm.bits": str(depth.bits), "dfm.shift": str(depth.shift)}
        known |= {"dfm.white": str(depth.white)}
    return known


def _difference(data: bytes, detector: AnomalyDetector) -> float:
    """Largest relative difference of a score from the detector's, on pictures made here."""
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    height, width = detector.extractor.size
    largest = 0.0
    for i, size in enumerate([(height, width), (height * 3 // 2, width * 5 // 4)]):
        image = picture_like(size, seed=i)
        found = dict(zip(OUTPUTS, session.run(None, {"image": image[None]}), strict=True))
        row = detector.score([image]).iloc[0]
        for name in ("anomaly_score", "fre", "nll"):
            difference = abs(float(found[name][0]) - row[name]) / max(abs(row[name]), 1e-12)
            largest = max(largest, float(difference))
    return largest
