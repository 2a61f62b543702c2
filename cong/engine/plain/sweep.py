"""Attention of decoding rows in torch alone: one sweep over the blocks where they lie.

The way for devices without a kernel of our own, and the oracle for the one on the CPU. Legend: S networks of a stack,
Q query heads, H key-value heads, B decoding sequences, E places that are read, C cells of the table of all sequences'
blocks, M shared places, R sequences that share one, D head width.
"""

import math
from collections.abc import Sequence as Ordered
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cong.engine.pool import NULL_BLOCK, LayerPool, Options, Places


@dataclass(frozen=True)
class Shared:
    """Blocks that several decoding sequences look at: read once, for all of them together."""

    places_M: Tensor
    rows_MR: Tensor
    """Sequences that look at each, padded with any."""
    cells_MR: Tensor
    """Where each of these stands in the table of all sequences, flattened."""


@dataclass(frozen=True)
class Sweep:
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
    places_B: Tensor
    """Place of each sequence's current token."""
    shared: Shared | None
    masks: dict[int | None, Tensor] = field(default_factory=dict)
    """Made on first use in the step: window -> additive mask [B, 1, 1, positions]."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, pool: LayerPool, options: Options) -> Tensor:
        """Keep the rows' keys and values, then attend: [S, Q, B, D] of query to [S, B, Q, D]."""
        pool.write(key, value, self.places_B, (self.lengths_B - 1) % pool.block_size)
        query = query * options.scaling
        num_networks, num_queries, num_rows, width = query.shape
        num_heads, size = pool.keys.shape[1], pool.block_size  # heads of all networks
        group = num_networks * num_queries // num_heads
        rows = query.reshape(num_heads, group, num_rows, width).permute(2, 0, 1, 3).reshape(num_rows, -1)
        keys, values = self._read(pool.keys), self._read(pool.values)
        scores = _block_scores(rows.index_select(0, self.row_E), keys, group)
        scores[NULL_BLOCK] = 0.0  # some row's, and every row's padding
        shared, num_own = self.shared, len(keys)
        if shared is not None:
            shared_keys, shared_values = pool.keys[shared.places_M], pool.values[shared.places_M]
            scores = torch.cat([scores, _shared_scores(rows, shared, shared_keys, group)])
        # From blocks to sequences: [B, cells, heads * group, size] -> [B, heads * group, 1, positions]
        scores = scores.index_select(0, self.entry_C).view(num_rows, -1, num_heads * group, size)
        scores = scores.transpose(1, 2).reshape(num_rows, num_heads * group, 1, -1)
        if options.softcap is not None:
            scores = torch.tanh(scores / options.softcap) * options.softcap
        probs = (scores + self._mask(options.window, size)).softmax(-1).to(values.dtype)
        # And back: [cells of all, heads, group, size]
        probs = probs.view(num_rows, num_heads * group, -1, size).transpose(1, 2)
        probs = probs.reshape(num_rows * self.num_cells, -1)
        mixed = _block_mixtures(probs.index_select(0, self.cell_E), values, group)
        mixed[NULL_BLOCK] = 0.0
        if shared is not None:
            mixed = torch.cat([mixed[:num_own], _shared_mixtures(probs, shared, shared_values, group)])
        mixed = mixed.index_select(0, self.entry_C).view(num_rows, self.num_cells, -1).sum(1)
        mixed = mixed.view(num_rows, num_networks, num_queries, -1)
        return mixed.transpose(0, 1)

    def _read(self, pool: Tensor) -> Tensor:
        """Keys or values of the places that are read, where they lie if possible: [E, heads, size, D]."""
        return pool[: self.num_places] if self.places_E is None else pool.index_select(0, self.places_E)

    def _mask(self, window: int | None, block_size: int) -> Tensor:
        """0 where a sequence may look, -inf elsewhere."""
        if window not in self.masks:
            position_P = torch.arange(self.num_cells * block_size, device=self.lengths_B.device)
            is_hidden_BP = position_P >= self.lengths_B[:, None]
            if window is not None:
                is_hidden_BP |= position_P < self.lengths_B[:, None] - window
            zeros_BP = torch.zeros(is_hidden_BP.shape, device=position_P.device)
            self.masks[window] = zeros_BP.masked_fill(is_hidden_BP, -math.inf)[:, None, None]
        return self.masks[window]


def lay_out_sweep(table_BC: Places, lengths: Ordered[int], block_size: int, device: torch.device) -> Sweep:
    """What the sequences with these places and lengths look at."""
    num_rows, num_cells = table_BC.shape
    last_B = (np.array(lengths, dtype=np.int64) - 1) // block_size
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
    return Sweep(
        places_E=None if places_E is None else torch.from_numpy(places_E).to(device),
        num_places=num_places,
        row_E=torch.from_numpy(cell_E // num_cells).to(device),
        cell_E=torch.from_numpy(cell_E).to(device),
        entry_C=torch.from_numpy(entry_C).to(device),
        num_cells=num_cells,
        lengths_B=torch.tensor(lengths, dtype=torch.int64).to(device),
        places_B=torch.from_numpy(table_BC[np.arange(num_rows), last_B]).to(device),
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
