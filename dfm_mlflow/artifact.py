"""The model on disk, format 1: a JSON record and two safetensors files.

No pickle and no code. Every file is checked before anything is built from it.
"""

import hashlib
import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load as load_numpy
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import load as load_torch
from safetensors.torch import save_file as save_torch

from dfm_mlflow.artifact_record import (
    DETECTOR,
    FORMAT,
    ClassRecord,
    LayerRecord,
    Record,
    SubspaceRecord,
    options_of,
    parse_record,
)
from dfm_mlflow.class_model import ClassModel, Grid, LayerModel, n_leading
from dfm_mlflow.core.calibration import Calibration
from dfm_mlflow.core.subspace import Subspace
from dfm_mlflow.detector import AnomalyDetector
from dfm_mlflow.errors import ArtifactError, WeightsError
from dfm_mlflow.network.backbones import build_backbone
from dfm_mlflow.network.device import choose_device
from dfm_mlflow.network.extractor import Extractor

STATISTICS, BACKBONE = "statistics.safetensors", "backbone.safetensors"
MAX_RECORD = 16 * 1024**2  # bytes of detector.json; a usual one has a few thousand
# A basis rounded to half precision keeps its columns' lengths far better than this.
_LENGTH_TOLERANCE = 0.02


def save_detector(detector: AnomalyDetector, folder: Path) -> str:
    """Write a detector into a new folder; the folder appears whole or not at all.

    Parameters
    ----------
    detector : AnomalyDetector
    folder : Path
        Must not exist.

    Returns
    -------
    str
        SHA-256 of ``detector.json``, which holds those of the other files.
    """
    folder = Path(folder)
    if folder.exists():
        raise ArtifactError(f"{folder} exists already: give a new folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".tmp-dfm-"))
    try:
        save_numpy(_statistics(detector), temporary / STATISTICS)
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
    """Read a detector and check everything about it.

    Parameters
    ----------
    folder : Path
        Written by :func:`save_detector`.
    expected_sha256 : str, optional
        Of ``detector.json``.
    device : str, optional
        ``cpu``, ``cuda`` or ``cuda:N``; by default ``MLFLOW_DEFAULT_PREDICTION_DEVICE``, then CUDA,
        then CPU.
    precision : str, optional
        Must be the one that the model was calibrated in.
    batch_size : int
        Pictures in one forward pass.

    Raises
    ------
    ArtifactError
        For a file that is missing or damaged, a hash, shape or format other than expected.
    DeviceError
        If the device is not there.
    """
    folder = Path(folder)
    record = parse_record(_read(folder / DETECTOR, expected_sha256, MAX_RECORD))
    options = options_of(record)
    statistics = _tensors(load_numpy, folder / STATISTICS, record.sha256.get(STATISTICS))
    state = _tensors(load_torch, folder / BACKBONE, record.sha256.get(BACKBONE))
    _check_weights(state)
    if precision not in (None, "auto", record.precision):
        raise ArtifactError(
            f"The model was calibrated in {record.precision} and precision={precision} is asked "
            "for: its p-values would not hold. Train it anew in that precision."
        )
    try:
        layers = tuple(layer.name for layer in record.layers)
        backbone = build_backbone(options.backbone, layers, options.size, folded=state)
    except WeightsError as error:
        raise ArtifactError(
            f"{folder / BACKBONE} does not fit {options.backbone}. {error}"
        ) from None
    extractor = Extractor(
        backbone,
        options.size,
        options.resize,
        options.pooling_rule,
        choose_device(device),
        record.precision,
        batch_size,
        tile=options.tile_size,
        roi=_roi(record, statistics),
    )
    grids = _grids(record, extractor)
    classes = [_class(c, i, statistics, grids, options.tail) for i, c in enumerate(record.classes)]
    _check_names(record, statistics)
    detector = AnomalyDetector(options, extractor, grids, classes, record.weights)
    _check_score(detector)
    return detector


def _grids(record: Record, extractor: Extractor) -> list[Grid]:
    """Hold the shapes of the record against those that the network gives."""
    features = extractor.extract([_noise(extractor.size)]).features
    grids = []
    for layer, maps in zip(record.layers, features, strict=True):
        channels, height, width = found = tuple(maps.shape[1:])
        if tuple(layer.shape) != found:
            raise ArtifactError(
                f"{DETECTOR}: the layer {layer.name} has shape {tuple(layer.shape)}, and the "
                f"backbone gives {found} with these options."
            )
        grids.append(Grid((channels, height, width), extractor.roi_cells((height, width))))
    return grids


def _check_score(detector: AnomalyDetector) -> None:
    row = detector.score([_noise(detector.extractor.size)]).iloc[0]
    if not all(math.isfinite(row[name]) for name in ("anomaly_score", "fre", "nll")):
        raise ArtifactError(f"{STATISTICS}: a picture of noise gets no finite score.")


def _noise(size: tuple[int, int]) -> np.ndarray:
    """Give a picture that stirs every weight of the first layers."""
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)


