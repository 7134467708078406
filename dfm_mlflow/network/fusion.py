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
_ADDITIONS = (operator.add, operator.iadd, torch.add)
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05}  # of the largest value, on random pixels


class FusedConvolution(nn.Module):
    """A convolution with what follows it, in one call of oneDNN."""

    def __init__(self, conv: nn.Conv2d, activation: str | None, constants: list[float]):
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.geometry = (conv.padding, conv.stride, conv.dilation, conv.groups)
        self.activation, self.constants = activation, constants
        self.input_shape: torch.Size | None = None  # of the first input, which the packing is for

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """Convolve `x`, add `other` where it is given, and apply the activation.

        Shapes: x (n, C, h, w).
        """
        operation = torch.ops.mkldnn._convolution_pointwise
        if self.input_shape is None:
            self.input_shape = x.shape
        out: Tensor
        if other is None:
            out = operation(
                x,
                self.weight,
                self.bias,
                *self.geometry,
                self.activation or "none",
                self.constants,
                "",
            )
        else:
            out = operation.binary(
                x,
                other,
                self.weight,
                self.bias,
                *self.geometry,
                "add",
                1.0,
                self.activation,
                self.constants,
                "",
            )
        return out

    def pack(self) -> None:
        """Order the weights as oneDNN computes with them, which it else does in every call."""
        padding, stride, dilation = (list(side) for side in self.geometry[:3])
        plain = self.weight.detach().to_mkldnn()
        del self.weight  # a parameter; what is packed has no elements of its own to show
        self.weight = torch._C._nn.mkldnn_reorder_conv2d_weight(  # type: ignore[call-arg]  # not in its stub: the shape
            plain, padding, stride, dilation, self.geometry[3], self.input_shape
        )


class StridedMaxPool(nn.Module):
    """Max pooling with kernel 3, stride 2 and padding 1, by maxima of strided views."""

    def forward(self, x: Tensor) -> Tensor:
        """Pool `x`, of shape (n, C, h, w)."""
        if x.shape[2] % 2 or x.shape[3] % 2:
            return F.max_pool2d(x, 3, 2, 1)
        rows = torch.maximum(x[:, :, 0::2], x[:, :, 1::2])
        torch.maximum(rows[:, :, 1:], x[:, :, 1:-1:2], out=rows[:, :, 1:])
        cells = torch.maximum(rows[..., 0::2], rows[..., 1::2])
        torch.maximum(cells[..., 1:], rows[..., 1:-1:2], out=cells[..., 1:])
        return cells


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
        noise = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
        pixels = noise.to(dtype, memory_format=torch.channels_last)
        with torch.inference_mode():
            expected, _ = module(pixels), candidate(pixels)
            for part in candidate.modules():
                if isinstance(part, FusedConvolution):
                    part.pack()
            found = candidate(pixels)
        for name, value in expected.items():
            scale = value.float().abs().max()
            if (found[name].float() - value.float()).abs().max() > _TOLERANCE[dtype] * scale:
                raise ArithmeticError(f"the layer {name} differs")
    except Exception as error:  # operations of the compiler are not promised to stay as they are
        _logger.info("The network runs without fused operations (%s).", error)
        return module
    return candidate


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
    if name is None and last is conv:
        return  # nothing to gain
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
