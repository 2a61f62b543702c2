"""Attention over paged keys and values, whatever network asks: its layers found, its calls led to their pools.

One block table serves all networks: the pools of a stack hold, per layer, a block's tokens of all its networks side by
side. How tokens attend is the step's layout's affair. Legend: S networks of a stack, Q query heads, H key-value heads,
N tokens of a step, D head width.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cong.engine.plain.layout import attend_dense
from cong.engine.pool import LayerPool, Options
from cong.errors import UnsupportedModel

_KNOWN_OPTIONS = frozenset(
    {"dropout", "scaling", "sliding_window", "softcap", "position_ids", "cache_position", "use_cache", "is_causal"}
    | {"output_attentions", "output_hidden_states", "output_router_logits", "cu_seq_lens_q", "cu_seq_lens_k"}
    | {"max_length_q", "max_length_k", "return_dict", "logits_to_keep"}
)
"""Options of the attention interface that are handled, or that change nothing here."""


class Attend(Protocol):
    """Attention of one layer: [batch, heads, tokens, width] of query, key, value to [batch, tokens, heads, width]."""

    def __call__(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor: ...


class Layout(Protocol):
    """Where the tokens of a step are kept and what they look at."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, pool: LayerPool, options: Options) -> Tensor:
        """Keep the step's keys and values, then attend: [S, Q, N, D] of query to [S, N, Q, D]."""
        ...


@dataclass(frozen=True)
class LayerShape:
    """What one attention layer keeps per token and network."""

    num_kv_heads: int
    key_width: int
    value_width: int

    @property
    def num_values(self) -> int:
        """Numbers per token."""
        return self.num_kv_heads * (self.key_width + self.value_width)


class LayerProbe:
    """Stands in for attention once, to find the layers in order, what they keep, and whether they can be served."""

    def __init__(self) -> None:
        self.modules: list[nn.Module] = []
        self.shapes: list[LayerShape] = []
        self.options: list[Options] = []

    def __call__(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        """Plain causal attention of one sequence, taking notes."""
        unknown = {name for name, option in options.items() if option is not None} - _KNOWN_OPTIONS
        if unknown:
            raise UnsupportedModel(
                f"{type(module).__name__} asks its attention for {', '.join(sorted(unknown))}, which the paged "
                "attention does not do; this network cannot be served by this engine"
            )
        if module in self.modules:
            raise UnsupportedModel(f"{type(module).__name__} attends twice in one pass; its cache cannot be paged")
        self.modules.append(module)
        self.shapes.append(LayerShape(key.shape[1], key.shape[3], value.shape[3]))
        self.options.append(_options(query, options))
        return attend_dense(query, key, value, self.options[-1]).transpose(1, 2)


ATTENTION_NAME = "cong_paged"
_SLOT = "_cong_attend"


@torch.compiler.disable  # type: ignore[untyped-decorator]
def dispatch_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """The function registered with the modelling code: it asks whoever the module was routed to."""
    attend: Attend = getattr(module, _SLOT)
    return attend(module, query, key, value, **options), None


def route_attention(model: nn.Module, attend: Attend) -> None:
    """Let every attention layer of a model call `attend`."""
    for module in model.modules():
        object.__setattr__(module, _SLOT, attend)


def _options(query: Tensor, options: dict[str, Any]) -> Options:
    scaling = options.get("scaling")
    return Options(
        scaling=float(query.shape[-1] ** -0.5 if scaling is None else scaling),
        window=options.get("sliding_window"),
        softcap=options.get("softcap"),
    )


class PagedAttention:
    """The attention of one stack: its pools, and the layout of the step that is running."""

    def __init__(self, probe: LayerProbe, num_networks: int, num_blocks: int, block_size: int, like: Tensor) -> None:
        self.layout: Layout | None = None
        self._pool_of: dict[nn.Module, LayerPool] = {}
        for module, shape in zip(probe.modules, probe.shapes, strict=True):
            size = (num_blocks + 1, num_networks * shape.num_kv_heads, block_size)
            self._pool_of[module] = LayerPool(
                like.new_zeros(*size, shape.key_width), like.new_zeros(*size, shape.value_width)
            )

    @property
    def pools(self) -> tuple[LayerPool, ...]:
        """The pools of the layers, in order."""
        return tuple(self._pool_of.values())

    def __call__(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        """Keep the step's keys and values, then attend: [S, Q, N, D] -> [S, N, Q, D]."""
        assert self.layout is not None, "a step has a layout"
        return self.layout.attend(query, key, value, self._pool_of[module], _options(query, options))
