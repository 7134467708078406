"""The model on disk, format 1: a JSON record and two safetensors files.

No pickle and no code. Every file is checked before anything is built from it.
"""

import hashlib
import json
import math
import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.numpy import load as load_numpy
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import load as load_torch
from safetensors.torch import save_file as save_torch

from dfm_mlflow.class_model import ClassModel, Grid, LayerModel, n_leading
from dfm_mlflow.config import Options
from dfm_mlflow.core.calibration import Calibration
from dfm_mlflow.core.subspace import Subspace
from dfm_mlflow.detector import AnomalyDetector
from dfm_mlflow.errors import ArtifactError, WeightsError
from dfm_mlflow.network.backbones import build_backbone
from dfm_mlflow.network.device import choose_device
from dfm_mlflow.network.extractor import Extractor

FORMAT = 1
DETECTOR, STATISTICS, BACKBONE = (
    "detector.json", "statistics.safetensors", "backbone.safetensors")  # fmt: skip
_STRICT = ConfigDict(extra="forbid", frozen=True, strict=True)
_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


_Size = Annotated[int, Field(ge=1, le=1 << 20)]


class _SubspaceRecord(BaseModel):
    model_config = _STRICT
    n_components: int = Field(ge=1)
    noise_variance: _Positive


class _ClassRecord(BaseModel):
    model_config = _STRICT
    name: str = Field(min_length=1)
    n_samples: int = Field(ge=2)
    n_held_out: int = Field(ge=2)
    n_folds: int = Field(ge=0)
    map_scale: float = Field(ge=0, allow_inf_nan=False)
    layers: list[_SubspaceRecord] = Field(min_length=1)

    @model_validator(mode="after")
    def _each_fitted_picture_is_held_out_once(self) -> "_ClassRecord":
        # 0 folds: the calibration is on pictures that were never fitted
        if self.n_folds and not (2 <= self.n_folds <= self.n_held_out == self.n_samples):
            raise ValueError(
                f"{self.n_held_out} scores held out of {self.n_samples} samples in "
                f"{self.n_folds} folds: n_folds is 0, or 2 to n_samples = n_held_out"
            )
        return self


class _LayerRecord(BaseModel):
    model_config = _STRICT
    name: str = Field(min_length=1)
    shape: list[_Size] = Field(min_length=3, max_length=3)


class _Record(BaseModel):
    """What ``detector.json`` holds."""

    model_config = _STRICT
    format: int
    options: dict[str, str | int | float | bool]
    layers: list[_LayerRecord] = Field(min_length=1)
    roi_shape: list[_Size] | None = Field(min_length=2, max_length=2)
    precision: str = Field(pattern="^(fp32|bf16|fp16)$")
    classes: list[_ClassRecord] = Field(min_length=1)
    weights: dict[str, str]
    sha256: dict[str, _Sha256]


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
    text = _read(folder / DETECTOR, expected_sha256)
    record = _parse(text)
    statistics = _tensors(load_numpy, folder / STATISTICS, record.sha256.get(STATISTICS))
    state = _tensors(load_torch, folder / BACKBONE, record.sha256.get(BACKBONE))
    options = _options(record)
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
        backbone, options.size, options.resize, options.pooling_rule, choose_device(device),
        record.precision, batch_size, tile=options.tile_size,
        roi=_roi(record, statistics))  # fmt: skip
    grids = []
    for layer in record.layers:
        channels, height, width = layer.shape
        grids.append(Grid((channels, height, width), extractor.roi_cells((height, width))))
    classes = [_class(c, i, statistics, grids, options.tail) for i, c in enumerate(record.classes)]
    return AnomalyDetector(options, extractor, grids, classes, record.weights)