def _check_weights(state: dict[str, torch.Tensor]) -> None:
    for name, tensor in state.items():
        if tensor.dtype != torch.float32:
            raise ArtifactError(f"{BACKBONE}: {name} has dtype {tensor.dtype}, expected float32.")
        if not torch.isfinite(tensor).all():
            raise ArtifactError(f"{BACKBONE}: {name} holds NaN or infinite values.")


def _check_names(record: Record, statistics: dict[str, np.ndarray]) -> None:
    kinds = ("mean", "basis", "variances", "usual", "leading")
    known = {
        f"{i}.{j}.{kind}"
        for i, c in enumerate(record.classes)
        for j in range(len(c.layers))
        for kind in kinds
    }
    known |= {f"{i}.held_out" for i in range(len(record.classes))}
    known |= {"roi"} if record.roi_shape is not None else set()
    others = sorted(set(statistics) - known)
    if others:
        raise ArtifactError(f"{STATISTICS} holds {others[0]}, which belongs to nothing.")


def _record_of(detector: AnomalyDetector, digests: dict[str, str]) -> Record:
    roi = detector.extractor.roi
    names = detector.extractor.backbone.layers
    return Record(
        format=FORMAT,
        options=detector.options.model_dump(),
        layers=[
            LayerRecord(name=name, shape=list(grid.shape))
            for name, grid in zip(names, detector.grids, strict=True)
        ],
        roi_shape=None if roi is None else list(roi.shape),
        precision=detector.extractor.precision,
        classes=[
            ClassRecord(
                name=c.name,
                n_samples=c.layers[0].subspace.n_samples,
                n_held_out=len(c.calibration.scores),
                n_folds=c.calibration.n_folds,
                map_scale=c.map_scale,
                layers=[
                    SubspaceRecord(
                        n_components=layer.subspace.n_components,
                        noise_variance=layer.subspace.noise_variance,
                    )
                    for layer in c.layers
                ],
            )
            for c in detector.classes
        ],
        weights=detector.weights,
        sha256=digests,
    )


def _statistics(detector: AnomalyDetector) -> dict[str, np.ndarray]:
    arrays = {}
    for i, model in enumerate(detector.classes):
        arrays[f"{i}.held_out"] = model.calibration.scores
        for j, layer in enumerate(model.layers):
            for name in ("mean", "basis", "variances"):
                kind = np.float16 if name == "basis" else np.float32
                array = np.asarray(getattr(layer.subspace, name), dtype=kind)
                arrays[f"{i}.{j}.{name}"] = np.ascontiguousarray(array)
            arrays[f"{i}.{j}.usual"] = np.asarray(layer.usual, dtype=np.float32)
            arrays[f"{i}.{j}.leading"] = np.ascontiguousarray(layer.leading, dtype=np.float32)
    if detector.extractor.roi is not None:
        arrays["roi"] = np.packbits(detector.extractor.roi)
    return arrays


