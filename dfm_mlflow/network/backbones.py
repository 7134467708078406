"""From a backbone's name and layers to a frozen, truncated network with folded batch norms.

The architecture comes from torchvision (or the package that defines it); only the part up to the
last used layer is kept, so that a weights file may lack the rest.
"""

import copy
import difflib
import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import torch
from safetensors.torch import save
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from dfm_mlflow.config.presets import SECOND, is_transformer
from dfm_mlflow.errors import BackboneError, DfmError, WeightsError
from dfm_mlflow.network import timm_backbones, transformers, vision
from dfm_mlflow.network.folding import fold_batch_norms
from dfm_mlflow.network.pair import Pair, layers_of
from dfm_mlflow.network.tracing import tracing

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# EfficientNet-Lite was trained on (x - 127) / 128.
LITE_MEAN, LITE_STD = (127 / 255,) * 3, (128 / 255,) * 3

_COUNTER = "num_batches_tracked"
_DRAWS = ("normal_", "uniform_")  # methods of a tensor
_SMALL = 320 * 320, 40e6  # pixels; numbers in a network
_NORMALISATIONS = (nn.functional.batch_norm, nn.functional.layer_norm)
_PARTS = ("first", "second")  # of a pair, in the names of its tensors
T = TypeVar("T")
# Gives the named tensors of a weights file, or all of them for None.
Take = Callable[[set[str] | None], dict[str, Tensor]]
# Called with the tensors that the used layers have, which may be without data.
Folded = dict[str, Tensor] | Callable[[dict[str, Tensor]], dict[str, Tensor]]


@dataclass(frozen=True)
class Backbone:
    """A frozen network up to its last used layer."""

    name: str  # model name
    layers: tuple[str, ...]  # names of the layers whose outputs the network returns, in this order
    # Maps normalised images ``(n, 3, H, W)`` to a dict from layer name to its output.
    module: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    # Of a transformer, which takes inputs of one size: side of its patch in pixels.
    patch: int | None = None

    def state(self) -> dict[str, Tensor]:
        """Copies of the tensors of the truncated, folded network: fp32 on the CPU."""
        return {
            k: v.detach().to("cpu", torch.float32, copy=True, memory_format=torch.contiguous_format)
            for k, v in self.module.state_dict().items()
        }

    def fingerprint(self) -> str:
        """SHA-256 of the tensors that produce the features."""
        return hashlib.sha256(save(self.state())).hexdigest()


def build_backbone(
    name: str,
    layers: tuple[str, ...],
    size: tuple[int, int],
    weights: Take | None = None,
    *,
    folded: Folded | None = None,
    seed: int = 42,
) -> Backbone:
    """Build a truncated network and fill it with weights."""
    if "+" in name:
        return _build_pair(name, layers, size, weights, folded, seed)
    if is_transformer(name):
        tokens, patch = _build_tokens(name, layers, size, weights, folded, seed)
        names = tuple(window.name for window in tokens.windows)
        return Backbone(name, names, tokens, *_normalisation(name), patch)
    with tracing():
        names, module = _build(name, layers, size, weights, folded, seed)
    module = module.eval().requires_grad_(False)
    return Backbone(name, names, module, *_normalisation(name))


def is_small(module: nn.Module, size: tuple[int, int]) -> bool:
    """Whether a pass on a CPU takes less than one on the meta device, which imports a compiler."""
    pixels, numbers = _SMALL
    few = sum(p.numel() for p in module.parameters()) <= numbers
    return few and size[0] * size[1] <= pixels


@lru_cache(maxsize=64)
def _windows(
    name: str, layers: tuple[str, ...], size: tuple[int, int]
) -> tuple[transformers.Window, ...]:
    with _as_backbone_error(name, size):
        whole = _without_data(lambda: transformers.whole(name, size))
        return transformers.windows_of(name, layers, transformers.n_blocks_of(whole))


