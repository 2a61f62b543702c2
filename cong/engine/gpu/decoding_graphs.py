"""Graphs of one token for each of so many sequences.

A step of any number of rows runs in the smallest graph that holds it; the rows too many write to the null block.
Legend: N rows of a graph, B rows of a step.
"""

from collections.abc import Sequence as Ordered

import torch
from torch import Tensor

from cong.engine.gpu.block_tables import BlockTables
from cong.engine.gpu.recorder import Compute, Recorder
from cong.engine.gpu.tile_attention import TiledLayout, Tiles
from cong.engine.gpu.tiles import Run
from cong.engine.transfer import Staged

_SIZES = (2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256)


class DecodingGraphs:
    """Graphs of a few sizes, close to each other."""

    def __init__(self, run: Run, tables: BlockTables, recorder: Recorder, device: torch.device) -> None:
        self._tables = tables
        self._sizes = graph_sizes(tables.max_rows)
        # Graphs hold addresses, not tensors: whatever they read lives as long as they do.
        self._tokens = Staged(torch.zeros(2, self._sizes[-1], dtype=torch.int64, device=device))
        """Ids and positions."""
        self._rows = torch.arange(self._sizes[-1], dtype=torch.int32, device=device)
        self._ones = torch.ones_like(self._rows)
        self._graphs = {size: recorder.record(self._computing(run, size)) for size in reversed(self._sizes)}

    def _computing(self, run: Run, size: int) -> Compute:
        (ids, positions), rows = self._tokens.there[:, :size], self._rows[:size]
        tiles = Tiles(rows, self._ones[:size], positions, rows, are_single=True)
        layout = TiledLayout(self._tables.table_BC[:size], rows, positions, (tiles,))
        return lambda: run(ids, positions, layout, None)

    def replay(
        self, token_ids: Ordered[int] | Tensor, positions: Ordered[int], tables: Ordered[list[int]]
    ) -> tuple[Tensor, ...]:
        """Logits [B, V] of every network, overwritten by the next replay.

        Token ids come from the host or, as a tensor, lie on the device.
        """
        num_rows = len(token_ids)
        size = next(size for size in self._sizes if size >= num_rows)
        staged = self._tokens.numbers()
        staged[:] = 0
        staged[1, :num_rows] = positions
        if not isinstance(token_ids, Tensor):
            staged[0, :num_rows] = token_ids
        self._tokens.send()
        if isinstance(token_ids, Tensor):
            self._tokens.there[0, :num_rows].copy_(token_ids)
        self._tables.write(tables, size)
        return tuple(each[:num_rows] for each in self._graphs[size]())


def graph_sizes(max_rows: int) -> tuple[int, ...]:
    """Sizes of graphs for steps of up to `max_rows` rows: close to each other, so that few rows are in vain."""
    below = [size for size in _SIZES if size < max_rows]
    above = range(_SIZES[-1] + 64, max_rows, 64)
    return (*below, *above, max(max_rows, _SIZES[0]))
