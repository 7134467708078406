"""The one strict model of every option of a training run, and its presets.

The command line is generated from it, a test holds ``MLproject`` against it, runs log it and
``detector.json`` stores it. Values are plain scalars, so that all four write them alike.
"""

import re
from typing import TypeVar

from dfm_mlflow.config.base import (
    BAD,
    CATEGORIES,
    FOLDERS,
    GOOD,
    MASKS,
    NAME,
    NAMES,
    StrictOptions,
    option,
)
from dfm_mlflow.config.combination import BY_LAYER, check_combination
from dfm_mlflow.config.presets import PRESETS, SECOND, decided

_T = TypeVar("_T")
_REAL = r"-?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?"
_LEVEL = r"(0?\.\d*[1-9]\d*|1|1\.0*)"  # a number in (0, 1]
_RULE = r"(stride:)?[1-9]\d{0,2}"
_SCALES = rf"{_RULE}(\+{_RULE}){{0,3}}"
_LAYER = rf"({SECOND})?(stride:[1-9]\d*|depth:[\d.]+-[\d.]+(:l2)?|[\w.]+(-\d+)?(:l2)?)"
_ONE_NUMBER, _DIVISOR = rf"(sum|max|top:{_LEVEL})", "(none|global|position|blend)"
_NETWORK = r"(\w+|timm:[\w.-]+)"
_KINDS = r"(picture|cell)(\+(picture|cell)){0,3}"


def _rule(text: str) -> int | str:
    return text if text.startswith("stride:") else int(text)


def _each(layers: tuple[str, ...], entries: list[_T]) -> list[_T]:
    """Give the entries of all layers, where one may stand for all."""
    return entries * len(layers) if len(entries) == 1 else entries


