"""Values that a shell completes: backbones, presets, registered models, files."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class

from dfm_mlflow.config import PRESETS

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]

# Classification models of torchvision; a test compares them  with its own list.
_NAMES = """
alexnet convnext_base convnext_large convnext_small convnext_tiny densenet121 densenet161
densenet169 densenet201 efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3
efficientnet_b4 efficientnet_b5 efficientnet_b6 efficientnet_b7 efficientnet_lite0
efficientnet_v2_l efficientnet_v2_m efficientnet_v2_s googlenet inception_v3 mnasnet0_5
mnasnet0_75 mnasnet1_0 mnasnet1_3 mobilenet_v2 mobilenet_v3_large mobilenet_v3_small regnet_x_16gf
regnet_x_1_6gf regnet_x_32gf regnet_x_3_2gf regnet_x_400mf regnet_x_800mf regnet_x_8gf
regnet_y_128gf regnet_y_16gf regnet_y_1_6gf regnet_y_32gf regnet_y_3_2gf regnet_y_400mf
regnet_y_800mf regnet_y_8gf resnet101 resnet152 resnet18 resnet34 resnet50 resnext101_32x8d
resnext101_64x4d resnext50_32x4d shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5
shufflenet_v2_x2_0 squeezenet1_0 squeezenet1_1 vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19
vgg19_bn vit_b_16 vit_b_32 vit_h_14 vit_l_16 vit_l_32 wide_resnet101_2 wide_resnet50_2
"""
BACKBONES = _NAMES.split()
_ALIASES = ["champion", "production", "staging"]
_SOURCES = ["auto", "elpv", "mvtec_ad"]
_WORDS = {
    "backbone": ["auto", *BACKBONES, "timm:"],
    "preset": list(PRESETS),
    "alias": _ALIASES,
    "device": ["auto", "cpu", "cuda", "cuda:0"],
    "weights": ["imagenet", "random"],
    "normalize": ["auto", "none", "global", "position", "blend"],
    "aggregate": ["auto", "max", "sum", "top:0.05"],
}
_FILES = ("images", "output", "overlays", "weights", "roi", "exclude", "good", "bad", "masks")


def completion_of(name: str, few: Sequence[str] = ()) -> Complete | None:
    """Choose what a shell offers for an option."""
    words = list(few) or _WORDS.get(name, [])
    if name == "model":
        return lambda ctx, parameter, start: _models(start) or _files(start)
    if name == "registered_model":
        return lambda ctx, parameter, start: _matching(["auto", "none", *_names()], start)
    if name == "data":
        return lambda ctx, parameter, start: [*_matching(_SOURCES, start), *_files(start)]
    if words or name in _FILES:
        takes_files = name in _FILES
        return lambda ctx, parameter, start: [
            *_matching(words, start),
            *(_files(start) if takes_files else []),
        ]
    return None


def _matching(words: Sequence[str], start: str) -> list[CompletionItem]:
    return [CompletionItem(word) for word in words if word.startswith(start)]


def _files(start: str) -> list[CompletionItem]:
    return [CompletionItem(start, type="file")]


def _models(start: str) -> list[CompletionItem]:
    """Give addresses of registered models by alias and latest version."""
    if not "models:/".startswith(start) and not start.startswith("models:/"):
        return []
    found = []
    for model in _registered():
        found += [f"models:/{model.name}@{alias}" for alias in sorted(model.aliases)]
        found += [f"models:/{model.name}/{v.version}" for v in model.latest_versions[-1:]]
    return _matching(found, start)


def _names() -> list[str]:
    return [model.name for model in _registered()]


def _registered() -> list:  # type: ignore[type-arg]  # of MLflow, which is not loaded for this
    """List registered models; none where there is no registry that answers at once."""
    uri = os.environ.get("MLFLOW_REGISTRY_URI") or os.environ.get("MLFLOW_TRACKING_URI")
    uri = uri or "sqlite:///mlflow.db"
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        return []  # MLflow would make the database
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "3"
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    os.environ["MLFLOW_LOGGING_LEVEL"] = "ERROR"
    try:
        from mlflow import MlflowClient

        return list(MlflowClient().search_registered_models(max_results=200))
    except Exception:  # a shell that completes has nobody to tell
        return []


class _Bash(BashComplete):
    """Completion in bash, which takes a colon for the end of a word."""

    def get_completion_args(self) -> tuple[list[str], str]:
        args, start = super().get_completion_args()
        words: list[str] = []
        for word in [*args, start]:
            if words and (word.startswith(":") or words[-1].endswith(":")):
                words[-1] += word
            else:
                words.append(word)
        self._colon = words[-1].rpartition(":")[:2] if words else ("", "")
        return words[:-1], words[-1] if words else ""

    def format_completion(self, item: CompletionItem) -> str:
        head = "".join(self._colon)
        if head and item.value.startswith(head):
            item = CompletionItem(item.value[len(head) :], item.type, item.help)
        return super().format_completion(item)


add_completion_class(_Bash, "bash")