def _record_of(detector: AnomalyDetector, digests: dict[str, str]) -> _Record:
    roi = detector.extractor.roi
    names = detector.extractor.backbone.layers
    return _Record(
        format=FORMAT,
        options=detector.options.model_dump(),
        layers=[
            _LayerRecord(name=name, shape=list(grid.shape))
            for name, grid in zip(names, detector.grids, strict=True)
        ],
        roi_shape=None if roi is None else list(roi.shape),
        precision=detector.extractor.precision,
        classes=[
            _ClassRecord(
                name=c.name,
                n_samples=c.layers[0].subspace.n_samples,
                n_held_out=len(c.calibration.scores),
                n_folds=c.calibration.n_folds,
                map_scale=c.map_scale,
                layers=[
                    _SubspaceRecord(
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


def _roi(record: _Record, statistics: dict[str, np.ndarray]) -> np.ndarray | None:
    if record.roi_shape is None:
        return None
    size = math.prod(record.roi_shape)
    packed = _array(statistics, "roi", ((size + 7) // 8,))
    if packed.dtype != np.uint8:
        raise ArtifactError(f"{STATISTICS}: roi has dtype {packed.dtype}, expected uint8.")
    return np.unpackbits(packed, count=size).astype(bool).reshape(record.roi_shape)


def _class(
    record: _ClassRecord,
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
    held_out = _array(statistics, f"{i}.held_out", (record.n_held_out,))
    if (np.diff(held_out) < 0).any():
        raise ArtifactError(f"{STATISTICS} holds scores out of order in {i}.held_out.")
    layers = []
    for j, (layer, grid) in enumerate(zip(record.layers, grids, strict=True)):
        k, dimension = layer.n_components, grid.n_features
        mean = _array(statistics, f"{i}.{j}.mean", (dimension,))
        basis = _array(statistics, f"{i}.{j}.basis", (dimension, k))
        variances = _array(statistics, f"{i}.{j}.variances", (k,))
        usual = _array(statistics, f"{i}.{j}.usual", grid.shape[1:])
        for name, array in (("variances", variances), ("usual", usual)):
            if not (array > 0).all():
                raise ArtifactError(
                    f"{STATISTICS} holds values that are not positive in {i}.{j}.{name}."
                )
        subspace = Subspace(mean, basis, variances, layer.noise_variance, record.n_samples)
        shape = (record.n_held_out, n_leading(subspace))
        leading = _array(statistics, f"{i}.{j}.leading", shape)
        layers.append(LayerModel(subspace, usual, leading))
    return ClassModel(record.name, tuple(layers), Calibration(held_out, record.n_folds, method),
                      record.map_scale)  # fmt: skip


def _array(statistics: dict[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name not in statistics:
        raise ArtifactError(f"{STATISTICS} lacks {name}: it holds {', '.join(sorted(statistics))}.")
    array = statistics[name]
    if array.shape != shape:
        raise ArtifactError(f"{STATISTICS}: {name} has shape {array.shape}, expected {shape}.")
    if not np.isfinite(array).all():
        raise ArtifactError(f"{STATISTICS}: {name} holds NaN or infinite values.")
    return array


def _parse(text: bytes) -> _Record:
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise ArtifactError(f"{DETECTOR} is not JSON ({error}).") from None
    found = raw.get("format") if isinstance(raw, dict) else None
    if found != FORMAT:
        raise ArtifactError(
            f"{DETECTOR} has format {found!r}, and this version reads format {FORMAT}: "
            "install the version of dfm-mlflow that wrote it."
        )
    try:
        return _Record.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ArtifactError(f"{DETECTOR}: {where}: {first['msg']}.") from None


def _options(record: _Record) -> Options:
    try:
        return Options.parse(record.options)
    except ValueError as error:
        raise ArtifactError(f"{DETECTOR}: {error}") from None


def _read(path: Path, expected: str | None) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror}).") from None
    found = hashlib.sha256(data).hexdigest()
    if expected is not None and found != expected:
        raise ArtifactError(f"{path} has SHA-256 {found}, expected {expected}: it was changed.")
    return data


def _tensors(load: Any, path: Path, expected: str | None) -> dict[str, Any]:
    if expected is None:
        raise ArtifactError(f"{DETECTOR} gives no SHA-256 of {path.name}.")
    try:
        return load(_read(path, expected))
    except (SafetensorError, ValueError) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"{path} is not a safetensors file ({error}).") from None


def sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
