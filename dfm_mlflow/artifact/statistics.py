"""What ``statistics.safetensors`` holds, from a detector's classes and back, checked."""

import math

import numpy as np

from dfm_mlflow.artifact.files import STATISTICS, most_bytes
from dfm_mlflow.artifact.record import ClassRecord, Record, SubspaceRecord
from dfm_mlflow.core.calibration import Calibration
from dfm_mlflow.core.leading_coordinates import MOST_LEADING, n_leading
from dfm_mlflow.core.packing import LEADING, n_blocks, pack, unpack
from dfm_mlflow.core.subspace import Subspace
from dfm_mlflow.detector.anomaly_detector import DIGITS, AnomalyDetector
from dfm_mlflow.detector.class_model import ClassModel, LayerModel
from dfm_mlflow.detector.grid import Grid
from dfm_mlflow.errors import ArtifactError

# A basis rounded to half precision keeps its columns' lengths far better than this.
_LENGTH_TOLERANCE = 0.02
# Of a layer of a class; the basis after its leading directions is numbers and exponents, where
# 8 bits hold it: see :mod:`dfm_mlflow.core.packing`.
_KINDS = ("mean", "basis", "numbers", "exponents", "variances", "usual", "leading")


def statistics_of(detector: AnomalyDetector) -> dict[str, np.ndarray]:
    """Give the arrays of a `detector` by their names in the file."""
    arrays = {}
    for i, model in enumerate(detector.classes):
        arrays[f"{i}.held_out"] = model.calibration.scores
        if model.calibration.groups is not None:
            arrays[f"{i}.groups"] = model.calibration.groups.astype(np.int32)
        if detector.rule > 1 and model.correlation is not None:
            arrays[f"{i}.correlation"] = np.asarray(model.correlation, dtype=np.float32)
        if model.light is not None:
            arrays[f"{i}.light"] = np.asarray(model.light, dtype=np.float64)
        for j, layer in enumerate(model.layers):
            for name in ("mean", "variances"):
                array = np.asarray(getattr(layer.subspace, name), dtype=np.float32)
                arrays[f"{i}.{j}.{name}"] = np.ascontiguousarray(array)
            known = _basis_arrays(layer.subspace.basis, detector.grids[j])
            arrays |= {f"{i}.{j}.{k}": a for k, a in known.items()}
            arrays[f"{i}.{j}.usual"] = np.asarray(layer.normaliser, dtype=np.float32)
            arrays[f"{i}.{j}.leading"] = np.ascontiguousarray(
                layer.leading_coordinates, dtype=np.float32
            )
    if detector.fitted:
        digests = b"".join(bytes.fromhex(digest) for digest in sorted(detector.fitted))
        arrays["fitted"] = np.frombuffer(digests, dtype=np.uint8).reshape(-1, DIGITS // 2)
    if detector.extractor.roi is not None:
        arrays["roi"] = np.packbits(detector.extractor.roi)
    return arrays


def _basis_arrays(basis: np.ndarray, grid: Grid) -> dict[str, np.ndarray]:
    if grid.of_cells:
        return {"basis": np.ascontiguousarray(basis, dtype=np.float32)}
    half = np.asarray(basis, dtype=np.float16)
    packed = pack(half)
    if packed is None:
        return {"basis": np.ascontiguousarray(half)}
    leading = np.ascontiguousarray(half[:, :LEADING])
    return {"basis": leading, "numbers": packed[0], "exponents": packed[1]}


def _basis_of(statistics: dict[str, np.ndarray], place: str, grid: Grid, k: int) -> np.ndarray:
    dimension = grid.n_features
    if grid.of_cells:
        return _array(statistics, f"{place}.basis", (dimension, k))
    if f"{place}.numbers" not in statistics:
        return _array(statistics, f"{place}.basis", (dimension, k), np.float16)
    leading = _array(statistics, f"{place}.basis", (dimension, min(k, LEADING)), np.float16)
    rest = max(0, k - LEADING)
    numbers = _array(statistics, f"{place}.numbers", (dimension, rest), np.int8)
    exponents = _array(statistics, f"{place}.exponents", (n_blocks(dimension), rest), np.int8)
    if exponents.size and not (exponents.min() >= -24 and exponents.max() <= 0):
        raise ArtifactError(f"{STATISTICS} holds exponents outside -24 to 0 in {place}.exponents.")
    return np.concatenate([leading, unpack(numbers, exponents)], axis=1)


def most_statistics(record: Record) -> int:
    """Bytes that the file can have beside a `record` whose shapes are the network's."""
    sizes = [math.prod(record.roi_shape or ()) // 8 + 1, DIGITS // 2 * record.n_fitted]
    for c in record.classes:
        sizes += [c.n_held_out, c.n_held_out if c.n_groups else 0, _n_calibrated(c)]
        for layer, subspace in zip(record.layers, c.layers, strict=True):
            channels, height, width = layer.shape
            features, k = channels * height * width, subspace.n_components
            sizes += [features, features * k, k, height * width]
            sizes.append(_n_calibrated(c) * min(MOST_LEADING, k))
        sizes.append((MOST_LEADING * len(c.layers)) ** 2)
    return most_bytes(sizes)


def roi_of(record: Record, statistics: dict[str, np.ndarray]) -> np.ndarray | None:
    """Give the region of interest, or None where a model has none.

    Gives (H, W) bool, or None.
    """
    if record.roi_shape is None:
        return None
    size = math.prod(record.roi_shape)
    packed = _array(statistics, "roi", ((size + 7) // 8,), np.uint8)
    return np.unpackbits(packed, count=size).astype(bool).reshape(record.roi_shape)


def fitted_of(record: Record, statistics: dict[str, np.ndarray]) -> list[str]:
    """Digests of the pictures that a model was fitted to; none where they are not known."""
    if not record.n_fitted:
        return []
    digests = _array(statistics, "fitted", (record.n_fitted, DIGITS // 2), np.uint8)
    return [bytes(digest).hex() for digest in digests]


def classes_of(
    record: Record, statistics: dict[str, np.ndarray], grids: list[Grid], method: str
) -> list[ClassModel]:
    """Build the classes."""
    classes = [
        _class(c, i, statistics, grids, method, record.rule) for i, c in enumerate(record.classes)
    ]
    _check_names(record, statistics)
    return classes


def _class(
    record: ClassRecord,
    i: int,
    statistics: dict[str, np.ndarray],
    grids: list[Grid],
    method: str,
    rule: int,
) -> ClassModel:
    held_out = _array(statistics, f"{i}.held_out", (record.n_held_out,), np.float64)
    if (np.diff(held_out) < 0).any():
        raise ArtifactError(f"{STATISTICS} holds scores out of order in {i}.held_out.")
    groups = None
    if record.n_groups is not None:
        groups = _array(statistics, f"{i}.groups", (record.n_held_out,), np.int32)
        if not np.array_equal(np.unique(groups), np.arange(record.n_groups)):
            raise ArtifactError(f"{STATISTICS} holds other groups than 0 to n in {i}.groups.")
    layers = []
    for j, (layer, grid) in enumerate(zip(record.layers, grids, strict=True)):
        subspace = _subspace(layer, f"{i}.{j}", record.n_samples, statistics, grid)
        normaliser = _array(statistics, f"{i}.{j}.usual", grid.shape[1:])
        _check_positive(f"{i}.{j}.usual", normaliser)
        shape = (_n_calibrated(record), n_leading(subspace))
        leading_coordinates = _array(statistics, f"{i}.{j}.leading", shape)
        if (np.diff(leading_coordinates, axis=0) < 0).any():
            raise ArtifactError(f"{STATISTICS} holds coordinates out of order in {i}.{j}.leading.")
        layers.append(LayerModel(subspace, normaliser, leading_coordinates, layer.explained))
    correlation = None
    if rule > 1:
        many = sum(n_leading(layer.subspace) for layer in layers)
        correlation = _array(statistics, f"{i}.correlation", (many, many))
        if not (np.abs(correlation) <= 1 + 1e-5).all() or (correlation != correlation.T).any():
            raise ArtifactError(f"{STATISTICS} holds no correlations in {i}.correlation.")
    light = None
    if f"{i}.light" in statistics:
        light = _array(statistics, f"{i}.light", (_n_calibrated(record),), np.float64)
        if (np.diff(light) < 0).any():
            raise ArtifactError(f"{STATISTICS} holds levels out of order in {i}.light.")
    calibration = Calibration(
        held_out, record.n_folds, method, groups, record.n_left_out, rule, record.refit_ratio
    )
    return ClassModel(record.name, tuple(layers), calibration, record.map_scale, correlation, light)


def _n_calibrated(record: ClassRecord) -> int:
    """Pictures of the calibration, with those that a declared share of dirt left out."""
    return record.n_samples if record.n_folds else record.n_held_out


def _subspace(
    record: SubspaceRecord,
    place: str,
    n_samples: int,
    statistics: dict[str, np.ndarray],
    grid: Grid,
) -> Subspace:
    k, dimension = record.n_components, grid.n_features
    mean = _array(statistics, f"{place}.mean", (dimension,))
    with np.errstate(over="ignore"):
        if not np.isfinite(mean @ mean):
            raise ArtifactError(f"{STATISTICS} holds values too large in {place}.mean.")
    basis = _basis_of(statistics, place, grid, k)
    variances = _array(statistics, f"{place}.variances", (k,))
    _check_positive(f"{place}.variances", variances)
    lengths = np.einsum("dk,dk->k", basis, basis, dtype=np.float32)
    if (np.abs(lengths - 1) > _LENGTH_TOLERANCE).any():
        raise ArtifactError(
            f"{STATISTICS} holds directions that are not unit vectors in {place}.basis."
        )
    return Subspace(mean, basis, variances, record.noise_variance, n_samples)


def _check_positive(name: str, array: np.ndarray) -> None:
    if not (array > 0).all():
        raise ArtifactError(f"{STATISTICS} holds values that are not positive in {name}.")


def _check_names(record: Record, statistics: dict[str, np.ndarray]) -> None:
    known = {
        f"{i}.{j}.{kind}"
        for i, c in enumerate(record.classes)
        for j in range(len(c.layers))
        for kind in _KINDS
    }
    known |= {f"{i}.held_out" for i in range(len(record.classes))}
    known |= {f"{i}.groups" for i, c in enumerate(record.classes) if c.n_groups is not None}
    if record.rule > 1:
        known |= {f"{i}.{k}" for i in range(len(record.classes)) for k in ("correlation", "light")}
    known |= {"roi"} if record.roi_shape is not None else set()
    known |= {"fitted"} if record.n_fitted else set()
    others = sorted(set(statistics) - known)
    if others:
        raise ArtifactError(f"{STATISTICS} holds {others[0]}, which belongs to nothing.")


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