def _build_tokens(
    name: str,
    layers: tuple[str, ...],
    size: tuple[int, int],
    weights: Take | None,
    folded: Folded | None,
    seed: int,
) -> tuple[transformers.Tokens, int]:
    """Give a transformer up to its last used block, with its positions at `size`, and its patch."""

    def build() -> transformers.Tokens:
        whole = transformers.whole(name, size)
        windows = transformers.windows_of(name, layers, transformers.n_blocks_of(whole))
        return transformers.truncated(whole, windows)

    with _as_backbone_error(name, size):
        if weights is None and folded is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                module = build()
        else:
            module = _without_data(build)
        if weights is not None:
            fitted = transformers.fitted_state(module.model, weights(None))
            _assign(module.model, fitted)
        elif folded is not None:
            _assign(module, folded(module.state_dict()) if callable(folded) else folded)
        if any(b.is_meta for b in module.buffers()):  # rotations, which are in no state dict
            own = module.state_dict()
            module = build()
            _assign(module, own)
    patch = transformers.patch_of(module.model, name)
    return module.eval().requires_grad_(False), patch


def _build(
    name: str,
    layers: tuple[str, ...],
    size: tuple[int, int],
    weights: Take | None,
    folded: Folded | None,
    seed: int,
) -> tuple[tuple[str, ...], nn.Module]:
    """Give the names of the layers, and the truncated network with folded batch norms."""
    names, published = layers, frozenset[str]()
    with _as_backbone_error(name, size):
        try:  # a stored model's layers have names
            known = folded is not None and _folded(name, layers, size)
        except Exception:  # or strides; where a name is wrong, what follows says it
            known = False
        if not known:
            names, published = _without_data(lambda: _layer_names(name, layers, size))
    if folded is not None:
        module = _rebuild(name, names, size, folded)
    else:
        with _as_backbone_error(name, size), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            with nullcontext() if weights is None else _ShapesAlone():
                module = _truncate(name, names, size)
        if weights is not None:
            # Tensors that the code itself makes are no weights; they keep their value.
            own = {k: v for k, v in module.state_dict().items() if k not in published}
            needed = {k for k in published & module.state_dict().keys() if not k.endswith(_COUNTER)}
            _assign(module, {**own, **weights(needed)})
        module = fold_batch_norms(module)
    return names, module


def _build_pair(
    name: str,
    layers: tuple[str, ...],
    size: tuple[int, int],
    weights: Take | None,
    folded: Folded | None,
    seed: int,
) -> Backbone:
    """Build two networks; `weights` is called with the place, 0 or 1, before a tensor's name."""
    names = name.split("+")
    if callable(folded):  # which is asked once, for the tensors of both
        expected: dict[str, Tensor] = {}
        for i, part in enumerate(names):
            own = layers_of(layers, bool(i))
            shapes = build_backbone(part, own, size, folded=lambda e: e).module.state_dict()
            expected |= {f"{_PARTS[i]}.{k}": v for k, v in shapes.items()}
        folded = folded(expected)
    built = []
    for i, part in enumerate(names):
        prefix = _PARTS[i] + "."
        state = folded and {
            k.removeprefix(prefix): v for k, v in folded.items() if k.startswith(prefix)
        }
        take = weights and _of_part(weights, prefix)
        own = layers_of(layers, bool(i))
        built.append(build_backbone(part, own, size, take, folded=state, seed=seed))
    first, second = built
    module = Pair.of(
        first.module, second.module, (first.mean, first.std), (second.mean, second.std)
    )
    resolved = iter(first.layers), iter(second.layers)
    found = tuple(
        SECOND + next(resolved[1]) if layer.startswith(SECOND) else next(resolved[0])
        for layer in layers
    )
    patch = first.patch or second.patch
    return Backbone(name, found, module.eval(), first.mean, first.std, patch)


def _of_part(weights: Take, prefix: str) -> Take:
    def take(needed: set[str] | None) -> dict[str, Tensor]:
        asked = {prefix} if needed is None else {prefix + key for key in needed}
        return {k.removeprefix(prefix): v for k, v in weights(asked).items()}

    return take


def layer_names(name: str, layers: tuple[str, ...], size: tuple[int, int]) -> tuple[str, ...]:
    """Give layers their names in a backbone: ``stride:16`` becomes ``layer3``."""
    if "+" in name:
        found = {}
        for part, second in zip(name.split("+"), (False, True), strict=True):
            asked = layers_of(layers, second)
            prefix = SECOND if second else ""
            for one, known in zip(asked, layer_names(part, asked, size), strict=True):
                found[prefix + one] = prefix + known
        return tuple(found[layer] for layer in layers)
    if is_transformer(name):
        return tuple(window.name for window in _windows(name, layers, size))
    with tracing(), _as_backbone_error(name, size):
        return _without_data(lambda: _layer_names(name, layers, size))[0]


