"""Which options of a training run go together."""

import re
from typing import Any

from dfm_mlflow.config.presets import SECOND, is_transformer
from dfm_mlflow.errors import ConfigError

# Options that may be given once for all layers, or for each.
BY_LAYER = ("subspace", "pca_level", "aggregate", "normalize")


def check_combination(options: Any) -> None:
    """Refuse resolved options that do not go together."""
    if options.score == "nll" and options.aggregate != "sum":
        raise ConfigError(
            f"aggregate={options.aggregate} needs a map, and score=nll has none: "
            "use aggregate=sum or score=fre."
        )
    if options.pooling.count(",") not in (0, options.layers.count(",")):
        raise ConfigError(
            f"pooling={options.pooling} has entries for {options.pooling.count(',') + 1} layers, "
            f"and layers={options.layers} names {len(options.layer_names)}: give one for all, or "
            "one for each."
        )
    _check_kinds(options)
    if min(options.size) < 16 or max(options.size) > 4096:
        raise ConfigError(
            f"image_size={options.image_size} is outside 16 to 4096 pixels: choose a size between."
        )
    _check_tile(options)
    if options.max_megapixels > 50 and not options.tile_size:
        raise ConfigError(
            f"max_megapixels={options.max_megapixels} needs tile: give tile=512 and the "
            "image_size that large pictures are brought to, or scale them down."
        )
    if options.real_range and not options.real_range[0] < options.real_range[1]:
        raise ConfigError(
            f"float_range={options.float_range} does not rise: give the value of black, then that "
            "of white."
        )
    if options.retest_rate is not None and not options.fpr < options.retest_rate < 1:
        raise ConfigError(
            f"retest={options.retest} is not above fpr={options.fpr}: pictures between the two "
            "rates are looked at again, so give a larger one."
        )
    if (options.cost_escape == "none") != (options.cost_overkill == "none"):
        raise ConfigError(
            f"cost_escape={options.cost_escape} and cost_overkill={options.cost_overkill} go "
            "together: give both, in one unit, or neither."
        )
    try:
        re.compile(options.group_by)
    except re.error as error:
        raise ConfigError(
            f"group_by={options.group_by!r} is not a regular expression ({error}): correct it or "
            "give none."
        ) from None


def _check_kinds(options: Any) -> None:
    for name in BY_LAYER:
        given = getattr(options, name)
        if given.count(",") not in (0, options.layers.count(",")):
            raise ConfigError(
                f"{name}={given} has entries for {given.count(',') + 1} layers, and "
                f"layers={options.layers} names {len(options.layer_names)}: give one for all, or "
                "one for each."
            )
    seconds = [layer.startswith(SECOND) for layer in options.layer_names]
    if any(seconds) != ("+" in options.backbone) or all(seconds):
        raise ConfigError(
            f"layers={options.layers} do not go with backbone={options.backbone}: two backbones "
            f"need a layer of each, and those of the second begin with {SECOND}, such as "
            f"{SECOND}stride:16."
        )
    rules = _each(options, options.pooling)
    kinds = _each(options, options.subspace)
    if any(a and b and a != b for a, b in zip(rules, kinds, strict=True)):
        raise ConfigError(
            f"subspace={options.subspace} and pooling={options.pooling} join different numbers of "
            "maps of a layer: join as many, or give one for all of them."
        )


def _check_tile(options: Any) -> None:
    side = options.tile_size
    if side is None:
        return
    if is_transformer(options.backbone):  # whose patch the network knows
        if min(options.size) < side:
            raise ConfigError(
                f"tile={side} is larger than image_size={options.image_size}: give a smaller one."
            )
    elif side % 128 or side > 1024:
        raise ConfigError(
            f"tile={side} is not a multiple of 128 up to 1024: give {max(128, side // 128 * 128)} "
            f"or {min(1024, (side // 128 + 1) * 128)}."
        )
    elif min(options.size) < side or any(s % 32 for s in options.size):
        raise ConfigError(
            f"tile={options.tile} does not cut image_size={options.image_size}: give sizes that "
            "are multiples of 32 and at least the tile's."
        )


def _each(options: Any, text: str) -> list[int]:
    """Joints in the entry of each layer, where one may stand for all."""
    joints = [entry.count("+") for entry in text.split(",")]
    return joints * len(options.layer_names) if len(joints) == 1 else joints
