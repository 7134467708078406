"""``detector.json`` of formats 1 and 2, strictly validated."""

import json
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dfm_mlflow.config import Options
from dfm_mlflow.errors import ArtifactError

# How a model decides which class an image is of, by its rule.
CATEGORY_RULES = {1: "largest p-value", 2: "smallest negative log-likelihood"}

FORMAT = 2
READABLE = (1, 2)
# What options meant in models of format 1 that did not have them yet.
_OPTIONS_OF_FORMAT_1: dict[str, str | int | float | bool] = {
    "augment": "none",
    "subspace": "picture",
    "blur": "none",
}
DETECTOR = "detector.json"
_SINCE_2 = {"rule", "depth", "n_fitted"}
_STRICT = ConfigDict(extra="forbid", frozen=True, strict=True)
_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
# scores are computed in single precision
_SMALLEST, _LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
_Size = Annotated[int, Field(ge=1, le=1 << 20)]
_Pictures = Annotated[int, Field(ge=1, le=1 << 30)]


class SubspaceRecord(BaseModel):
    """Of one layer of one class."""

    model_config = _STRICT
    n_components: int = Field(ge=1, le=1 << 20)  # dimension of the subspace
    # Variance of each direction outside it.
    noise_variance: float = Field(ge=_SMALLEST, le=_LARGEST)
    # Share of the variance of good pictures that it explains of held-out ones.
    explained: float = Field(1.0, ge=0, le=1)


class ClassRecord(BaseModel):
    """Of one class."""

    model_config = _STRICT
    name: str = Field(min_length=1)
    n_samples: _Pictures  # pictures that it was fitted to
    n_held_out: _Pictures  # held-out scores of its calibration
    # Groups that p-values count; None where every picture is one.
    n_groups: int | None = Field(None, ge=2, le=1 << 30)
    # Groups, or pictures, that a declared share of dirt left out of the calibration.
    n_left_out: int = Field(0, ge=0, le=1 << 30)
    # Of the cross-fitting that gave them; 0 where they are of pictures that were never fitted.
    n_folds: int = Field(ge=0)
    # As :class:`~dfm_mlflow.core.calibration.Calibration` has it.
    refit_ratio: float = Field(1.0, gt=0, le=_LARGEST)
    # As :class:`~dfm_mlflow.detector.class_model.ClassModel` has it.
    map_scale: float = Field(ge=0, le=_LARGEST)
    layers: list[SubspaceRecord] = Field(min_length=1)  # in the order of the record's layers

    @model_validator(mode="after")
    def _each_fitted_picture_is_held_out_once(self) -> "ClassRecord":
        # 0 folds: the calibration is on pictures that were never fitted
        n = self.n_held_out
        most = n + self.n_left_out if self.n_groups is None else self.n_samples
        least = min(2, self.n_samples)  # of a single picture parts are held out
        if self.n_folds and not (self.n_folds >= least and n <= self.n_samples <= most):
            raise ValueError(
                f"{n} scores held out of {self.n_samples} samples in {self.n_folds} folds, "
                f"{self.n_left_out} left out: n_folds is 0, or 2 and more with every sample "
                "held out or left out"
            )
        return self

    @model_validator(mode="after")
    def _groups_hold_pictures(self) -> "ClassRecord":
        if self.n_groups is not None and self.n_groups > self.n_held_out:
            raise ValueError(f"{self.n_groups} groups of {self.n_held_out} scores")
        return self


class LayerRecord(BaseModel):
    """Of one feature map: a layer of the backbone at one scale."""

    model_config = _STRICT
    # resolved: a stride, or a window of depth, would have to be looked for
    name: str = Field(pattern=r"^(2:)?[\w.]+(-\d+)?(:l2)?$")
    shape: list[_Size] = Field(min_length=3, max_length=3)  # ``[C, h, w]`` of its feature map


class DepthRecord(BaseModel):
    """Depth of the training pictures' values; see :class:`~dfm_mlflow.images.depth.Depth`."""

    model_config = _STRICT
    bits: Literal[8, 10, 12, 14, 16]
    shift: Literal[0, 2, 4, 6, 8]
    darkest: int = Field(ge=0, le=65535)

    @model_validator(mode="after")
    def _fill_a_word(self) -> "DepthRecord":
        if self.shift and self.bits + self.shift != 16:
            raise ValueError(f"{self.bits} bits above {self.shift} others: a word has 16")
        return self


class Record(BaseModel):
    """What ``detector.json`` holds."""

    model_config = _STRICT
    format: Literal[1, 2]
    # How classes are decided between and tails extend p-values: as in format 1, or as now.
    rule: Literal[1, 2] = 1
    options: dict[str, str | int | float | bool]  # resolved options of the training run
    layers: list[LayerRecord] = Field(min_length=1)
    # Height and width of the mask of the region of interest in pixels.
    roi_shape: list[_Size] | None = Field(min_length=2, max_length=2)
    # None where none is known, and 65535 is white in any picture of 16-bit words.
    depth: DepthRecord | None = None
    precision: str = Field(pattern="^(fp32|bf16|fp16)$")  # arithmetic that it was calibrated in
    classes: list[ClassRecord] = Field(min_length=1)
    # Pictures that it was fitted to whose digests are in the statistics; 0 where none are.
    n_fitted: int = Field(0, ge=0, le=1 << 30)
    weights: dict[str, str]  # ``id`` and ``sha256`` of the backbone's weights
    sha256: dict[str, _Sha256]  # of the other files of the model, hexadecimal, by their names

    @model_validator(mode="after")
    def _names_are_different(self) -> "Record":
        names = [c.name for c in self.classes]  # those of layers repeat, once for each scale
        if len(set(names)) < len(names):
            raise ValueError(f"a name appears twice among {', '.join(names)}")
        return self

    @model_validator(mode="after")
    def _sizes_fit(self) -> "Record":
        for c in self.classes:
            if len(c.layers) != len(self.layers):
                raise ValueError(
                    f"the class {c.name} has {len(c.layers)} layers, expected {len(self.layers)}"
                )
        stated = self.options.get("max_megapixels", 50)
        most = (stated if isinstance(stated, int) else 50) * 1_000_000  # as in any picture
        if self.roi_shape and self.roi_shape[0] * self.roi_shape[1] > most:
            raise ValueError(f"a region of interest of more than {most} pixels")
        return self


def parse_record(text: bytes) -> Record:
    """Read ``detector.json``."""
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{DETECTOR} is not JSON ({error}).") from None
    found = raw.get("format") if isinstance(raw, dict) else None
    if found not in READABLE:
        raise ArtifactError(
            f"{DETECTOR} has format {repr(found)[:40]}, and this version reads formats 1 and 2: "
            "install the version of dfm-mlflow that wrote it."
        )
    unknown = set(raw) & _SINCE_2 if found == 1 else set()
    if unknown:
        raise ArtifactError(f"{DETECTOR} of format 1 holds {min(unknown)}, which format 2 brought.")
    try:
        return Record.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))[:200]
        raise ArtifactError(f"{DETECTOR}: {where}: {first['msg']}.") from None


def options_of(record: Record) -> Options:
    """Give the options of a `record`, all of them resolved."""
    try:
        earlier = _OPTIONS_OF_FORMAT_1 if record.format == 1 else {}
        options = Options.parse(earlier | record.options)
        resolved = options.resolve()
    except ValueError as error:
        raise ArtifactError(f"{DETECTOR}: {str(error)[:500]}") from None
    for name, value in resolved:
        if getattr(options, name) != value:
            raise ArtifactError(f"{DETECTOR}: the option {name} is auto, expected a value.")
    return options
