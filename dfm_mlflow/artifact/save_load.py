"""The model on disk, format 1: a JSON record and two safetensors files.

No pickle and no code. Every file is checked before anything is built from it, and shapes before
anything is computed.
"""

import math
import shutil
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load as load_numpy
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import load as load_torch
from safetensors.torch import save_file as save_torch
from torch import Tensor

from dfm_mlflow.artifact.files import (
    BACKBONE,
    MAX_RECORD,
    STATISTICS,
    most_bytes,
    read_file,
    read_tensors,
    sha256,
)
from dfm_mlflow.artifact.record import (
    DETECTOR,
    FORMAT,
    ClassRecord,
    DepthRecord,
    LayerRecord,
    Record,
    SubspaceRecord,
    options_of,
    parse_record,
)
from dfm_mlflow.artifact.statistics import (
    classes_of,
    fitted_of,
    most_statistics,
    roi_of,
    statistics_of,
)
from dfm_mlflow.config import Options
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.detector.class_model import score_class
from dfm_mlflow.detector.grid import grids_of
from dfm_mlflow.errors import ArtifactError, DfmError, WeightsError
from dfm_mlflow.images.depth import Depth
from dfm_mlflow.network.backbones import Backbone, build_backbone
from dfm_mlflow.network.device import choose_device
from dfm_mlflow.network.extractor import Extractor
from dfm_mlflow.network.shapes import Shapes, shapes_of

__all__ = ["BACKBONE", "DETECTOR", "STATISTICS", "load_detector", "save_detector", "sha256"]
# Of a network's largest array of one picture. Where it is larger, the checks on loading are made on
# a part of the input: what a picture of such a size costs is for scoring to pay.
_MOST_TRIED = 1 << 24
_SIDE_TRIED = 256


