"""Fewer passes through memory for a frozen network on a CPU.

Eager PyTorch runs a convolution, the addition of a shortcut and the activation one after the other,
each through memory; oneDNN does all three in one pass, and PyTorch has an operation for it that its
compiler uses. Max pooling of half-precision channels-last tensors is slow in PyTorch; maxima of
strided views are not. Together they come close to compiled code without the seconds of a compiler.
"""

import logging
import operator

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from dfm_mlflow.network.pair import Pair

_logger = logging.getLogger(__name__)

# What oneDNN calls the activations, and their constants.
_NAMES: dict[type, tuple[str | None, list[float]]] = {
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.SiLU: ("swish", []),
    nn.Hardswish: ("hardswish", []),
}
_NOT_NEGATIVE = ("relu", "hardtanh")  # which here ends at 0
_ADDITIONS = (operator.add, operator.iadd, torch.add)
_SMALLER, _CELL = 4, 32  # side of what is tried, as a part; pixels of the largest stride
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05}  # of the largest value, on random pixels


class FusedConvolution(nn.Module):
    """A convolution with what follows it, in one call of oneDNN."""

    def __init__(self, conv: nn.Conv2d, activation: str | None, constants: list[float]):
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.geometry = (conv.padding, conv.stride, conv.dilation, conv.groups)
        self.activation, self.constants = activation, constants
        self.in_place = False  # whether the sum takes the place of what is added
        self.input_shape: torch.Size | None = None  # of the first input, which the packing is for

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """Convolve `x`, add `other` where it is given, and apply the activation.

        Shapes: x (n, C, h, w).
        """
        if self.input_shape is None:
            self.input_shape = x.shape
        own = (self.weight, self.bias, *self.geometry)
        out: Tensor
        if other is None:
            name = self.activation or "none"
            out = torch.ops.mkldnn._convolution_pointwise(x, *own, name, self.constants, "")
            return out
        after = ("add", 1.0, self.activation, self.constants, "")
        if self.in_place:
            out = torch.ops.mkldnn._convolution_pointwise_.binary(other, x, *own, *after)
        else:
            out = torch.ops.mkldnn._convolution_pointwise.binary(x, other, *own, *after)
        return out

    def pack(self, enlarged: int = 1) -> None:
        """Order the weights as oneDNN computes with them, which it else does in every call.

        Inputs are to be `enlarged` times as high and wide as the first one.
        """
        assert self.input_shape is not None
        n, channels, *sides = self.input_shape
        shape = [n, channels, *(enlarged * side for side in sides)]
        padding, stride, dilation = (list(side) for side in self.geometry[:3])
        plain = self.weight.detach().to_mkldnn()
        del self.weight  # a parameter; what is packed has no elements of its own to show
        self.weight = torch._C._nn.mkldnn_reorder_conv2d_weight(  # type: ignore[call-arg]  # not in its stub: the shape
            plain, padding, stride, dilation, self.geometry[3], shape
        )


class StridedMaxPool(nn.Module):
    """Max pooling with kernel 3, stride 2 and padding 1, by maxima of strided views."""

    # Whether no value is negative. Then bfloat16 are in the order of their bits, of which a
    # processor compares twice as many at once, and without making them float32.
    by_bits = False

    def forward(self, x: Tensor) -> Tensor:
        """Pool `x`, of shape (n, C, h, w)."""
        if x.shape[2] % 2 or x.shape[3] % 2:
            return F.max_pool2d(x, 3, 2, 1)
        values = x.view(torch.int16) if self.by_bits and x.dtype == torch.bfloat16 else x
        rows = torch.maximum(values[:, :, 0::2], values[:, :, 1::2])
        torch.maximum(rows[:, :, 1:], values[:, :, 1:-1:2], out=rows[:, :, 1:])
        cells = torch.maximum(rows[..., 0::2], rows[..., 1::2])
        torch.maximum(cells[..., 1:], rows[..., 1:-1:2], out=cells[..., 1:])
        return cells.view(x.dtype)


# Modules whose output is a tensor of its own.
_MAKERS = (FusedConvolution, StridedMaxPool, nn.MaxPool2d)


def fused(module: nn.Module, size: tuple[int, int]) -> nn.Module:
    """Return a network on the CPU that computes the same in fewer passes, or the same network."""
    if isinstance(module, Pair):
        return module.with_parts(lambda part: fused(part, size))
    if not isinstance(module, fx.GraphModule) or not torch.backends.mkldnn.is_available():
        return module
    dtype = next((p.dtype for p in module.parameters()), torch.float32)
    if dtype not in _TOLERANCE:
        return module
    try:
        candidate = _rewrite(module, dtype)
        with torch.inference_mode():
            pixels, expected, smaller = _tried(module, size, dtype)
            candidate(pixels)
            for part in candidate.modules():
                if isinstance(part, FusedConvolution):
                    part.pack(smaller)
            found = candidate(pixels)
        for name, value in expected.items():
            scale = value.float().abs().max()
            if (found[name].float() - value.float()).abs().max() > _TOLERANCE[dtype] * scale:
                raise ArithmeticError(f"the layer {name} differs")
    except Exception as error:  # operations of the compiler are not promised to stay as they are
        _logger.info("The network runs without fused operations (%s).", error)
        return module
    return candidate


