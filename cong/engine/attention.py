"""Attention over paged keys and values: how the tokens of one step attend, whatever network asks.

One block table serves all networks: the pools of a stack hold, per layer, a block's tokens of all its networks side by
side. Tokens of many sequences lie in one row of N. Legend: S networks of a stack, Q query heads, H key-value
heads, N tokens of a step, B decoding sequences, L and C positions of queries and keys, D head width.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

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


def attend_dense(query: Tensor, key: Tensor, value: Tensor, options: Options) -> Tensor:
    """Causal attention of the last L of C positions, plainly: [B, Q, L, D] x [B, H, C, D] -> [B, Q, L, D]."""
    num_queries, num_keys = query.shape[2], key.shape[2]
    scaling, window, softcap = options.scaling, options.window, options.softcap
    if softcap is None:
        is_square = num_queries == num_keys and (window is None or window >= num_keys)
        mask = None if is_square else causal_mask(num_queries, num_keys, window, query.device)
        return nn.functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=is_square,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    scores = torch.tanh((query @ key.transpose(2, 3)) * scaling / softcap) * softcap
    scores = scores.masked_fill(~causal_mask(num_queries, num_keys, window, query.device), -math.inf)
    return scores.softmax(-1, dtype=torch.float32).to(query.dtype) @ value


def causal_mask(num_queries: int, num_keys: int, window: int | None, device: torch.device) -> Tensor:
    """True where the query, one of the last `num_queries` positions, may look: [L, C]."""
    position_L1 = torch.arange(num_keys - num_queries, num_keys, device=device)[:, None]
    position_C = torch.arange(num_keys, device=device)
    is_visible_LC = position_C <= position_L1
    if window is not None:
        is_visible_LC &= position_C > position_L1 - window
    return is_visible_LC


@dataclass(frozen=True)
class Prefill:
    """Rows of the step that are consecutive tokens of one sequence, or of several of equal length without context."""

    start: int
    num_sequences: int
    count: int
    """Tokens of each sequence."""
    context_blocks: Tensor | None
    """Blocks of all its tokens up to the last of this chunk; None = there are none before this chunk."""
    context_length: int = 0

    def attend(self, query: Tensor, key: Tensor, value: Tensor, pool: LayerPool, options: Options) -> Tensor:
        """The rows of this prefill, whose keys and values are kept already: [S, Q, N, D] -> [S, L, Q, D]."""
        num_networks, num_sequences, count = query.shape[0], self.num_sequences, self.count
        rows = slice(self.start, self.start + num_sequences * count)

        def split(tensor: Tensor) -> Tensor:
            part = tensor[:, :, rows]
            part = part.reshape(num_networks, part.shape[1], num_sequences, count, part.shape[3])
            return part.transpose(1, 2).flatten(0, 1)  # [S * sequences, heads, tokens, D]

        def context(tensor: Tensor, blocks: Tensor) -> Tensor:
            part = tensor.index_select(0, blocks).transpose(0, 1).flatten(1, 2)
            return part[:, : self.context_length].unflatten(0, (num_networks, -1))  # type: ignore[no-untyped-call, no-any-return]

        if self.context_blocks is not None:
            blocks = self.context_blocks
            key, value = context(pool.keys, blocks), context(pool.values, blocks)
        else:
            key, value = split(key), split(value)
        mixed = attend_dense(split(query), key, value, options)
        return mixed.transpose(1, 2).reshape(num_networks, num_sequences * count, query.shape[1], -1)


class Decoding(Protocol):
    """One token of each of B sequences in one step, and how they find what they look at."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, pool: LayerPool, options: Options) -> Tensor:
        """Keep the rows' keys and values, then attend: [S, Q, B, D] of query to [S, B, Q, D]."""
        ...


class Layout(Protocol):
    """Where the tokens of a step are kept and what they look at."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, pool: LayerPool, options: Options) -> Tensor:
        """Keep the step's keys and values, then attend: [S, Q, N, D] of query to [S, N, Q, D]."""
        ...


@dataclass(frozen=True)
class StepLayout:
    """A layout in torch's own operators; decoding rows come first."""

    num_decoding: int
    """Rows that are one token of a sequence each."""
    decoding: Decoding | None
    prefills: tuple[Prefill, ...]
    places_N: Tensor
    """Place of the block of each token that is not decoding."""
    offsets_N: Tensor
    """Its position within the block."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, pool: LayerPool, options: Options) -> Tensor:
        """Keep the step's keys and values, then attend: [S, Q, N, D] of query to [S, N, Q, D]."""
        split = self.num_decoding
        parts = []
        if self.prefills:
            # Before anybody attends: a decoding row may look at a prompt that is computed in the same step.
            pool.write(key[:, :, split:], value[:, :, split:], self.places_N, self.offsets_N)
        if self.decoding is not None:
            rows = slice(split)
            parts.append(self.decoding.attend(query[:, :, rows], key[:, :, rows], value[:, :, rows], pool, options))
        parts += [prefill.attend(query, key, value, pool, options) for prefill in self.prefills]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


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
