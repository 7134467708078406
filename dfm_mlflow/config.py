"""The one strict model of every option.

The command line is generated from it, a test holds ``MLproject`` against it, runs log it and
``detector.json`` stores it. Values are plain scalars, so that all four write them alike.
"""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from dfm_mlflow.errors import ConfigError

_LEVEL = r"(0?\.\d*[1-9]\d*|1|1\.0*)"  # a number in (0, 1]
_NAME = r"[^/\\,:.%\"'\s][^/\\,:%\"']*"

PRESETS: dict[str, dict[str, Any]] = {
    # stride 16 keeps small defects and is deep enough for parts and textures; the mean of the top
    # tenth of positions does not let a small defect drown in the noise of a large good area.
    "default": {"backbone": "resnet18", "layers": "stride:16", "pooling": "2",
                "image_size": "256", "aggregate": "top:0.1"},
    "anomalib-0.3": {"backbone": "resnet18", "layers": "avgpool", "pooling": "1",
                     "image_size": "256", "aggregate": "sum"},
    "anomalib": {"backbone": "resnet18", "layers": "stride:16", "pooling": "2",
                 "image_size": "256", "aggregate": "sum"},
    "accurate": {"backbone": "efficientnet_b5", "layers": "features.6", "pooling": "2",
                 "image_size": "456", "aggregate": "sum"},
}  # fmt: skip
_COMMON = {"resize": "stretch", "pca_level": "0.97", "score": "fre", "normalize": "none"}


def _option(default: Any, help: str, expected: str, pattern: str | None = None, **kw: Any) -> Any:
    """Declare one option: default, help text, and what an error says was expected."""
    extra = {"expected": expected}
    return Field(default, description=help, pattern=pattern, json_schema_extra=extra, **kw)


