"""The one strict model of every option.

The command line is generated from it, a test holds ``MLproject`` against it, runs log it and
``detector.json`` stores it. Values are plain scalars, so that all four write them alike.
"""

import itertools
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, field_validator

from dfm_mlflow.errors import ConfigError

if TYPE_CHECKING:
    from typing_extensions import Self

_LEVEL = r"(0?\.\d*[1-9]\d*|1|1\.0*)"  # a number in (0, 1]
_NAME = r"[^/\\,:.%\"'\s][^/\\,:%\"']*"

PRESETS: dict[str, dict[str, Any]] = {
    # Why, without looking at a test label: stride 8 sees small defects, stride 16 parts and faint
    # large ones; cells of 32 pixels on both make one grid and average the noise of single positions
    # away; dividing by what held-out good pictures show there weighs layers and positions alike;
    # the mean of the top twentieth keeps a defect of a few cells from drowning in a good rest.
    "default": {"backbone": "resnet18", "layers": "stride:8,stride:16", "pooling": "stride:32",
                "image_size": "256", "aggregate": "top:0.05", "normalize": "position"},
    "anomalib-0.3": {"backbone": "resnet18", "layers": "avgpool", "pooling": "1",
                     "image_size": "256", "aggregate": "sum"},
    "anomalib": {"backbone": "resnet18", "layers": "stride:16", "pooling": "2",
                 "image_size": "256", "aggregate": "sum"},
    "accurate": {"backbone": "efficientnet_b5", "layers": "features.6", "pooling": "2",
                 "image_size": "456", "aggregate": "sum"},
}  # fmt: skip
_COMMON = {"resize": "stretch", "pca_level": "0.97", "score": "fre", "normalize": "none"}
_LAYER = r"(stride:[1-9]\d*|[\w.]+)"


def _option(default: Any, help: str, expected: str, pattern: str | None = None, **kw: Any) -> Any:
    """Declare one option: default, help text, and what an error says was expected."""
    extra = {"expected": expected}
    return Field(default, description=help, pattern=pattern, json_schema_extra=extra, **kw)