def backbone_requirements(name: str) -> list[str]:
    """Distributions beside torchvision that define the architecture of the backbone `name`."""
    if "+" in name:
        return list(dict.fromkeys(r for p in name.split("+") for r in backbone_requirements(p)))
    if name.startswith(timm_backbones.PREFIX):
        return ["timm"]
    return ["efficientnet-lite-pytorch"] if name.startswith("efficientnet_lite") else []


def _normalisation(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    imagenet = IMAGENET_MEAN, IMAGENET_STD
    if name.startswith(timm_backbones.PREFIX):
        return timm_backbones.normalisation(name) or imagenet
    return (LITE_MEAN, LITE_STD) if name.startswith("efficientnet_lite") else imagenet


@contextmanager
def _as_backbone_error(name: str, size: tuple[int, int]) -> Iterator[None]:
    try:
        yield
    except DfmError:
        raise
    except Exception as error:  # control flow that depends on data can fail in nearly any way
        raise BackboneError(
            f"{name} cannot be cut at a layer for an input of {size[0]}x{size[1]} pixels "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]}): choose a "
            "convolutional backbone or another image_size."
        ) from error


class _ShapesAlone(TorchFunctionMode):
    """Leaves out what changes no shape, and would import torch's compiler on the meta device."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return given["tensor"] if "tensor" in given else args[0]
        skipped = func in _NORMALISATIONS or getattr(func, "__name__", "") in _DRAWS
        if skipped and isinstance(args[0], Tensor):  # not what a tracer puts in its place
            return args[0]
        return func(*args, **given)


def _without_data(build: Callable[[], T]) -> T:
    """Build on the meta device, where most of it would import torch's compiler, which takes 2 s."""
    try:
        with torch.device("meta"), _ShapesAlone():
            return build()
    except RuntimeError:  # a few architectures compute their widths with tensors
        return build()


def _zeros(model: nn.Module) -> nn.Module:
    """Give a network of the meta device zeros for values."""
    filled: nn.Module = model._apply(lambda t: torch.zeros(t.shape, dtype=t.dtype, device="cpu"))
    return filled


def _rebuild(
    name: str, layers: tuple[str, ...], size: tuple[int, int], folded: Folded
) -> fx.GraphModule:
    module = copy.deepcopy(_folded(name, layers, size))
    if callable(folded):
        folded = folded(module.state_dict())
    _assign(module, folded)
    if any(b.is_meta for b in module.buffers()):  # a constant, such as a blur, is in no state dict
        with torch.random.fork_rng(devices=[]):
            module = fold_batch_norms(_truncate(name, layers, size))
        _assign(module, folded)
    return module


@lru_cache(maxsize=8)  # a promotion loads three models, a server each version of one
def _folded(name: str, layers: tuple[str, ...], size: tuple[int, int]) -> fx.GraphModule:
    """Give a truncated network with folded batch norms, and without values."""
    return _without_data(lambda: fold_batch_norms(_truncate(name, layers, size)))


def _assign(module: nn.Module, state: dict[str, Tensor]) -> None:
    expected = module.state_dict()
    for key in sorted(expected):
        if key.endswith(_COUNTER):
            continue
        if key not in state:
            raise WeightsError(f"The tensor {key} of a used layer is missing from the weights.")
        if state[key].shape != expected[key].shape:
            raise WeightsError(
                f"The tensor {key} has shape {tuple(state[key].shape)} in the weights, and the "
                f"backbone expects {tuple(expected[key].shape)}."
            )
    used = {k: v.float() for k, v in state.items() if k in expected}
    module.load_state_dict(used, strict=False, assign=True)


def _architecture(name: str, size: tuple[int, int]) -> nn.Module:
    if name.startswith(timm_backbones.PREFIX):
        return timm_backbones.architecture(name)
    if name == "efficientnet_lite0":
        return _efficientnet_lite(size)
    known = vision.models.list_models(module=vision.models)
    if name not in known:
        close = difflib.get_close_matches(name, [*known, "efficientnet_lite0"], n=5, cutoff=0.6)
        raise BackboneError(
            f"There is no backbone {name!r}: "
            + (f"close names are {', '.join(close)}; " if close else "")
            + f"the backbones are efficientnet_lite0 and {', '.join(known)}, and timm:<name>."
        )
    # These two renormalise their input when pretrained; without it their weights see wrong colours.
    renormalise = {"transform_input": True, "init_weights": False}
    extra = renormalise if name in ("googlenet", "inception_v3") else {}
    model: nn.Module = vision.models.get_model(name, weights=None, **extra)
    return model