def _roi(record: Record, statistics: dict[str, np.ndarray]) -> np.ndarray | None:
    if record.roi_shape is None:
        return None
    size = math.prod(record.roi_shape)
    packed = _array(statistics, "roi", ((size + 7) // 8,), np.uint8)
    return np.unpackbits(packed, count=size).astype(bool).reshape(record.roi_shape)


def _class(
    record: ClassRecord,
    i: int,
    statistics: dict[str, np.ndarray],
    grids: list[Grid],
    method: str,
) -> ClassModel:
    if len(record.layers) != len(grids):
        raise ArtifactError(
            f"{DETECTOR}: the class {record.name} has {len(record.layers)} layers, "
            f"expected {len(grids)}."
        )
    held_out = _array(statistics, f"{i}.held_out", (record.n_held_out,), np.float64)
    if (np.diff(held_out) < 0).any():
        raise ArtifactError(f"{STATISTICS} holds scores out of order in {i}.held_out.")
    layers = []
    for j, (layer, grid) in enumerate(zip(record.layers, grids, strict=True)):
        k, dimension = layer.n_components, grid.n_features
        mean = _array(statistics, f"{i}.{j}.mean", (dimension,))
        with np.errstate(over="ignore"):
            if not np.isfinite(mean @ mean):
                raise ArtifactError(f"{STATISTICS} holds values too large in {i}.{j}.mean.")
        basis = _array(statistics, f"{i}.{j}.basis", (dimension, k), np.float16)
        variances = _array(statistics, f"{i}.{j}.variances", (k,))
        usual = _array(statistics, f"{i}.{j}.usual", grid.shape[1:])
        for name, array in (("variances", variances), ("usual", usual)):
            if not (array > 0).all():
                raise ArtifactError(
                    f"{STATISTICS} holds values that are not positive in {i}.{j}.{name}."
                )
        lengths = np.einsum("dk,dk->k", basis, basis, dtype=np.float32)
        if (np.abs(lengths - 1) > _LENGTH_TOLERANCE).any():
            raise ArtifactError(
                f"{STATISTICS} holds directions that are no unit vectors in {i}.{j}.basis."
            )
        subspace = Subspace(mean, basis, variances, layer.noise_variance, record.n_samples)
        shape = (record.n_held_out, n_leading(subspace))
        leading = _array(statistics, f"{i}.{j}.leading", shape)
        if (np.diff(leading, axis=0) < 0).any():
            raise ArtifactError(f"{STATISTICS} holds coordinates out of order in {i}.{j}.leading.")
        layers.append(LayerModel(subspace, usual, leading))
    return ClassModel(
        record.name, tuple(layers), Calibration(held_out, record.n_folds, method), record.map_scale
    )


def _array(
    statistics: dict[str, np.ndarray], name: str, shape: tuple[int, ...], kind: type = np.float32
) -> np.ndarray:
    if name not in statistics:
        raise ArtifactError(f"{STATISTICS} lacks {name}: it holds {', '.join(sorted(statistics))}.")
    array = statistics[name]
    if array.shape != shape:
        raise ArtifactError(f"{STATISTICS}: {name} has shape {array.shape}, expected {shape}.")
    if array.dtype != kind:
        raise ArtifactError(
            f"{STATISTICS}: {name} has dtype {array.dtype}, expected {np.dtype(kind)}."
        )
    if not np.isfinite(array).all():
        raise ArtifactError(f"{STATISTICS}: {name} holds NaN or infinite values.")
    return array


def _read(path: Path, expected: str | None, most: int | None = None) -> bytes:
    try:
        size = path.stat().st_size
        if most is not None and size > most:
            raise ArtifactError(f"{path} has {size} bytes, more than the limit of {most}.")
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror}).") from None
    found = hashlib.sha256(data).hexdigest()
    if expected is not None and found != expected:
        raise ArtifactError(f"{path} has SHA-256 {found}, expected {expected}: it was changed.")
    return data


def _tensors(
    load: Callable[[bytes], dict[str, Any]], path: Path, expected: str | None
) -> dict[str, Any]:
    if expected is None:
        raise ArtifactError(f"{DETECTOR} gives no SHA-256 of {path.name}.")
    try:
        return load(_read(path, expected))
    except ArtifactError:
        raise
    except (SafetensorError, ValueError, TypeError, KeyError) as error:  # a type that NumPy lacks
        raise ArtifactError(f"{path} is not a safetensors file ({str(error)[:200]}).") from None


def sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