class Options(BaseModel):
    """Every option of a training run.

    ``auto`` means "as the preset says"; :meth:`resolve` replaces it. Fields are scalars in the
    notation of the command line; the properties give them parsed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    category: str = _option(
        "bottle",
        "Category to train on; 'a,b' is one class-conditional model over both.",
        "names separated by commas, without / : % or quotes",
        rf"^{_NAME}(,{_NAME})*$",
    )
    data: str = _option(
        "auto",
        "auto, mvtec_ad, elpv, a folder with one MVTec-layout folder a category, or a flat "
        "folder of good images.",
        "auto, mvtec_ad, elpv or a folder",
        min_length=1,
    )
    preset: str = _option(
        "default",
        "Published or recommended configuration that 'auto' options follow.",
        ", ".join(PRESETS),
        "^(" + "|".join(map(re.escape, PRESETS)) + ")$",
    )
    backbone: str = _option(
        "auto",
        "A torchvision classification model, or efficientnet_lite0.",
        "a model name such as resnet18",
        r"^\w+$",
    )
    layers: str = _option(
        "auto",
        "Layer whose output is used; stride:16 is the last one at that stride.",
        "layer names separated by commas, or stride:N",
        r"^(auto|stride:\d+|[\w.]+(,[\w.]+)*)$",
    )
    pooling: str = _option(
        "auto",
        "Average-pooling kernel on the feature map.",
        "a whole number of at least 1",
        r"^(auto|[1-9]\d{0,2})$",
    )
    image_size: str = _option(
        "auto",
        "Network input, N or HxW in pixels.",
        "N or HxW, each 16 to 4096",
        r"^(auto|[1-9]\d{1,3}(x[1-9]\d{1,3})?)$",
    )
    resize: str = _option(
        "auto",
        "stretch to the input size, or keep the aspect ratio and pad.",
        "auto, stretch or keep",
        "^(auto|stretch|keep)$",
    )
    pca_level: str = _option(
        "auto",
        "Share of the variance that the subspace keeps.",
        "a number in (0, 1]",
        rf"^(auto|{_LEVEL})$",
    )
    score: str = _option(
        "auto",
        "Anomaly score: feature reconstruction error or negative log-likelihood.",
        "auto, fre or nll",
        "^(auto|fre|nll)$",
    )
    aggregate: str = _option(
        "auto",
        "How the FRE map becomes one number: sum, max, or top:q, the mean of the largest "
        "share q of positions.",
        "auto, sum, max or top:q with q in (0, 1]",
        rf"^(auto|sum|max|top:{_LEVEL})$",
    )
    normalize: str = _option(
        "auto",
        "Division of the map by what held-out good images show.",
        "auto, none, global or position",
        "^(auto|none|global|position)$",
    )
    weights: str = _option(
        "imagenet",
        "imagenet, random, or a .safetensors/.pth state dict.",
        "imagenet, random or a path that ends in .safetensors or .pth",
        r"^(imagenet|random|.+\.(safetensors|pth|pt))$",
    )
    fpr: float = _option(
        0.01,
        "False-positive rate that the threshold promises on good images.",
        "a number in (0, 1)",
        gt=0,
        lt=1,
    )
    roi: str = _option(
        "none", "Mask PNG of the region that matters.", "none or a PNG", min_length=1
    )
    group_by: str = _option(
        "none",
        "Regular expression on the path; images with the same match (burst captures) are "
        "never split between calibration folds.",
        "none or a regular expression",
        min_length=1,
    )
    device: str = _option(
        "auto",
        "auto, cpu, cuda or cuda:N.",
        "auto, cpu, cuda or cuda:N",
        r"^(auto|cpu|cuda(:\d+)?)$",
    )
    precision: str = _option(
        "auto", "Arithmetic of the network.", "auto, fp32, bf16 or fp16", "^(auto|fp32|bf16|fp16)$"
    )
    engine: str = _option("local", "Where the work is done.", "local or spark", "^(local|spark)$")
    cache: bool = _option(True, "Keep extracted features for the next run.", "true or false")
    seed: int = _option(
        42, "Seed of folds and random weights.", "a whole number from 0 to 2^32-1", ge=0, lt=2**32
    )
    registered_model: str = _option(
        "auto", "Registered model name; auto is dfm-<category>, none does not register.",
        "auto, none or a name without / : . % or quotes", r"^[^/:.%\"']+$")  # fmt: skip

    @field_validator("fpr", "seed", mode="before")
    @classmethod
    def _finite_text(cls, value: Any) -> Any:
        return value.strip() if isinstance(value, str) else value

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> "Options":
        """Build options from command-line or JSON values.

        Raises
        ------
        ConfigError
            One sentence that names the option, the value and what was expected.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise ConfigError(_sentence(cls, error)) from None

    # -- parsed views ------------------------------------------------------------------------------

    @property
    def categories(self) -> tuple[str, ...]:
        """Category names in the order given, without repetition."""
        return tuple(dict.fromkeys(self.category.split(",")))

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Layer names."""
        return tuple(self.layers.split(","))

    @property
    def size(self) -> tuple[int, int]:
        """Network input as (height, width) in pixels."""
        height, _, width = self.image_size.partition("x")
        return int(height), int(width or height)

    @property
    def model_name(self) -> str | None:
        """Registered model name, or None when the model is not registered."""
        if self.registered_model == "none":
            return None
        if self.registered_model == "auto":
            return "dfm-" + re.sub(r"[,.]", "-", self.category)
        return self.registered_model

    def resolve(self) -> "Options":
        """Replace every ``auto`` that a preset decides, and refuse what does not go together.

        Raises
        ------
        ConfigError
            For a combination that has no meaning or is not there yet.
        """
        decided = {**_COMMON, **PRESETS[self.preset]}
        backbone = self.backbone if self.backbone != "auto" else decided["backbone"]
        if self.preset == "anomalib" and backbone.startswith("wide_resnet50"):
            decided["pooling"] = "4"  # as published for Wide ResNet-50
        score = self.score if self.score != "auto" else decided["score"]
        if score == "nll":
            decided["aggregate"] = "sum"  # a likelihood is one number, not a map
        update = {k: v for k, v in decided.items() if getattr(self, k) == "auto"}
        resolved = self.model_copy(update=update)
        resolved._check_combination()
        return resolved

    def _check_combination(self) -> None:
        if self.score == "nll" and self.aggregate != "sum":
            raise ConfigError(
                f"aggregate={self.aggregate} needs a map, and score=nll has none: "
                "use aggregate=sum or score=fre."
            )
        if min(self.size) < 16 or max(self.size) > 4096:
            raise ConfigError(
                f"image_size={self.image_size} is outside 16 to 4096 pixels: choose a size between."
            )
        try:
            re.compile(self.group_by)
        except re.error as error:
            raise ConfigError(
                f"group_by={self.group_by!r} is not a regular expression ({error}): correct it or "
                "give none."
            ) from None
        for option, here, remedy in _NOT_YET:
            value = getattr(self, option)
            if here(value):
                raise ConfigError(f"{option}={value} is not supported by this version: {remedy}")


# What later versions bring is refused, never accepted and ignored.
_NOT_YET = (
    ("layers", lambda v: "," in v, "name one layer."),
    ("normalize", lambda v: v in ("global", "position"), "use normalize=none."),
    ("roi", lambda v: v != "none", "crop the images and leave roi=none."),
    ("engine", lambda v: v == "spark", "use engine=local."),
    ("data", lambda v: v.startswith("s3://"), "copy the images to a local folder and name it."),
    ("data", lambda v: v.endswith(".csv"), "lay the images out as folders and name the folder."),
    ("weights", lambda v: v.startswith("s3://"), "copy the file to a local folder and name it."),
)


def _sentence(model: type[Options], error: ValidationError) -> str:
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else "options"
    if first["type"] == "extra_forbidden":
        return f"There is no option {name!r}: the options are {', '.join(model.model_fields)}."
    field = model.model_fields[name]
    expected = (field.json_schema_extra or {})["expected"]  # type: ignore[index,call-overload]
    return f"{name}={first['input']!r} is not valid: give {expected}."