class StrictOptions(BaseModel):
    """Options of one verb: scalars in the notation of the command line."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> "Self":
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


class EvaluateOptions(StrictOptions):
    """Every option of an evaluation."""

    model: str = _option(
        ..., "Any MLflow model URI of a dfm model, such as models:/dfm-bottle@production.",
        "a model URI", min_length=1)  # fmt: skip
    data: str = _option(
        "auto",
        "Pictures as for train, or a flat folder of unlabelled ones; auto is the model's own data.",
        "auto, mvtec_ad, elpv or a folder",
        min_length=1,
    )
    category: str = _option(
        "auto",
        "Category of the pictures; auto is that of the model.",
        "auto, or names separated by commas, without / : % or quotes",
        rf"^{_NAME}(,{_NAME})*$",
    )


class ScoreOptions(StrictOptions):
    """Every option of scoring without a server."""

    model: str = _option(
        ..., "Any MLflow model URI of a dfm model, such as models:/dfm-bottle@production.",
        "a model URI", min_length=1)  # fmt: skip
    images: str = _option(
        ...,
        "Pictures: a folder or s3:// prefix with all folders below it, or a pattern such as "
        "'s3://bucket/2025/**/*.jpg'.",
        "a folder, an s3:// prefix or a pattern",
        min_length=1,
    )
    output: str = _option(
        ...,
        "Parquet, local or s3://: one file, or with a slash at the end and with engine=spark a "
        "folder of parts, with which a broken run goes on.",
        "a name that ends in .parquet or /",
        r"^.*(\.parquet|[^/:]/)$",
    )
    engine: str = _option("local", "Where the work is done.", "local or spark", "^(local|spark)$")


class CompareOptions(StrictOptions):
    """Every option of a comparison of runs."""

    runs: tuple[str, ...] = _option(
        ...,
        "Run ids, run names or model URIs; the others are held against the first.",
        "at least two runs",
        min_length=2,
    )
    confidence: float = _option(
        0.95, "That all intervals hold at once.", "a number from 0.5 to below 1", ge=0.5, lt=1
    )
    min_images: int = _option(
        5, "Good, and defective, pictures that a comparison needs.",
        "a whole number of at least 1", ge=1)  # fmt: skip
    output: str = _option(
        "none", "Write the table here, too, .csv or .md.", "none or a name with .csv or .md",
        r"^(none|.+\.(csv|md))$")  # fmt: skip


class PromoteOptions(StrictOptions):
    """Every option of a promotion."""

    model: str = _option(
        ..., "Registered model, such as dfm-bottle.", "a registered model's name, without / or :",
        r"^[^/:]+$")  # fmt: skip
    version: str = _option(..., "Version to promote.", "the number of a version", r"^[1-9]\d{0,9}$")
    to: str = _option(
        ...,
        "Alias to set, such as staging or production; these two set the stage of that name too.",
        "an alias of letters, digits, _ and -, other than latest and v1, v2, ...",
        r"^[\w-]{1,200}$",
    )
    data: str = _option(
        "auto",
        "Labelled pictures to compare on, as for train; auto is the version's own data.",
        "auto, mvtec_ad, elpv, a folder, an s3:// prefix or a .csv",
        min_length=1,
    )
    reason: str = _option("none", "Why, for the record; force needs one.", "none or a text", r"\S")
    force: bool = _option(
        False, "Promote past refusals by metrics, comparison, speed or size.", "true or false"
    )
    dry_run: bool = _option(False, "Run every gate and move nothing.", "true or false")
    min_auroc: float = _option(
        0.8, "Least image AUROC on the version's test pictures.", "a number from 0 to 1", ge=0, le=1
    )
    max_fpr: float = _option(
        0.1,
        "Without test pictures: most false positives that the held-out good pictures promise.",
        "a number in (0, 1]",
        gt=0,
        le=1,
    )
    margin: float = _option(
        0.02,
        "AUROC that the version may lose against the one that holds the alias.",
        "a number from 0 to 1",
        ge=0,
        le=1,
    )
    min_images: int = _option(
        5, "Good, and defective, pictures that a comparison needs.",
        "a whole number of at least 1", ge=1)  # fmt: skip
    max_slowdown: float = _option(
        1.5, "Time for a picture, as a multiple of the other version's.",
        "a number above 0", gt=0, allow_inf_nan=False)  # fmt: skip
    max_growth: float = _option(
        1.5, "Bytes of the model, as a multiple of the other version's.",
        "a number above 0", gt=0, allow_inf_nan=False)  # fmt: skip

    @field_validator("to")
    @classmethod
    def _not_reserved(cls, value: str) -> str:
        if re.fullmatch(r"(?i)latest|v\d+", value):
            raise ValueError("reserved by MLflow")
        return value

    def check(self) -> None:
        """Refuse what does not go together.

        Raises
        ------
        ConfigError
            For force without a reason.
        """
        if self.force and self.reason.strip().lower() == "none":
            raise ConfigError(
                "force=true needs a reason for the record: give one, such as "
                "reason='the new camera has no test pictures yet'."
            )


class RecalibrateOptions(StrictOptions):
    """Every option of a recalibration."""

    model: str = _option(
        ..., "Any MLflow model URI of a dfm model, such as models:/dfm-bottle@production.",
        "a model URI", min_length=1)  # fmt: skip
    images: str = _option(
        ...,
        "New good pictures that the model was never fitted to: a flat folder, or as for train.",
        "a folder, an s3:// prefix or a .csv",
        min_length=1,
    )
    category: str = _option(
        "auto",
        "Class that the pictures belong to; auto is the only one.",
        "auto, or one name without / : , % or quotes",
        rf"^{_NAME}$",
    )
    registered_model: str = _option(
        "auto", "Registered model name; auto is that of the model, none does not register.",
        "auto, none or a name without / : . % or quotes", r"^[^/:.%\"']+$")  # fmt: skip


class Options(StrictOptions):
    """Every option of a training run.

    ``auto`` means "as the preset says"; :meth:`resolve` replaces it. Fields are scalars in the
    notation of the command line; the properties give them parsed.
    """

    category: str = _option(
        "bottle",
        "Category to train on; 'a,b' is one class-conditional model over both.",
        "names separated by commas, without / : % or quotes",
        rf"^{_NAME}(,{_NAME})*$",
    )
    data: str = _option(
        "auto",
        "auto, mvtec_ad, elpv, a folder or s3:// prefix with one MVTec-layout folder a category or "
        "of good images alone, or a manifest .csv (path,split,label,mask,class,group).",
        "auto, mvtec_ad, elpv, a folder, an s3:// prefix or a .csv",
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
        "A torchvision classification model, efficientnet_lite0, or timm:<name>.",
        "a model name such as resnet18 or timm:resnet18.a1_in1k",
        r"^(\w+|timm:[\w.-]+)$",
    )
    layers: str = _option(
        "auto",
        "Layers whose outputs are used, separated by commas; stride:N is the last one at that "
        "stride.",
        "layer names or stride:N, separated by commas",
        rf"^{_LAYER}(,{_LAYER})*$",
    )
    pooling: str = _option(
        "auto",
        "Average-pooling kernel on the feature maps; stride:N pools each to cells of N pixels.",
        "a whole number of at least 1, or stride:N",
        r"^(auto|(stride:)?[1-9]\d{0,2})$",
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
        "Division of each layer's map by what held-out good images show, on average (global) or "
        "at each position.",
        "auto, none, global or position",
        "^(auto|none|global|position)$",
    )
    weights: str = _option(
        "imagenet",
        "imagenet, random, or a .safetensors/.pth state dict, local or s3://.",
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
    tail: str = _option(
        "empirical",
        "P-values beyond the largest held-out score: empirical stops at 1/(n+1), gpd extends them "
        "tenfold by a generalised Pareto tail.",
        "empirical or gpd",
        "^(empirical|gpd)$",
    )
    retest: str = _option(
        "none",
        "Second, larger false-positive rate: pictures between the two are to be looked at again.",
        "none or a number in (0, 1) above fpr",
        r"^(none|0?\.\d*[1-9]\d*)$",
    )
    roi: str = _option(
        "none",
        "Mask PNG whose nonzero pixels are the region that matters.",
        "none or a PNG",
        min_length=1,
    )
    tile: str = _option(
        "none",
        "Let the network see overlapping tiles of N pixels of a large image_size.",
        "none or a multiple of 128 up to 1024",
        "^(none|128|256|384|512|640|768|896|1024)$",
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
    def pooling_rule(self) -> int | str:
        """Kernel of the pooling, or the rule ``stride:N``."""
        return self.pooling if self.pooling.startswith("stride:") else int(self.pooling)

    @property
    def retest_rate(self) -> float | None:
        """Second false-positive rate, or None where there is no band to look at again."""
        return None if self.retest == "none" else float(self.retest)

    @property
    def tile_size(self) -> int | None:
        """Side of a tile in pixels, or None where the network sees the whole picture."""
        return None if self.tile == "none" else int(self.tile)

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
        if self.tile_size and (min(self.size) < self.tile_size or any(s % 32 for s in self.size)):
            raise ConfigError(
                f"tile={self.tile} does not cut image_size={self.image_size}: give sizes that are "
                "multiples of 32 and at least the tile's."
            )
        if self.retest_rate is not None and not self.fpr < self.retest_rate < 1:
            raise ConfigError(
                f"retest={self.retest} is not above fpr={self.fpr}: pictures between the two rates "
                "are looked at again, so give a larger one."
            )
        try:
            re.compile(self.group_by)
        except re.error as error:
            raise ConfigError(
                f"group_by={self.group_by!r} is not a regular expression ({error}): correct it or "
                "give none."
            ) from None


class _Sweep(StrictOptions):
    """What :class:`SweepOptions` knows beside its fields."""

    @field_validator("fpr", "seed", mode="before", check_fields=False)
    @classmethod
    def _finite_text(cls, value: Any) -> Any:
        return value.strip() if isinstance(value, str) else value

    @property
    def category_names(self) -> tuple[str, ...]:
        """Categories that get runs of their own."""
        given = self.category if self.categories == "auto" else self.categories
        return tuple(dict.fromkeys(given.split(",")))

    def configurations(self) -> list[dict[str, str]]:
        """Every combination of the grid's values, as options that differ.

        Raises
        ------
        ConfigError
            For a grid that names options that no sweep can have, or one twice.
        """
        axes: dict[str, list[str]] = {}
        for part in [] if self.grid == "none" else self.grid.strip(";").split(";"):
            name, _, values = part.strip().partition("=")
            if name not in Options.model_fields or name in _NOT_SWEPT or name in axes:
                known = ", ".join(f for f in Options.model_fields if f not in _NOT_SWEPT)
                raise ConfigError(
                    f"grid has {name!r}, which is no option to sweep or stands there twice: "
                    f"give each of {known} at most once."
                )
            # values that hold commas themselves, such as layers, are separated by |
            axes[name] = [v.strip() for v in values.split("|" if "|" in values else ",")]
        return [dict(zip(axes, v, strict=True)) for v in itertools.product(*axes.values())]

    def options(self, category: str, configuration: Mapping[str, str]) -> Options:
        """Give the options of one child, as for a training run.

        Raises
        ------
        ConfigError
            For values that no training run could have.
        """
        given = {name: getattr(self, name) for name in Options.model_fields}
        return Options.parse(given | {"category": category} | dict(configuration))

    def check(self) -> None:
        """Refuse what cannot work for any category.

        Raises
        ------
        ConfigError
            For a grid, or one of its configurations, that has no meaning.
        """
        if self.registered_model not in ("auto", "none"):
            raise ConfigError(
                f"registered_model={self.registered_model} has no meaning in a sweep, which "
                "registers nothing: leave it out, and train the best configuration."
            )
        refuse_spark(self.engine, "sweep")
        for configuration in self.configurations():
            try:
                self.options(self.category_names[0], configuration).resolve()
            except ConfigError as error:
                named = ", ".join(f"{k}={v}" for k, v in configuration.items()) or "the sweep"
                raise ConfigError(f"With {named}: {error}") from None


_NOT_SWEPT = ("category", "data", "registered_model", "engine", "cache")
SweepOptions = create_model(
    "SweepOptions",
    __base__=_Sweep,
    __doc__="Every option of a sweep: those of a training run, the categories and the grid.",
    categories=(str, _option(
        "auto",
        "Categories, each of which gets models of its own; auto is category.",
        "auto, or names separated by commas, without / : % or quotes",
        rf"^{_NAME}(,{_NAME})*$",
    )),
    grid=(str, _option(
        "none",
        "Options with their values, as pca_level=0.9,0.97;score=fre,nll; values that hold commas "
        "themselves are separated by |.",
        "none, or option=value,value;option=value",
        r"^(none|\w+=[^;=]+(;\w+=[^;=]+)*;?)$",
    )),
    **{name: (field.annotation, field) for name, field in Options.model_fields.items()},
)  # fmt: skip


def refuse_spark(engine: str, verb: str) -> None:
    """Refuse what a verb that fits many models on one machine does not know.

    Raises
    ------
    ConfigError
        For ``spark``.
    """
    if engine == "spark":
        raise ConfigError(
            f"engine=spark is not known to {verb}: use engine=local, on some of the pictures, and "
            "train on all of them with what it found."
        )


def _sentence(model: type[StrictOptions], error: ValidationError) -> str:
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else "options"
    if first["type"] == "extra_forbidden":
        return f"There is no option {name!r}: the options are {', '.join(model.model_fields)}."
    field = model.model_fields[name]
    expected = (field.json_schema_extra or {})["expected"]  # type: ignore[index,call-overload]
    return f"{name}={first['input']!r} is not valid: give {expected}."
