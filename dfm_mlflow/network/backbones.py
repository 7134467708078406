"""From a backbone's name and layers to a frozen, truncated network with folded batch norms.

The architecture comes from torchvision (or the package that defines it); only the part up to the
last used layer is kept, so that a weights file may lack the rest.
"""

import copy
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from safetensors.torch import save
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from dfm_mlflow.errors import BackboneError, WeightsError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# EfficientNet-Lite was trained on (x - 127) / 128.
LITE_MEAN, LITE_STD = (127 / 255,) * 3, (128 / 255,) * 3


T = TypeVar("T")


@dataclass(frozen=True)
class Backbone:
    """A frozen network up to its last used layer.

    Attributes
    ----------
    name : str
        Model name.
    layers : tuple of str
        Names of the layers whose outputs the network returns, in this order.
    module : torch.nn.Module
        Maps normalised images ``(n, 3, H, W)`` to a dict from layer name to its output.
    mean, std : tuple of float
        Normalisation of RGB in 0 to 1 that the weights were trained with.
    """

    name: str
    layers: tuple[str, ...]
    module: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]

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
    weights: Callable[[set[str]], dict[str, Tensor]] | None = None,
    *,
    folded: dict[str, Tensor] | None = None,
    seed: int = 42,
) -> Backbone:
    """Build a truncated network and fill it with weights.

    Parameters
    ----------
    name : str
        A torchvision classification model, or ``efficientnet_lite0``.
    layers : tuple of str
        Layer names, or ``("stride:N",)`` for the last layer whose output is N times smaller than
        the input.
    size : tuple of int
        Input height and width in pixels.
    weights : callable, optional
        Called with the names of the tensors that the used layers need, returns them; None draws
        random ones from `seed`.
    folded : dict, optional
        Instead of `weights`: tensors that :meth:`Backbone.state` gave.

    Raises
    ------
    BackboneError
        For an unknown model or layer; the message lists the valid ones.
    """
    names = _without_data(lambda: _layer_names(name, layers, size))
    if folded is not None:
        module = _without_data(lambda: _fold_batch_norms(_truncate(name, names, size)))
        _assign(module, folded)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = _truncate(name, names, size)
        if weights is not None:
            needed = {k for k in module.state_dict() if not k.endswith("num_batches_tracked")}
            _assign(module, weights(needed))
        module = _fold_batch_norms(module)
    module = module.eval().requires_grad_(False)
    lite = name.startswith("efficientnet_lite")
    mean, std = (LITE_MEAN, LITE_STD) if lite else (IMAGENET_MEAN, IMAGENET_STD)
    return Backbone(name, names, module, mean, std)


def backbone_requirements(name: str) -> list[str]:
    """Distributions beside torchvision that define the architecture."""
    return ["efficientnet-lite-pytorch"] if name.startswith("efficientnet_lite") else []


def _without_data(build: Callable[[], T]) -> T:
    """Build on the meta device, where random initialisation costs nothing."""
    try:
        with torch.device("meta"):
            return build()
    except NotImplementedError:  # a few architectures compute their widths with tensors
        return build()


def _assign(module: nn.Module, state: dict[str, Tensor]) -> None:
    expected = module.state_dict()
    for key in sorted(expected):
        if key.endswith("num_batches_tracked"):
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
    if name == "efficientnet_lite0":
        return _efficientnet_lite(size)
    known = models.list_models(module=models)
    if name not in known:
        raise BackboneError(
            f"There is no backbone {name!r}: the backbones are efficientnet_lite0 and "
            f"{', '.join(known)}."
        )
    # These two renormalise their input when pretrained; without it their weights see wrong colours.
    renormalise = {"transform_input": True, "init_weights": False}
    extra = renormalise if name in ("googlenet", "inception_v3") else {}
    return models.get_model(name, weights=None, **extra)


