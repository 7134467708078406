"""Batch norms folded into the convolutions before them: less to compute, the same numbers."""

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

# Convolutions that use their weight as it is; a weight-standardised one, for example, cannot fold.
_PLAIN = {"Conv2d", "Conv2dSame", "Conv2dStaticSamePadding", "Conv2dDynamicSamePadding"}


def fold_batch_norms(module: fx.GraphModule) -> fx.GraphModule:
    """Fold each batch norm that alone reads a convolution into that convolution, in place."""
    modules = dict(module.named_modules())
    for node in list(module.graph.nodes):
        if node.op != "call_module" or not isinstance(modules[node.target], nn.BatchNorm2d):
            continue
        source = node.args[0]
        if source.op != "call_module" or len(source.users) > 1:
            continue
        if sum(n.target in (source.target, node.target) for n in module.graph.nodes) > 2:
            continue  # a module that is called twice keeps its batch norm
        fused = _fuse(modules[source.target], modules[node.target])
        if fused is None:
            continue
        module.set_submodule(source.target, fused[0])
        module.set_submodule(node.target, fused[1])
        if isinstance(fused[1], nn.Identity):
            node.replace_all_uses_with(source)
            module.graph.erase_node(node)
    for block in module.modules():  # blocks that the tracer keeps whole
        if isinstance(block, nn.Sequential) and type(block).forward is nn.Sequential.forward:
            _fold_inside(block)
    module.delete_all_unused_submodules()
    module.recompile()
    return module


def _fold_inside(block: nn.Sequential) -> None:
    for i in range(len(block) - 1):
        fused = _fuse(block[i], block[i + 1])
        if fused is not None:
            block[i], block[i + 1] = fused


def _fuse(conv: nn.Module, norm: nn.Module) -> tuple[nn.Module, nn.Module] | None:
    """Give the convolution with the batch norm in it, and what is left to do after it."""
    if not isinstance(conv, nn.Conv2d) or type(conv).__name__ not in _PLAIN:
        return None
    if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None:
        return None
    if type(norm) is nn.BatchNorm2d:
        return _folded(conv, norm), nn.Identity()
    if type(norm).__name__ == "BatchNormAct2d":  # timm's, with dropout and activation inside
        after = [
            m
            for m in (norm.drop, norm.act)
            if isinstance(m, nn.Module) and not isinstance(m, nn.Identity)
        ]
        return _folded(conv, norm), nn.Sequential(*after) if after else nn.Identity()
    return None


def _folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    if not conv.weight.is_meta:
        return fuse_conv_bn_eval(conv, norm)
    # without values there is nothing to compute, for which torch would import its compiler
    if conv.bias is None:
        conv.bias = nn.Parameter(torch.empty(conv.out_channels, device="meta"), requires_grad=False)
    return conv
