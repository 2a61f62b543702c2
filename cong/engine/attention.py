"""Attention over paged keys and values: where they lie, and how the tokens of one step attend to them.

One block table serves all networks. The pools of a stack of S networks hold, per layer, [S, H, blocks, block size, D];
tokens of many sequences lie side by side in one row of N. Legend: S networks of a stack, Q query heads, H key-value
heads, G = Q / H, N tokens of a step, B decoding sequences, C context, D head width.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

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


def attend_dense(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None, softcap: float | None
) -> Tensor:
    """Causal attention of the last L of C positions, plainly: [B, Q, L, D] x [B, H, C, D] -> [B, Q, L, D]."""
    num_queries, num_keys = query.shape[2], key.shape[2]
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
    context_slots_C: Tensor | None
    """Places of all its tokens up to the last of this chunk; None = there are none before this chunk."""


@dataclass(frozen=True)
class StepLayout:
    """Where the tokens of a step are written and what they look at; the first B rows decode one token each."""

    slots_N: Tensor
    """Place of each token in the flattened pool: block * block size + offset."""
    block_table: Tensor
    """Blocks of each decoding sequence, padded with any block: [B, blocks]."""
    lengths_B: Tensor
    """Tokens of each decoding sequence, the current one included."""
    prefills: tuple[Prefill, ...]
    masks: dict[tuple[int | None, int], Tensor] = field(default_factory=dict)
    """Made on first use in the step: (window, block size) -> additive mask [B, 1, C]."""

    def mask(self, window: int | None, block_size: int, dtype: torch.dtype) -> Tensor:
        """0 where a decoding row may look, -inf elsewhere."""
        key = (window, block_size)
        if key not in self.masks:
            position_C = torch.arange(self.block_table.shape[1] * block_size, device=self.lengths_B.device)
            is_hidden_BC = position_C >= self.lengths_B[:, None]
            if window is not None:
                is_hidden_BC |= position_C < self.lengths_B[:, None] - window
            zeros_BC = torch.zeros(is_hidden_BC.shape, dtype=dtype, device=position_C.device)
            self.masks[key] = zeros_BC.masked_fill(is_hidden_BC, -math.inf)[:, None]
        return self.masks[key]


@dataclass
class LayerPool:
    """Keys and values of one layer of a stack."""

    keys: Tensor
    """[S, H, blocks, block size * D]"""
    values: Tensor


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
        return attend_dense(
            query, key, value, _scaling(query, options), options.get("sliding_window"), options.get("softcap")
        ).transpose(1, 2)


ATTENTION_NAME = "cong_paged"
_SLOT = "_cong_attend"


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


def _scaling(query: Tensor, options: dict[str, Any]) -> float:
    scaling = options.get("scaling")
    return float(query.shape[-1] ** -0.5 if scaling is None else scaling)


class PagedAttention:
    """The attention of one stack: its pools, and the layout of the step that is running."""

    def __init__(self, probe: LayerProbe, num_networks: int, num_blocks: int, block_size: int, like: Tensor) -> None:
        self.block_size = block_size
        self.layout: StepLayout | None = None
        self._pool_of: dict[nn.Module, LayerPool] = {}
        for module, shape in zip(probe.modules, probe.shapes, strict=True):
            size = (num_networks, shape.num_kv_heads, num_blocks)
            keys = torch.zeros(*size, block_size * shape.key_width, dtype=like.dtype, device=like.device)
            values = torch.zeros(*size, block_size * shape.value_width, dtype=like.dtype, device=like.device)
            self._pool_of[module] = LayerPool(keys, values)

    def __call__(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        """Write the step's keys and values, then attend: [S, Q, N, D] -> [S, N, Q, D]."""
        layout = self.layout
        assert layout is not None, "a step has a layout"
        pool = self._pool_of[module]
        scaling, window, softcap = _scaling(query, options), options.get("sliding_window"), options.get("softcap")
        keys, values = self._tokens(pool.keys, key.shape[3]), self._tokens(pool.values, value.shape[3])
        keys.index_copy_(2, layout.slots_N, key)
        values.index_copy_(2, layout.slots_N, value)
        parts = []
        if len(layout.lengths_B):
            parts.append(self._decode(query[:, :, : len(layout.lengths_B)], pool, layout, scaling, window, softcap))
        for prefill in layout.prefills:
            parts.append(self._prefill(query, key, value, (keys, values), prefill, scaling, window, softcap))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _tokens(self, pool: Tensor, width: int) -> Tensor:
        """A pool seen as places of tokens: [S, H, blocks * block size, D]."""
        return pool.view(*pool.shape[:2], -1, width)

    def _decode(
        self,
        query: Tensor,
        pool: LayerPool,
        layout: StepLayout,
        scaling: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """One token of each of B sequences: [S, Q, B, D] -> [S, B, Q, D]."""
        num_networks, num_queries, num_sequences, key_width = query.shape
        num_kv_heads = pool.keys.shape[1]
        group = num_queries // num_kv_heads
        blocks = layout.block_table.flatten()
        batch = num_networks * num_kv_heads * num_sequences
        length = layout.block_table.shape[1] * self.block_size
        keys = pool.keys.index_select(2, blocks).view(batch, length, key_width)
        values = pool.values.index_select(2, blocks).view(batch, length, -1)
        rows = query.view(num_networks, num_kv_heads, group, num_sequences, key_width).transpose(2, 3)
        scores = torch.bmm(rows.reshape(batch, group, key_width) * scaling, keys.transpose(1, 2))
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        scores = scores.view(-1, num_sequences, group, length) + layout.mask(window, self.block_size, scores.dtype)
        probs = scores.softmax(-1, dtype=torch.float32).to(values.dtype)
        mixed = torch.bmm(probs.view(batch, group, length), values)
        mixed = mixed.view(num_networks, num_kv_heads, num_sequences, group, -1)
        return mixed.transpose(1, 2).reshape(num_networks, num_sequences, num_queries, -1)

    def _prefill(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        pool: tuple[Tensor, Tensor],
        prefill: Prefill,
        scaling: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """Consecutive tokens of a sequence, or of several without context: [S, Q, N, D] -> [S, L, Q, D]."""
        num_sequences, count = prefill.num_sequences, prefill.count
        rows = slice(prefill.start, prefill.start + num_sequences * count)

        def split(tensor: Tensor) -> Tensor:
            part = tensor[:, :, rows]
            part = part.reshape(part.shape[0], part.shape[1], num_sequences, count, part.shape[3])
            return part.transpose(1, 2).flatten(0, 1)  # [S * sequences, heads, tokens, D]

        if prefill.context_slots_C is not None:
            key, value = (part.index_select(2, prefill.context_slots_C) for part in pool)
        else:
            key, value = split(key), split(value)
        mixed = attend_dense(split(query), key, value, scaling, window, softcap)
        return mixed.transpose(1, 2).reshape(query.shape[0], num_sequences * count, query.shape[1], -1)