def _efficientnet_lite(size: tuple[int, int]) -> nn.Module:
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise BackboneError(
            "The backbone efficientnet_lite0 needs the package efficientnet-lite-pytorch: "
            "pip install 'dfm-mlflow[sample]'."
        ) from None
    return EfficientNet.from_name("efficientnet-lite0", image_size=list(size))


def _tracer_options(model: nn.Module) -> dict:
    # EfficientNet-Lite subclasses Conv2d outside torch.nn; kept whole, its batch norms can fold.
    own = {type(m) for m in model.modules() if isinstance(m, nn.Conv2d)} - {nn.Conv2d}
    return {"leaf_modules": sorted(own, key=lambda t: t.__name__)}


def _truncate(name: str, layers: tuple[str, ...], size: tuple[int, int]) -> fx.GraphModule:
    model = _architecture(name, size).eval()
    extractor = create_feature_extractor(
        model, list(layers), tracer_kwargs=_tracer_options(model), suppress_diff_warning=True
    ).eval()
    # The extractor carries a second graph for training; the plain module keeps what scoring runs.
    return fx.GraphModule(extractor, extractor.graph).eval()


def _layer_names(name: str, layers: tuple[str, ...], size: tuple[int, int]) -> tuple[str, ...]:
    model = _architecture(name, size).eval()
    nodes = get_graph_node_names(
        model, tracer_kwargs=_tracer_options(model), suppress_diff_warning=True
    )[1]
    if len(layers) == 1 and layers[0].startswith("stride:"):
        return (_last_at_stride(model, int(layers[0].removeprefix("stride:")), nodes, size),)
    valid = {".".join(n.split(".")[:i]) for n in nodes for i in range(1, n.count(".") + 2)}
    for layer in layers:
        if layer not in valid:
            top = [n for n in dict.fromkeys(x.split(".")[0] for x in nodes) if n != "x"]
            deeper = [n for n in sorted(valid) if n.count(".") == 1][:40]
            raise BackboneError(
                f"{name} has no layer {layer!r}: its layers are {', '.join(top)}, and inside them "
                f"{', '.join(deeper) or 'none'}."
            )
    return layers


def _last_at_stride(model: nn.Module, stride: int, nodes: list[str], size: tuple[int, int]) -> str:
    """Name the outermost block, and of several the last, that ends with a map at a stride."""
    extractor = create_feature_extractor(
        model,
        {n: n for n in nodes},
        tracer_kwargs=_tracer_options(model),
        suppress_diff_warning=True,
    )
    outputs = extractor(torch.empty(1, 3, *size))
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


def _fold_batch_norms(module: fx.GraphModule) -> fx.GraphModule:
    """Fold each batch norm that alone reads a convolution into that convolution."""
    module = copy.deepcopy(module)
    modules = dict(module.named_modules())
    for node in list(module.graph.nodes):
        if node.op != "call_module" or not isinstance(modules[node.target], nn.BatchNorm2d):
            continue
        source = node.args[0]
        if source.op != "call_module" or len(source.users) > 1:
            continue
        if not isinstance(modules[source.target], nn.Conv2d):
            continue
        if sum(n.target in (source.target, node.target) for n in module.graph.nodes) > 2:
            continue  # a module that is called twice keeps its batch norm
        fused = fuse_conv_bn_eval(modules[source.target], modules[node.target])
        module.set_submodule(source.target, fused)
        node.replace_all_uses_with(source)
        module.graph.erase_node(node)
    for block in module.modules():  # blocks that the tracer keeps whole
        if isinstance(block, nn.Sequential):
            _fold_inside(block)
    module.delete_all_unused_submodules()
    module.recompile()
    return module


def _fold_inside(block: nn.Sequential) -> None:
    for i in range(len(block) - 1):
        if isinstance(block[i], nn.Conv2d) and isinstance(block[i + 1], nn.BatchNorm2d):
            block[i] = fuse_conv_bn_eval(block[i], block[i + 1])
            block[i + 1] = nn.Identity()