def _tried(
    module: nn.Module, size: tuple[int, int], dtype: torch.dtype
) -> tuple[Tensor, dict[str, Tensor], int]:
    """Noise, what the network gives for it, and how many times larger its inputs are.

    What is the same for few pixels is for many, and takes less time; a few networks take no less.
    """
    divisible = all(side % (_SMALLER * _CELL) == 0 for side in size)
    for smaller in (_SMALLER, 1) if divisible else (1,):
        sides = [side // smaller for side in size]
        noise = torch.rand(1, 3, *sides, generator=torch.Generator().manual_seed(0))
        pixels = noise.to(dtype, memory_format=torch.channels_last)
        try:
            return pixels, module(pixels), smaller
        except (RuntimeError, AssertionError):
            if smaller == 1:
                raise
    raise AssertionError("unreachable")


def _rewrite(module: fx.GraphModule, dtype: torch.dtype) -> fx.GraphModule:
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    new = fx.GraphModule(module, graph)  # shares the submodules
    modules = dict(new.named_modules())
    for node in list(graph.nodes):
        if dtype != torch.float32 and _is_pool(node, modules):
            new.set_submodule(f"fused_{node.name}", StridedMaxPool())
            node.target = f"fused_{node.name}"
        elif node.op == "call_function" and node.target in _ADDITIONS:
            _fuse(new, node, _convolution_before(node, modules), modules)
    for node in list(graph.nodes):
        if _is_plain_convolution(node, modules):
            _fuse(new, node, node, modules)
    _save_passes(new)
    graph.lint()
    new.delete_all_unused_submodules()
    new.recompile()
    return new.eval()


def _fuse(
    new: fx.GraphModule, last: fx.Node, conv: fx.Node | None, modules: dict[str, nn.Module]
) -> None:
    """Replace a convolution, the addition `last` where it is one, and the activation after it."""
    if conv is None:
        return
    others = [a for a in last.args if a is not conv] if last is not conv else []
    name: str | None = None
    constants: list[float] = []
    after = next(iter(last.users))
    if len(last.users) == 1 and after.op == "call_module":
        name, constants = _NAMES.get(type(modules.get(str(after.target))), (None, []))
    target = f"fused_{last.name}"
    alone = modules[str(conv.target)]
    assert isinstance(alone, nn.Conv2d)
    new.set_submodule(target, FusedConvolution(alone, name, constants))
    end = after if name else last
    with new.graph.inserting_before(end):
        node = new.graph.call_module(target, (conv.args[0], *others))
    end.replace_all_uses_with(node)
    for gone in dict.fromkeys((end, last, conv)):
        new.graph.erase_node(gone)


def _save_passes(new: fx.GraphModule) -> None:
    """Let sums take the place of shortcuts that nobody reads any more, and pool values by bits."""
    modules, place = dict(new.named_modules()), {n: i for i, n in enumerate(new.graph.nodes)}

    def made_by(value: object) -> nn.Module | None:
        known = isinstance(value, fx.Node) and value.op == "call_module"
        return modules.get(str(value.target)) if known else None  # type: ignore[attr-defined]  # a node

    for node in new.graph.nodes:
        module = made_by(node)
        if isinstance(module, FusedConvolution) and len(node.args) == 2:
            shortcut = node.args[1]
            read = [user for user in shortcut.users if user is not node]
            module.in_place = (
                isinstance(made_by(shortcut), _MAKERS)
                and shortcut is not node.args[0]
                and all(place[user] < place[node] for user in read)
                and all(isinstance(made_by(user), (nn.Conv2d, *_MAKERS)) for user in read)
            )
        elif isinstance(module, StridedMaxPool):
            before = made_by(node.args[0])
            module.by_bits = (
                isinstance(before, FusedConvolution) and before.activation in _NOT_NEGATIVE
            )


def _convolution_before(node: fx.Node, modules: dict[str, nn.Module]) -> fx.Node | None:
    a, b = node.args if len(node.args) == 2 and not node.kwargs else (None, None)
    if not isinstance(a, fx.Node) or not isinstance(b, fx.Node) or a is b:
        return None
    return next((n for n in (a, b) if _is_plain_convolution(n, modules)), None)


def _is_plain_convolution(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    conv = modules.get(str(node.target)) if node.op == "call_module" else None
    return (
        type(conv) is nn.Conv2d
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
        and len(node.users) == 1
        and not node.kwargs
    )


def _is_pool(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    pool = modules.get(str(node.target)) if node.op == "call_module" else None
    return type(pool) is nn.MaxPool2d and (
        pool.kernel_size,
        pool.stride,
        pool.padding,
        pool.dilation,
        pool.ceil_mode,
        pool.return_indices,
    ) == (3, 2, 1, 1, False, False)
