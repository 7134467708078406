"""``detector.json`` of format 1, strictly validated."""

import json
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dfm_mlflow.config import Options
from dfm_mlflow.errors import ArtifactError

FORMAT = 1
DETECTOR = "detector.json"
_STRICT = ConfigDict(extra="forbid", frozen=True, strict=True)
_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
# scores are computed in single precision
_SMALLEST, _LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
_Size = Annotated[int, Field(ge=1, le=1 << 20)]
_Pictures = Annotated[int, Field(ge=2, le=1 << 30)]
_MOST_ROI = 50_000_000  # pixels, as in any picture


class SubspaceRecord(BaseModel):
    """Of one layer of one class.

    Attributes
    ----------
    n_components : int
        Dimension of the subspace.
    noise_variance : float
        Variance of each direction outside it.
    """

    model_config = _STRICT
    n_components: int = Field(ge=1, le=1 << 20)
    noise_variance: float = Field(ge=_SMALLEST, le=_LARGEST)


class ClassRecord(BaseModel):
    """Of one class.

    Attributes
    ----------
    name : str
    n_samples : int
        Pictures that it was fitted to.
    n_held_out : int
        Held-out scores of its calibration.
    n_folds : int
        Of the cross-fitting that gave them; 0 where they are of pictures that were never fitted.
    map_scale : float
        As :class:`~dfm_mlflow.detector.class_model.ClassModel` has it.
    layers : list of SubspaceRecord
        In the order of the record's layers.
    """

    model_config = _STRICT
    name: str = Field(min_length=1)
    n_samples: _Pictures
    n_held_out: _Pictures
    n_folds: int = Field(ge=0)
    map_scale: float = Field(ge=0, le=_LARGEST)
    layers: list[SubspaceRecord] = Field(min_length=1)

    @model_validator(mode="after")
    def _each_fitted_picture_is_held_out_once(self) -> "ClassRecord":
        # 0 folds: the calibration is on pictures that were never fitted
        if self.n_folds and not (2 <= self.n_folds <= self.n_held_out == self.n_samples):
            raise ValueError(
                f"{self.n_held_out} scores held out of {self.n_samples} samples in "
                f"{self.n_folds} folds: n_folds is 0, or 2 to n_samples = n_held_out"
            )
        return self


class LayerRecord(BaseModel):
    """Of one layer of the backbone.

    Attributes
    ----------
    name : str
    shape : list of int
        ``[C, h, w]`` of its feature map.
    """

    model_config = _STRICT
    name: str = Field(pattern=r"^[\w.]+$")  # resolved: a stride would have to be looked for
    shape: list[_Size] = Field(min_length=3, max_length=3)


class Record(BaseModel):
    """What ``detector.json`` holds.

    Attributes
    ----------
    format : int
        :data:`FORMAT`.
    options : dict of str to str, int, float or bool
        Resolved options of the training run.
    layers : list of LayerRecord
    roi_shape : list of int or None
        Height and width of the mask of the region of interest in pixels.
    precision : {"fp32", "bf16", "fp16"}
        Arithmetic that it was calibrated in.
    classes : list of ClassRecord
    weights : dict of str to str
        ``id`` and ``sha256`` of the backbone's weights.
    sha256 : dict of str to str
        Of the other files of the model, hexadecimal, by their names.
    """

    model_config = _STRICT
    format: int
    options: dict[str, str | int | float | bool]
    layers: list[LayerRecord] = Field(min_length=1)
    roi_shape: list[_Size] | None = Field(min_length=2, max_length=2)
    precision: str = Field(pattern="^(fp32|bf16|fp16)$")
    classes: list[ClassRecord] = Field(min_length=1)
    weights: dict[str, str]
    sha256: dict[str, _Sha256]

    @model_validator(mode="after")
    def _names_are_different(self) -> "Record":
        for names in ([c.name for c in self.classes], [layer.name for layer in self.layers]):
            if len(set(names)) < len(names):
                raise ValueError(f"a name stands twice among {', '.join(names)}")
        return self

    @model_validator(mode="after")
    def _sizes_fit(self) -> "Record":
        for c in self.classes:
            if len(c.layers) != len(self.layers):
                raise ValueError(
                    f"the class {c.name} has {len(c.layers)} layers, expected {len(self.layers)}"
                )
        if self.roi_shape and self.roi_shape[0] * self.roi_shape[1] > _MOST_ROI:
            raise ValueError(f"a region of interest of more than {_MOST_ROI} pixels")
        return self


def parse_record(text: bytes) -> Record:
    """Read ``detector.json``.

    Parameters
    ----------
    text : bytes
        What the file holds.

    Returns
    -------
    Record

    Raises
    ------
    ArtifactError
        For another format, and for the first field that is wrong.
    """
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{DETECTOR} is not JSON ({error}).") from None
    found = raw.get("format") if isinstance(raw, dict) else None
    if found != FORMAT:
        raise ArtifactError(
            f"{DETECTOR} has format {repr(found)[:40]}, and this version reads format {FORMAT}: "
            "install the version of dfm-mlflow that wrote it."
        )
    try:
        return Record.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))[:200]
        raise ArtifactError(f"{DETECTOR}: {where}: {first['msg']}.") from None


def options_of(record: Record) -> Options:
    """Give the options of a `record`, all of them resolved.

    Raises
    ------
    ArtifactError
    """
    try:
        options = Options.parse(record.options)
        resolved = options.resolve()
    except ValueError as error:
        raise ArtifactError(f"{DETECTOR}: {str(error)[:500]}") from None
    for name, value in resolved:
        if getattr(options, name) != value:
            raise ArtifactError(f"{DETECTOR}: the option {name} is auto, expected a value.")
    return options