class Options(StrictOptions):
    """Every option of a training run.

    ``auto`` means "as the preset says"; :meth:`resolve` replaces it,
    but for what only the pictures can decide. Fields are scalars in the
    notation of the command line; the properties give them parsed.
    """

    category: str = option(
        "auto",
        "Category to train on; 'a,b' is one class-conditional model over both; auto is the only "
        "one of the data, such as the name of its folder.",
        "auto, or names separated by commas, without / : % or quotes",
        CATEGORIES,
    )
    data: str = option(
        "auto",
        "auto, mvtec_ad, elpv, a folder or s3:// prefix (of one category, with train/ and test/, "
        "good and bad side by side, or good pictures alone; or of several such folders), or a "
        "manifest .csv (path,split,label,mask,class,group,part).",
        "auto, mvtec_ad, elpv, a folder, an s3:// prefix or a .csv",
        min_length=1,
    )
    good: str = option("auto", GOOD, FOLDERS, min_length=1)
    bad: str = option("auto", BAD, FOLDERS, min_length=1)
    masks: str = option("auto", MASKS, FOLDERS, min_length=1)
    preset: str = option(
        "default",
        "Published or recommended configuration that 'auto' options follow.",
        ", ".join(PRESETS),
        "^(" + "|".join(map(re.escape, PRESETS)) + ")$",
    )
    backbone: str = option(
        "auto",
        "A torchvision classification model, efficientnet_lite0, or timm:<name>; a second one is "
        "joined by +, and its layers begin with 2:.",
        "a model name such as resnet18 or timm:resnet18.a1_in1k, or two joined by +",
        rf"^{_NETWORK}(\+{_NETWORK})?$",
    )
    layers: str = option(
        "auto",
        "Layers whose outputs are used, separated by commas; stride:N is the last one at that "
        "stride, and of a transformer depth:A-B the mean of the blocks in that share of its depth.",
        "layer names, stride:N or depth:A-B, separated by commas",
        rf"^{_LAYER}(,{_LAYER})*$",
    )
    pooling: str = option(
        "auto",
        "Average-pooling kernel on the feature maps; stride:N pools to cells of N pixels; scales "
        "are joined by +, and differ between layers where they are separated by commas.",
        "whole numbers of at least 1 or stride:N, joined by +, once for all layers or for each",
        rf"^(auto|{_SCALES}(,{_SCALES})*)$",
    )
    image_size: str = option(
        "auto",
        "Network input, N or HxW in pixels.",
        "N or HxW, each 16 to 4096",
        r"^(auto|[1-9]\d{1,3}(x[1-9]\d{1,3})?)$",
    )
    resize: str = option(
        "auto",
        "stretch to the input size, or keep the aspect ratio and pad.",
        "auto, stretch or keep",
        "^(auto|stretch|keep)$",
    )
    subspace: str = option(
        "auto",
        "What a row of a subspace is: a picture, or each of its cells; two maps of one layer are "
        "joined by +, and layers separated by commas, as in pooling.",
        "picture or cell, joined by +, once for all layers or for each",
        rf"^(auto|{_KINDS}(,{_KINDS})*)$",
    )
    pca_level: str = option(
        "auto",
        "Share of the variance that the subspace keeps, once for all layers or for each.",
        "a number in (0, 1], or one for each layer, separated by commas",
        rf"^(auto|{_LEVEL}(,{_LEVEL})*)$",
    )
    score: str = option(
        "auto",
        "Anomaly score: feature reconstruction error or negative log-likelihood.",
        "auto, fre or nll",
        "^(auto|fre|nll)$",
    )
    aggregate: str = option(
        "auto",
        "How the FRE map becomes one number: sum, max, or top:q, the mean of the largest "
        "share q of positions; once for all layers or for each.",
        "auto, sum, max or top:q with q in (0, 1], once or for each layer, separated by commas",
        rf"^(auto|{_ONE_NUMBER}(,{_ONE_NUMBER})*)$",
    )
    blur: str = option(
        "auto",
        "Side of the square of cells that the anomaly map is averaged over before it becomes one "
        "number.",
        "none, or 3, 5 or 7",
        "^(auto|none|3|5|7)$",
    )
    normalize: str = option(
        "auto",
        "Division of each map by what held-out good pictures show, on average (global), at each "
        "position, or half way between (blend, the geometric mean of the two); once for all layers "
        "or for each.",
        "auto, none, global, position or blend, once or for each layer, separated by commas",
        rf"^(auto|{_DIVISOR}(,{_DIVISOR})*)$",
    )
    augment: str = option(
        "auto",
        "Turned and mirrored copies of training pictures that join the fit; auto keeps those that "
        "clearly lower the held-out residual of untouched good pictures.",
        "auto, none, flips, rotations or all",
        "^(auto|none|flips|rotations|all)$",
    )
    weights: str = option(
        "imagenet",
        "imagenet, random, or a .safetensors/.pth state dict, local or s3://.",
        "imagenet, random or a path that ends in .safetensors or .pth; two joined by + for two "
        "backbones",
        r"^((imagenet|random|.+\.(safetensors|pth|pt))(\+(imagenet|random))?)$",
    )
    fpr: float = option(
        0.01,
        "Target false-positive rate, which the threshold promises on good pictures.",
        "a number in (0, 1)",
        gt=0,
        lt=1,
    )
    tail: str = option(
        "empirical",
        "P-values beyond the largest held-out score: empirical stops at 1/(n+1), gpd extends them "
        "tenfold by a generalised Pareto tail.",
        "empirical or gpd",
        "^(empirical|gpd)$",
    )
    contamination: float = option(
        0.0,
        "Declared share of bad pictures among the good ones: those with the highest held-out "
        "scores are left out of the calibration, never of the fit; up to that share more good "
        "pictures are flagged.",
        "a number from 0 to below 0.5",
        ge=0,
        lt=0.5,
    )
    retest: str = option(
        "none",
        "Second, larger target false-positive rate: pictures between the two are to be looked at "
        "again.",
        "none or a number in (0, 1) above fpr",
        r"^(none|0?\.\d*[1-9]\d*)$",
    )
    cost_escape: str = option(
        "none",
        "What a defective piece that passes costs, in any unit: with cost_overkill the report "
        "names the cheapest false-positive rate.",
        "none or a number of at least 0",
        r"^(none|\d+(\.\d*)?|\.\d+)$",
    )
    cost_overkill: str = option(
        "none",
        "What a good piece that is flagged costs, in the same unit.",
        "none or a number of at least 0",
        r"^(none|\d+(\.\d*)?|\.\d+)$",
    )
    defect_rate: float = option(
        0.01,
        "Share of the pieces that is expected to be defective, for these costs.",
        "a number in (0, 1)",
        gt=0,
        lt=1,
    )
    roi: str = option(
        "none",
        "Mask PNG whose nonzero pixels are the region that matters.",
        "none or a PNG",
        min_length=1,
    )
    tile: str = option(
        "none",
        "Let the network see overlapping tiles of N pixels of a large image_size.",
        "none or a multiple of 128 up to 1024, for a transformer of its patch",
        r"^(none|[1-9]\d{1,3})$",
    )
    max_megapixels: int = option(
        50,
        "Limit of a picture in millions of pixels; more than 50 needs tile.",
        "a whole number from 50 to 1000",
        ge=50,
        le=1000,
    )
    bits: str = option(
        "auto",
        "Bits that data in 16-bit words fill; auto looks at the training pictures' largest value "
        "and lowest bits.",
        "auto, 8, 10, 12, 14 or 16",
        "^(auto|8|10|12|14|16)$",
    )
    float_range: str = option(
        "none",
        "Black and white of floating-point TIFFs, such as 0:1; without, they are refused.",
        "none or LOW:HIGH, two numbers",
        rf"^(none|{_REAL}:{_REAL})$",
    )
    group_by: str = option(
        "none",
        "Regular expression on the path; pictures with the same match (burst captures) are "
        "never split between calibration folds. Or a .csv with the columns path and group.",
        "none, a regular expression or a .csv",
        min_length=1,
    )
    exclude: str = option(
        "none",
        "Text file, or .csv with a column path or sha256, of training pictures that are left out "
        "of fitting and calibration.",
        "none or a file",
        min_length=1,
    )
    test_copies: str = option(
        "leave_out",
        "Test pictures that are in the training set too, or have two labels: leave them out of the "
        "metrics, or count them.",
        "leave_out or count",
        "^(leave_out|count)$",
    )
    device: str = option(
        "auto",
        "auto, cpu, cuda or cuda:N.",
        "auto, cpu, cuda or cuda:N",
        r"^(auto|cpu|cuda(:\d+)?)$",
    )
    precision: str = option(
        "auto",
        "Arithmetic of the network; auto is the fastest that keeps held-out scores.",
        "auto, fp32, bf16 or fp16",
        "^(auto|fp32|bf16|fp16)$",
    )
    engine: str = option(
        "local", "This machine, or Spark's executors.", "local or spark", "^(local|spark)$"
    )
    cache: bool = option(True, "Keep extracted features for the next run.", "true or false")
    seed: int = option(
        42, "Seed of folds and random weights.", "a whole number from 0 to 2^32-1", ge=0, lt=2**32
    )
    registered_model: str = option(
        "auto",
        "Registered model name; auto is dfm-<category>, none does not register.",
        NAMES,
        NAME,
    )

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
    def pooling_rules(self) -> tuple[tuple[int | str, ...], ...]:
        """Scales of each layer: kernels of the pooling, or rules ``stride:N``."""
        entries = [tuple(map(_rule, entry.split("+"))) for entry in self.pooling.split(",")]
        both = zip(_each(self.layer_names, entries), self._kinds, strict=True)
        return tuple(own * len(of) if len(own) == 1 else own for own, of in both)

    @property
    def rows_are(self) -> tuple[str, ...]:
        """What a row of the subspace of each feature map is: ``picture`` or ``cell``."""
        both = zip(self.pooling_rules, self._kinds, strict=True)
        return tuple(k for own, of in both for k in (of * len(own) if len(of) == 1 else of))

    def levels_of(self, n: int) -> tuple[float, ...]:
        """Share of the variance that the subspace of each of `n` feature maps keeps."""
        return tuple(float(level) for level in self.of_maps("pca_level", n))

    def of_maps(self, name: str, n: int) -> tuple[str, ...]:
        """What an option that layers may differ in is for each feature map.

        Parameters
        ----------
        name : {"pca_level", "aggregate", "normalize"}
        n : int
            Feature maps.

        Returns
        -------
        tuple of str
        """
        given = getattr(self, name).split(",")
        if len(given) == 1:
            return tuple(given * n)
        both = zip(self.pooling_rules, given, strict=True)
        return tuple(value for own, value in both for _ in own)

    @property
    def fewest_pictures(self) -> int:
        """Good pictures of a class that a fit needs: 1 where parts of it can be held out."""
        return 1 if "cell" in self.rows_are else 2

    @property
    def _kinds(self) -> list[tuple[str, ...]]:
        entries = [tuple(entry.split("+")) for entry in self.subspace.split(",")]
        return _each(self.layer_names, entries)

    @property
    def network_size(self) -> tuple[int, int]:
        """What the network sees at once as (height, width) in pixels: a tile, or the input."""
        return (self.tile_size, self.tile_size) if self.tile_size else self.size

    @property
    def blur_cells(self) -> int | None:
        """Side of the square that maps are averaged over in cells, or None."""
        return None if self.blur == "none" else int(self.blur)

    @property
    def feature_maps(self) -> tuple[tuple[str, int | str], ...]:
        """Layer and pooling rule of each feature map, a layer's scales one after another."""
        both = zip(self.layer_names, self.pooling_rules, strict=True)
        return tuple((name, rule) for name, rules in both for rule in rules)

    @property
    def retest_rate(self) -> float | None:
        """Second false-positive rate, or None where there is no band to look at again."""
        return None if self.retest == "none" else float(self.retest)

    @property
    def costs(self) -> tuple[float, float, float] | None:
        """Costs of an escape and of an overkill and the defect rate; None where none are given."""
        if self.cost_escape == "none":
            return None
        return float(self.cost_escape), float(self.cost_overkill), self.defect_rate

    @property
    def tile_size(self) -> int | None:
        """Side of a tile in pixels, or None where the network sees the whole picture."""
        return None if self.tile == "none" else int(self.tile)

    @property
    def max_pixels(self) -> int:
        """Pixels that a picture may have."""
        return self.max_megapixels * 1_000_000

    @property
    def stated_bits(self) -> int | None:
        """Bits that data in 16-bit words fill, or None where they are looked for."""
        return None if self.bits == "auto" else int(self.bits)

    @property
    def real_range(self) -> tuple[float, float] | None:
        """Black and white of floating-point pictures, or None where they are refused."""
        if self.float_range == "none":
            return None
        low, high = map(float, self.float_range.split(":"))
        return low, high

    @property
    def model_name(self) -> str | None:
        """Registered model name, or None when the model is not registered."""
        if self.registered_model == "none":
            return None
        if self.registered_model == "auto":
            return "dfm-" + re.sub(r"[/:.%\"',]", "-", self.category)
        return self.registered_model

    def check(self) -> None:
        """Refuse what :meth:`resolve` refuses.

        Raises
        ------
        ConfigError
            For a combination that has no meaning.
        """
        self.resolve()

    def resolve(self) -> "Options":
        """Replace every ``auto`` that a preset decides, and refuse what does not go together.

        Raises
        ------
        ConfigError
            For a combination that has no meaning or is not there yet.
        """
        values = decided(self.preset, self.backbone)
        for name in ("pooling", *BY_LAYER):
            if self.layers != "auto" and self.layers.count(",") != values["layers"].count(","):
                values[name] = values[name].split(",")[0]  # that of the first layer
        score = self.score if self.score != "auto" else values["score"]
        if score == "nll":
            values["aggregate"] = "sum"  # a likelihood is one number, not a map
        update = {k: v for k, v in values.items() if getattr(self, k) == "auto"}
        resolved = self.model_copy(update=update)
        check_combination(resolved)
        return resolved
