"""Attention over paged keys and values: where they lie, and how the tokens of one step attend to them.

One block table serves all networks: the pools of a stack hold, per layer, a block's tokens of all its networks side by
side. Tokens of many sequences lie in one row of N. Legend: S networks of a stack, Q query heads, H key-value
heads, N tokens of a step, B decoding sequences, E places that are read, C cells of the table of all sequences' blocks,
M shared places, R sequences that share one, D head width.
"""

import math
from collections.abc import Sequence as Ordered
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
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
    context_blocks: Tensor | None
    """Blocks of all its tokens up to the last of this chunk; None = there are none before this chunk."""
    context_length: int = 0


NULL_BLOCK = 0
"""Place of padding; a block numbered b lies at place b + 1."""


@dataclass(frozen=True)
class Shared:
    """Blocks that several decoding sequences look at: read once, for all of them together."""

    places_M: Tensor
    rows_MR: Tensor
    """Sequences that look at each, padded with any."""
    cells_MR: Tensor
    """Where each of these stands in the table of all sequences, flattened."""


@dataclass(frozen=True)
class Decoding:
    """One token of each of B sequences, and which blocks they look at.

    Scores are computed block by block, in the order of the pool: keys and values are read where they lie, in one
    sweep, and never copied. Only the scores are brought into the order of the sequences.
    """

    places_E: Tensor | None
    """Places that are read, in order; None = all from the first on."""
    num_places: int
    row_E: Tensor
    """A sequence that looks at each place."""
    cell_E: Tensor
    """Where that place stands in the table of all sequences, flattened; any padding for the null block."""
    entry_C: Tensor
    """For each cell of the table, which of the scores it takes; the null block's for padding."""
    num_cells: int
    """Cells of each sequence."""
    lengths_B: Tensor
    """Tokens of each sequence, the current one included."""
    shared: Shared | None
    masks: dict[int | None, Tensor] = field(default_factory=dict)
    """Made on first use in the step: window -> additive mask [B, 1, 1, positions]."""

    def mask(self, window: int | None, block_size: int) -> Tensor:
        """0 where a sequence may look, -inf elsewhere."""
        if window not in self.masks:
            position_P = torch.arange(self.num_cells * block_size, device=self.lengths_B.device)
            is_hidden_BP = position_P >= self.lengths_B[:, None]
            if window is not None:
                is_hidden_BP |= position_P < self.lengths_B[:, None] - window
            zeros_BP = torch.zeros(is_hidden_BP.shape, device=position_P.device)
            self.masks[window] = zeros_BP.masked_fill(is_hidden_BP, -math.inf)[:, None, None]
        return self.masks[window]


