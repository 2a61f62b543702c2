"""How the tokens of a step attend in torch's own operators: prompts densely, decoding rows in one sweep.

Legend: S networks of a stack, Q query heads, H key-value heads, N tokens of a step, T sequences of a step, B sequences
that attend together, L and C positions of queries and keys, D head width.
"""

import math
from collections.abc import Sequence as Ordered
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from cong.engine.plain.sweep import Sweep, lay_out_sweep
from cong.engine.pool import LayerPool, Options, Places


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


@dataclass(frozen=True)
class PlainLayout:
    """Where the tokens of a step are kept and what they look at; decoding rows come first."""

    num_decoding: int
    """Rows that are one token of a sequence each."""
    decoding: Sweep | None
    prefills: tuple[Prefill, ...]
    places_N: Tensor
    """Place of the block of each token that is not decoding."""
    offsets_N: Tensor
    """Its position within the block."""
    begun_F: Tensor
    """Places of blocks that the step begins and does not fill."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, pool: LayerPool, options: Options) -> Tensor:
        """Keep the step's keys and values, then attend: [S, Q, N, D] of query to [S, N, Q, D]."""
        split = self.num_decoding
        parts = []
        if len(self.begun_F):  # a sweep meets what lies behind the last token, with weight 0, which only numbers bear
            pool.keys[self.begun_F] = pool.values[self.begun_F] = 0.0
        if self.prefills:
            # Before anybody attends: a decoding row may look at a prompt that is computed in the same step.
            pool.write(key[:, :, split:], value[:, :, split:], self.places_N, self.offsets_N)
        if self.decoding is not None:
            rows = slice(split)
            parts.append(self.decoding.attend(query[:, :, rows], key[:, :, rows], value[:, :, rows], pool, options))
        parts += [prefill.attend(query, key, value, pool, options) for prefill in self.prefills]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def lay_out_plainly(
    places_TC: Places,
    starts: Ordered[int],
    counts: Ordered[int],
    num_decoding: int,
    block_size: int,
    device: torch.device,
) -> PlainLayout:
    """Sequences that compute `count` tokens each from position `start` on; those that decode come first."""
    decoding = None
    if num_decoding:
        lengths = [start + 1 for start in starts[:num_decoding]]
        num_cells = -(-max(lengths) // block_size)
        decoding = lay_out_sweep(places_TC[:num_decoding, :num_cells], lengths, block_size, device)
    stops_T = np.add(starts, counts)
    last_T = stops_T // block_size
    is_begun_T = (last_T * block_size >= starts) & (stops_T % block_size > 0)
    prefills: list[Prefill] = []
    positions: list[int] = []
    places: list[int] = []
    row = num_decoding
    for number in range(num_decoding, len(counts)):
        places_C, start, count = places_TC[number], starts[number], counts[number]
        stop = start + count
        last = prefills[-1] if prefills else None
        if start > 0:
            context = torch.from_numpy(places_C[: -(-stop // block_size)]).to(device)
            prefills.append(Prefill(row, 1, count, context, stop))
        elif last is not None and last.context_blocks is None and last.count == count:
            # Neighbours of equal length without context attend together.
            prefills[-1] = Prefill(last.start, last.num_sequences + 1, count, None)
        else:
            prefills.append(Prefill(row, 1, count, None))
        positions += range(start, stop)
        places += places_C[np.arange(start, stop) // block_size].tolist()
        row += count
    return PlainLayout(
        num_decoding=num_decoding,
        decoding=decoding,
        prefills=tuple(prefills),
        places_N=torch.tensor(places, dtype=torch.int64, device=device),
        offsets_N=torch.tensor([position % block_size for position in positions], dtype=torch.int64, device=device),
        begun_F=torch.from_numpy(places_TC[is_begun_T, last_T[is_begun_T]]).to(device),
    )