def save_detector(detector: AnomalyDetector, folder: Path) -> str:
    """Write a detector into a new folder; the folder appears whole or not at all."""
    folder = Path(folder)
    if folder.exists():
        raise ArtifactError(f"{folder} exists already: give a new folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".tmp-dfm-"))
    try:
        save_numpy(statistics_of(detector), temporary / STATISTICS)
        save_torch(detector.extractor.backbone.state(), temporary / BACKBONE)
        digests = {name: sha256(temporary / name) for name in (STATISTICS, BACKBONE)}
        record = _record_of(detector, digests)
        (temporary / DETECTOR).write_text(record.model_dump_json(indent=2) + "\n")
        digest = sha256(temporary / DETECTOR)
        temporary.chmod(0o755)
        temporary.rename(folder)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk in its own way
        raise ArtifactError(
            f"The model cannot be written to {folder} ({error}): free some space or give another "
            "folder."
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return digest


def load_detector(
    folder: Path,
    *,
    expected_sha256: str | None = None,
    device: str | None = None,
    precision: str | None = None,
    batch_size: int = 16,
) -> AnomalyDetector:
    """Read a detector and check everything about it."""
    folder = Path(folder)
    record = parse_record(read_file(folder / DETECTOR, MAX_RECORD, expected_sha256))
    if precision not in (None, "auto", record.precision):
        raise ArtifactError(
            f"The model was calibrated in {record.precision} and precision={precision} is "
            "requested: its p-values would not hold. Train it again in that precision."
        )
    options = options_of(record)
    try:
        return _build(folder, record, options, choose_device(device), batch_size)
    except DfmError:
        raise
    except (MemoryError, RuntimeError) as error:  # the latter is how torch reports a full memory
        raise ArtifactError(
            f"The model in {folder} cannot be built ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}): free some memory, or train it again."
        ) from None


def _build(
    folder: Path, record: Record, options: Options, device: torch.device, batch_size: int
) -> AnomalyDetector:
    backbone = _backbone(folder / BACKBONE, record, options)
    shapes = shapes_of(backbone, options.size, options.pooling_rules, options.tile_size)
    _check_shapes(record, options, shapes)
    statistics = read_tensors(
        load_numpy, folder / STATISTICS, record.sha256.get(STATISTICS), most_statistics(record)
    )
    roi = roi_of(record, statistics)
    depth = Depth(**record.depth.model_dump()) if record.depth else None
    extractor = Extractor.of(
        backbone, options, device, record.precision, batch_size, roi=roi, depth=depth
    )
    grids = grids_of(shapes.maps, extractor.pixels.roi_cells, options.rows_are)
    if record.rule == 1:
        grids = [replace(grid, even_border=False) for grid in grids]
    classes = classes_of(record, statistics, grids, options.tail)
    fitted = fitted_of(record, statistics)
    detector = AnomalyDetector(
        options, extractor, grids, classes, record.weights, record.rule, fitted
    )
    _check_scores(detector, shapes)
    return detector


def _backbone(path: Path, record: Record, options: Options) -> Backbone:
    def read(expected: dict[str, Tensor]) -> dict[str, Tensor]:
        most = most_bytes(tensor.numel() for tensor in expected.values())
        state = read_tensors(load_torch, path, record.sha256.get(BACKBONE), most)
        _check_weights(state)
        return state

    layers = tuple(dict.fromkeys(layer.name for layer in record.layers))  # once, whatever scales
    try:
        return build_backbone(options.backbone, layers, options.network_size, folded=read)
    except WeightsError as error:
        raise ArtifactError(f"{path} does not fit {options.backbone}. {error}") from None


def _check_weights(state: dict[str, Tensor]) -> None:
    for name, tensor in state.items():
        if tensor.dtype != torch.float32:
            raise ArtifactError(f"{BACKBONE}: {name} has dtype {tensor.dtype}, expected float32.")
        if not torch.isfinite(tensor).all():
            raise ArtifactError(f"{BACKBONE}: {name} holds NaN or infinite values.")


def _check_shapes(record: Record, options: Options, shapes: Shapes) -> None:
    """Hold the maps of the record against those that the network gives."""
    named = [layer.name for layer in record.layers]
    expected = [name for name, _ in options.feature_maps]
    if named != expected:
        raise ArtifactError(
            f"{DETECTOR} has maps of the layers {', '.join(named)[:200]}, and its options give "
            f"{', '.join(expected)[:200]}."
        )
    for layer, found in zip(record.layers, shapes.maps, strict=True):
        if tuple(layer.shape) != found:
            raise ArtifactError(
                f"{DETECTOR}: the layer {layer.name} has shape {tuple(layer.shape)}, and the "
                f"backbone gives {found} with these options."
            )


def _check_scores(detector: AnomalyDetector, shapes: Shapes) -> None:
    if shapes.largest <= _MOST_TRIED:
        row = detector.score([_noise(detector.extractor.size)]).iloc[0]
        finite = all(math.isfinite(row[name]) for name in ("anomaly_score", "fre", "nll"))
    else:
        finite = _part_is_finite(detector.extractor) and _scores_are_finite(detector)
    if not finite:
        raise ArtifactError(f"{STATISTICS}: a picture of noise gets no finite score.")


def _part_is_finite(whole: Extractor) -> bool:
    """Whether the network gives finite features for a smaller picture."""
    height, width = (min(s, _SIDE_TRIED) for s in whole.size)
    if whole.backbone.patch:  # which takes inputs of one size
        height, width = (whole.tile, whole.tile) if whole.tile else whole.size
    part = Extractor(
        whole.backbone, (height, width), "stretch", 1, whole.device, whole.precision, 1
    )
    maps = part.extract([_noise((height, width))]).features
    return all(bool(torch.isfinite(m).all()) for m in maps)


@torch.inference_mode()
def _scores_are_finite(detector: AnomalyDetector) -> bool:
    """Whether features that the network could give get finite scores under every class."""
    device = detector.extractor.device
    draw = torch.Generator().manual_seed(0)
    features = []
    for grid in detector.grids:  # the same in every cell: expanded, they take no memory
        values = torch.rand(1, grid.shape[0], 1, 1, generator=draw)
        features.append(values.to(device).expand(1, *grid.shape))
    for model in detector.classes:
        s = score_class(model.on(device), features, detector.grids, detector.options)
        if not torch.stack([s.score, s.fre, s.nll]).isfinite().all():
            return False
    return True


def _noise(size: tuple[int, int]) -> np.ndarray:
    """Give a picture that stirs every weight of the first layers."""
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)


def _record_of(detector: AnomalyDetector, digests: dict[str, str]) -> Record:
    roi, depth = detector.extractor.roi, detector.extractor.decoder.depth
    names = [name for name, _ in detector.options.feature_maps]
    return Record(
        format=FORMAT,
        rule=detector.rule,
        options=detector.options.model_dump(),
        layers=[
            LayerRecord(name=name, shape=list(grid.shape))
            for name, grid in zip(names, detector.grids, strict=True)
        ],
        roi_shape=None if roi is None else list(roi.shape),
        depth=DepthRecord(**asdict(depth)) if depth else None,
        precision=detector.extractor.precision,
        classes=[
            ClassRecord(
                name=c.name,
                n_samples=c.layers[0].subspace.n_samples,
                n_held_out=len(c.calibration.scores),
                n_groups=None if c.calibration.groups is None else c.calibration.n_groups,
                n_left_out=c.calibration.n_left_out,
                n_folds=c.calibration.n_folds,
                refit_ratio=c.calibration.refit_ratio,
                map_scale=c.map_scale,
                layers=[
                    SubspaceRecord(
                        n_components=layer.subspace.n_components,
                        noise_variance=layer.subspace.noise_variance,
                        explained=layer.explained_share,
                    )
                    for layer in c.layers
                ],
            )
            for c in detector.classes
        ],
        n_fitted=len(detector.fitted),
        weights=detector.weights,
        sha256=digests,
    )
