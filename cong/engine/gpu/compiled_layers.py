"""The layers of a network compiled by torch: the small operations between two products become one or two kernels.

All layers share one compilation, for they run the same code on weights of the same shapes. Attention stays outside.
What stands beside the layers, their last norm and the rotation of positions, is compiled too.
"""

from collections.abc import Sequence as Ordered

from torch import nn

from cong.engine.stack import StackedEmbedding, StackedLoop

_LEFT_ALONE = (nn.Embedding, StackedEmbedding, StackedLoop)
"""Beside the layers: one operation, or the modelling code's own, which may be anything."""


def compile_layers(model: nn.Module, attentions: Ordered[nn.Module]) -> int:
    """Compile each layer, on its first use; the number of layers found. `attentions` are their attention modules."""
    for parent in model.modules():
        parts = list(parent.children())
        layers = next((part for part in parts if _are_layers(part, attentions)), None)
        if layers is not None:
            beside = [part for part in parts if part is not layers and not isinstance(part, _LEFT_ALONE)]
            for module in (*layers.children(), *beside):
                module.compile()
            return len(attentions)
    return 0


def _are_layers(module: nn.Module, attentions: Ordered[nn.Module]) -> bool:
    """Whether this is a list of modules that hold one attention each; not every network has one."""
    return (
        isinstance(module, nn.ModuleList)
        and len(module) == len(attentions)
        and all(attention in layer.modules() for layer, attention in zip(module, attentions, strict=True))
    )
