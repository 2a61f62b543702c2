"""The layers of a network compiled by torch: the small operations between two products become one or two kernels.

All layers share one compilation, for they run the same code on weights of the same shapes. Attention stays outside.
"""

from collections.abc import Sequence as Ordered

from torch import nn


def compile_layers(model: nn.Module, attentions: Ordered[nn.Module]) -> int:
    """Compile each layer, on its first use; the number of layers found. `attentions` are their attention modules."""
    layers = _layers(model, attentions)
    for layer in layers:
        layer.compile()
    return len(layers)


def _layers(model: nn.Module, attentions: Ordered[nn.Module]) -> list[nn.Module]:
    """The list of modules that hold one attention each; empty where the network is not built so."""
    for module in model.modules():
        if not isinstance(module, nn.ModuleList) or len(module) != len(attentions):
            continue
        if all(
            any(part is attention for part in layer.modules())
            for layer, attention in zip(module, attentions, strict=True)
        ):
            return list(module)
    return []