def lay_out_decoding(tables: Ordered[Ordered[int]], lengths: Ordered[int], device: torch.device) -> Decoding:
    """What the sequences with these block tables and lengths look at."""
    num_rows, num_cells = len(tables), max(map(len, tables))
    table_BC = np.zeros((num_rows, num_cells), dtype=np.int64)
    for row, blocks in enumerate(tables):
        table_BC[row, : len(blocks)] = blocks
        table_BC[row, : len(blocks)] += 1
    table = table_BC.ravel()
    uses = np.bincount(table)
    uses[NULL_BLOCK] = 0
    used = np.flatnonzero(uses)
    num_places = len(uses)
    places_E, entry_C = None, table
    if 3 * len(used) < num_places:  # mostly holes: a copy of what is used moves less than a sweep over all
        places_E = np.concatenate(([NULL_BLOCK], used))
        entry_of_place = np.zeros(num_places, dtype=np.int64)
        entry_of_place[places_E] = np.arange(len(places_E))
        entry_C, num_places = entry_of_place[table], len(places_E)
    cell_E = np.zeros(num_places, dtype=np.int64)
    cell_E[entry_C] = np.arange(len(table))  # of several cells of one place the last remains
    shared = None
    if uses.max() > 1:
        entry_C = entry_C.copy()
        shared = _lay_out_shared(table, uses, entry_C, num_places, num_cells, device)
    return Decoding(
        places_E=None if places_E is None else torch.from_numpy(places_E).to(device),
        num_places=num_places,
        row_E=torch.from_numpy(cell_E // num_cells).to(device),
        cell_E=torch.from_numpy(cell_E).to(device),
        entry_C=torch.from_numpy(entry_C).to(device),
        num_cells=num_cells,
        lengths_B=torch.tensor(lengths, dtype=torch.int64).to(device),
        shared=shared,
    )


def _lay_out_shared(
    table: NDArray[np.int64],
    uses: NDArray[np.int64],
    entry_C: NDArray[np.int64],
    first_entry: int,
    num_cells: int,
    device: torch.device,
) -> Shared:
    """Group the cells of places that several sequences look at; their entries follow all others'."""
    places_M = np.flatnonzero(uses > 1)
    width = int(uses.max())
    cells_MR = np.zeros((len(places_M), width), dtype=np.int64)
    for number, place in enumerate(places_M):
        cells = np.flatnonzero(table == place)
        cells_MR[number, : len(cells)] = cells
        entry_C[cells] = first_entry + number * width + np.arange(len(cells))
    return Shared(
        places_M=torch.from_numpy(places_M).to(device),
        rows_MR=torch.from_numpy(cells_MR // num_cells).to(device),
        cells_MR=torch.from_numpy(cells_MR).to(device),
    )


@dataclass(frozen=True)
class StepLayout:
    """Where the tokens of a step are written and what they look at; decoding rows come first."""

    places_N: Tensor
    """Place of each token's block."""
    offsets_N: Tensor
    """Its position within the block."""
    decoding: Decoding | None
    prefills: tuple[Prefill, ...]


@dataclass
class LayerPool:
    """Keys and values of one layer of a stack."""

    keys: Tensor
    """[places, S * H, block size, D]"""
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
        self.num_networks = num_networks
        self.layout: StepLayout | None = None
        self._pool_of: dict[nn.Module, LayerPool] = {}
        for module, shape in zip(probe.modules, probe.shapes, strict=True):
            size = (num_blocks + 1, num_networks * shape.num_kv_heads, block_size)
            self._pool_of[module] = LayerPool(
                like.new_zeros(*size, shape.key_width), like.new_zeros(*size, shape.value_width)
            )

    def __call__(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        """Write the step's keys and values, then attend: [S, Q, N, D] -> [S, N, Q, D]."""
        layout = self.layout
        assert layout is not None, "a step has a layout"
        pool = self._pool_of[module]
        scaling, window, softcap = _scaling(query, options), options.get("sliding_window"), options.get("softcap")
        pool.keys.transpose(1, 2)[layout.places_N, layout.offsets_N] = key.flatten(0, 1).transpose(0, 1)
        pool.values.transpose(1, 2)[layout.places_N, layout.offsets_N] = value.flatten(0, 1).transpose(0, 1)
        parts = []
        if layout.decoding is not None:
            num_rows = len(layout.decoding.lengths_B)
            parts.append(self._decode(query[:, :, :num_rows] * scaling, pool, layout.decoding, window, softcap))
        for prefill in layout.prefills:
            parts.append(self._prefill(query, key, value, pool, prefill, scaling, window, softcap))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _decode(
        self, query: Tensor, pool: LayerPool, decoding: Decoding, window: int | None, softcap: float | None
    ) -> Tensor:
        """One token of each of B sequences: [S, Q, B, D] -> [S, B, Q, D]."""
        num_networks, num_queries, num_rows, width = query.shape
        num_heads, size = pool.keys.shape[1], self.block_size  # of all networks
        group = num_networks * num_queries // num_heads
        rows = query.reshape(num_heads, group, num_rows, width).permute(2, 0, 1, 3).reshape(num_rows, -1)
        keys, values = _read(pool.keys, decoding), _read(pool.values, decoding)
        scores = _block_scores(rows.index_select(0, decoding.row_E), keys, group)
        shared, num_own = decoding.shared, len(keys)
        if shared is not None:
            shared_keys, shared_values = pool.keys[shared.places_M], pool.values[shared.places_M]
            scores = torch.cat([scores, _shared_scores(rows, shared, shared_keys, group)])
        # From blocks to sequences: [B, cells, heads * group, size] -> [B, heads * group, 1, positions]
        scores = scores.index_select(0, decoding.entry_C).view(num_rows, -1, num_heads * group, size)
        scores = scores.transpose(1, 2).reshape(num_rows, num_heads * group, 1, -1)
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        probs = (scores + decoding.mask(window, size)).softmax(-1).to(values.dtype)
        # And back: [cells of all, heads, group, size]
        probs = probs.view(num_rows, num_heads * group, -1, size).transpose(1, 2)
        probs = probs.reshape(num_rows * decoding.num_cells, -1)
        mixed = _block_mixtures(probs.index_select(0, decoding.cell_E), values, group)
        if shared is not None:
            mixed = torch.cat([mixed[:num_own], _shared_mixtures(probs, shared, shared_values, group)])
        mixed = mixed.index_select(0, decoding.entry_C).view(num_rows, decoding.num_cells, -1).sum(1)
        mixed = mixed.view(num_rows, num_networks, num_queries, -1)
        return mixed.transpose(0, 1)

    def _prefill(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        pool: LayerPool,
        prefill: Prefill,
        scaling: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """Consecutive tokens of a sequence, or of several without context: [S, Q, N, D] -> [S, L, Q, D]."""
        num_networks, num_sequences, count = query.shape[0], prefill.num_sequences, prefill.count
        rows = slice(prefill.start, prefill.start + num_sequences * count)

        def split(tensor: Tensor) -> Tensor:
            part = tensor[:, :, rows]
            part = part.reshape(num_networks, part.shape[1], num_sequences, count, part.shape[3])
            return part.transpose(1, 2).flatten(0, 1)  # [S * sequences, heads, tokens, D]

        def context(tensor: Tensor, blocks: Tensor) -> Tensor:
            part = tensor.index_select(0, blocks).transpose(0, 1).flatten(1, 2)
            return part[:, : prefill.context_length].unflatten(0, (num_networks, -1))  # type: ignore[no-untyped-call, no-any-return]

        if prefill.context_blocks is not None:
            blocks = prefill.context_blocks
            key, value = context(pool.keys, blocks), context(pool.values, blocks)
        else:
            key, value = split(key), split(value)
        mixed = attend_dense(split(query), key, value, scaling, window, softcap)
        return mixed.transpose(1, 2).reshape(num_networks, num_sequences * count, query.shape[1], -1)


def _read(pool: Tensor, decoding: Decoding) -> Tensor:
    """Keys or values of the places that are read, where they lie if possible: [E, heads, size, D]."""
    return pool[: decoding.num_places] if decoding.places_E is None else pool.index_select(0, decoding.places_E)


def _block_scores(rows: Tensor, keys: Tensor, group: int) -> Tensor:
    """One sequence's queries against each block: [E, heads * group * D] -> [E, heads * group * size]."""
    num_entries, num_heads, size, width = keys.shape
    queries = rows.view(num_entries * num_heads, group, width)
    return torch.bmm(queries, keys.view(-1, size, width).transpose(1, 2)).view(num_entries, -1)


def _block_mixtures(probs: Tensor, values: Tensor, group: int) -> Tensor:
    """One sequence's share of each block's values: [E, heads * group * size] -> [E, heads * group * D]."""
    num_entries, num_heads, size, width = values.shape
    weights = probs.view(num_entries * num_heads, group, size)
    return torch.bmm(weights, values.view(-1, size, width)).view(num_entries, -1)


def _shared_scores(rows: Tensor, shared: Shared, keys: Tensor, group: int) -> Tensor:
    """Queries of all the sequences that share each block: [M * R, heads * group * size]."""
    (num_places, num_rows), num_heads, width = shared.rows_MR.shape, keys.shape[1], keys.shape[3]
    queries = rows[shared.rows_MR].view(num_places, num_rows, num_heads, group, width).transpose(1, 2)
    scores = queries.reshape(num_places, num_heads, num_rows * group, width) @ keys.transpose(2, 3)
    scores = scores.view(num_places, num_heads, num_rows, group, -1).transpose(1, 2)
    return scores.reshape(num_places * num_rows, -1)


def _shared_mixtures(probs: Tensor, shared: Shared, values: Tensor, group: int) -> Tensor:
    """Shares of all the sequences that share each block: [M * R, heads * group * D]."""
    (num_places, num_rows), num_heads, size = shared.rows_MR.shape, values.shape[1], values.shape[2]
    weights = probs[shared.cells_MR].view(num_places, num_rows, num_heads, group, size).transpose(1, 2)
    mixed = weights.reshape(num_places, num_heads, num_rows * group, size) @ values
    mixed = mixed.view(num_places, num_heads, num_rows, group, -1).transpose(1, 2)
    return mixed.reshape(num_places * num_rows, -1)