def _efficientnet_lite(size: tuple[int, int]) -> nn.Module:
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise BackboneError(
            "The backbone efficientnet_lite0 needs the package efficientnet-lite-pytorch: "
            "pip install 'dfm-mlflow[sample]'."
        ) from None
    model: nn.Module = EfficientNet.from_name("efficientnet-lite0", image_size=list(size))
    return model


def _tracer_options(name: str, model: nn.Module) -> dict[str, Any]:
    is_timm = name.startswith(timm_backbones.PREFIX)
    options = timm_backbones.tracer_options(name) if is_timm else {"leaf_modules": []}
    # EfficientNet-Lite subclasses Conv2d outside torch.nn; kept whole, its batch norms can fold.
    own = {type(m) for m in model.modules() if isinstance(m, nn.Conv2d)} - {nn.Conv2d}
    return {**options, "leaf_modules": [*options["leaf_modules"], *own]}


def _truncate(name: str, layers: tuple[str, ...], size: tuple[int, int]) -> fx.GraphModule:
    model = _architecture(name, size).eval()
    extractor = vision.create_feature_extractor(
        model, list(layers), tracer_kwargs=_tracer_options(name, model), suppress_diff_warning=True
    ).eval()
    # The extractor carries a second graph for training; the plain module keeps what scoring runs.
    return fx.GraphModule(extractor, extractor.graph).eval()


@lru_cache(maxsize=64)  # a sweep and a server of several models ask again and again
def _layer_names(
    name: str, layers: tuple[str, ...], size: tuple[int, int]
) -> tuple[tuple[str, ...], frozenset[str]]:
    """Give the names of layers, and those of all tensors of the whole architecture."""
    model = _architecture(name, size).eval()
    nodes = vision.get_graph_node_names(
        model, tracer_kwargs=_tracer_options(name, model), suppress_diff_warning=True
    )[1]
    if any(layer.startswith("stride:") for layer in layers) and is_small(model, size):
        model = _zeros(model)
    layers = tuple(
        _last_at_stride(name, model, int(layer.removeprefix("stride:")), nodes, size)
        if layer.startswith("stride:")
        else layer
        for layer in layers
    )
    valid = {".".join(n.split(".")[:i]) for n in nodes for i in range(1, n.count(".") + 2)}
    for layer in layers:
        if layer not in valid:
            top = [n for n in dict.fromkeys(x.split(".")[0] for x in nodes) if n != "x"]
            deeper = [n for n in sorted(valid) if n.count(".") == 1][:40]
            raise BackboneError(
                f"{name} has no layer {layer!r}: its layers are {', '.join(top)}, and inside them "
                f"{', '.join(deeper) or 'none'}."
            )
    return layers, frozenset(model.state_dict())


def _last_at_stride(
    name: str, model: nn.Module, stride: int, nodes: list[str], size: tuple[int, int]
) -> str:
    """Name the outermost block, and of several the last, that ends with a map at a stride."""
    extractor = vision.create_feature_extractor(
        model,
        {n: n for n in nodes},
        tracer_kwargs=_tracer_options(name, model),
        suppress_diff_warning=True,
    )
    device = next(extractor.parameters()).device
    outputs = extractor(torch.zeros(1, 3, *size, device=device))
    maps = {n: o for n, o in outputs.items() if isinstance(o, Tensor) and o.ndim == 4}
    octave = {n: _octave(o, size) for n, o in maps.items()}
    for depth in range(1, 1 + max(n.count(".") + 1 for n in nodes)):
        ends = {".".join(n.split(".")[:depth]): n for n in nodes if n.count(".") >= depth - 1}
        blocks = [block for block, end in ends.items() if octave.get(end) == math.log2(stride)]
        if blocks:
            return blocks[-1]
    strides = ", ".join(str(2**o) for o in sorted({o for o in octave.values() if o is not None}))
    raise BackboneError(
        f"The backbone has no layer at stride {stride}: it has the strides {strides}."
    )


def _octave(output: Tensor, size: tuple[int, int]) -> int | None:
    """log2 of a map's stride, or None where the last two axes are not height and width.

    Networks without padding miss the exact quotient by a few pixels, so powers of two are compared.
    """
    height, width = (round(math.log2(s / o)) for s, o in zip(size, output.shape[2:], strict=True))
    return height if height == width else None
