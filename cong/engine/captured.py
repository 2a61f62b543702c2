"""Decoding steps of a few fixed sizes, captured as CUDA graphs and replayed: one launch instead of thousands.

A step of any number of rows runs in the smallest graph that holds it; the rows too many write to the null block.
Knows tiles and tensors, no sequences. Legend: N rows of a graph, B rows of a step, C blocks of the longest sequence.
"""

import logging
from collections.abc import Callable
from collections.abc import Sequence as Ordered
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cong.engine.pool import NULL_BLOCK, Places
from cong.engine.tiles import TiledLayout, Tiles

logger = logging.getLogger(__name__)

Run = Callable[[Tensor, Tensor, TiledLayout], tuple[Tensor, ...]]
"""Token ids [N], positions [N] and their layout to the logits [N, V] of every network."""

_SIZES = (2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256)


class CapturedDecoding:
    """Graphs of one token for each of so many sequences."""

    def __init__(self, run: Run, max_rows: int, max_blocks: int, device: torch.device) -> None:
        self._sizes = graph_sizes(max_rows)
        largest = self._sizes[-1]
        self._token_ids = torch.zeros(largest, dtype=torch.int64, device=device)
        self._positions = torch.zeros(largest, dtype=torch.int64, device=device)
        self._table = torch.full((largest, max_blocks), NULL_BLOCK, dtype=torch.int32, device=device)
        self._numbers = torch.empty(largest * (max_blocks + 4), dtype=torch.int32, device=device)
        self._staged = torch.empty(self._numbers.shape, dtype=torch.int32).pin_memory()
        # Graphs hold addresses, not tensors: whatever they read lives as long as they do.
        self._rows = torch.arange(largest, dtype=torch.int32, device=device)
        self._ones = torch.ones_like(self._rows)
        self._is_staged = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._logits: tuple[Tensor, ...] = ()
        """Of the latest replay: one place for all graphs, for each would keep its own."""
        self._capture(run, device)

    @property
    def max_rows(self) -> int:
        """Rows of the largest graph."""
        return self._sizes[-1]

    def _capture(self, run: Run, device: torch.device) -> None:
        """Largest first, so that the others fit into its memory."""
        pool: Any = None
        for size in reversed(self._sizes):
            ids, positions, rows = self._token_ids[:size], self._positions[:size], self._rows[:size]
            tiles = Tiles(rows, self._ones[:size], positions, rows, are_single=True)
            layout = TiledLayout(self._table[:size], rows, positions, (tiles,))
            side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(side):
                logits = run(ids, positions, layout)
                self._logits = self._logits or tuple(torch.empty_like(each) for each in logits)
            torch.cuda.current_stream(device).wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                for kept, made in zip(self._logits, run(ids, positions, layout), strict=True):
                    kept[:size].copy_(made)
            pool = pool or graph.pool()
            self._graphs[size] = graph

    def replay(self, token_ids: Ordered[int], positions: Ordered[int], places: Places) -> tuple[Tensor, ...]:
        """Logits [B, V] of every network, overwritten by the next replay."""
        num_rows, num_blocks = places.shape
        size = next(size for size in self._sizes if size >= num_rows)
        numbers = np.zeros((size, 2 + num_blocks), dtype=np.int32)
        numbers[:num_rows, 0] = token_ids
        numbers[:num_rows, 1] = positions
        numbers[:num_rows, 2:] = places
        self._is_staged.synchronize()  # the last step's transfer has read what is overwritten now
        self._staged[: numbers.size].copy_(torch.from_numpy(numbers).view(-1))
        moved = self._numbers[: numbers.size]
        moved.copy_(self._staged[: numbers.size], non_blocking=True)
        self._is_staged.record()
        moved = moved.view(numbers.shape)
        self._token_ids[:size].copy_(moved[:, 0])
        self._positions[:size].copy_(moved[:, 1])
        self._table[:size, :num_blocks].copy_(moved[:, 2:])
        self._graphs[size].replay()
        return tuple(each[:num_rows] for each in self._logits)


def graph_sizes(max_rows: int) -> tuple[int, ...]:
    """Sizes of graphs for steps of up to `max_rows` rows: close to each other, so that few rows are in vain."""
    below = [size for size in _SIZES if size < max_rows]
    above = range(_SIZES[-1] + 64, max_rows, 64)
    return (*below, *above, max(max_rows, _SIZES[0]))


def capture_decoding(run: Run, max_rows: int, max_blocks: int, device: torch.device) -> CapturedDecoding | None:
    """The graphs, or None, with a warning, where the networks' code cannot be captured."""
    try:
        return CapturedDecoding(run, max_rows, max_blocks, device)
    except RuntimeError as error:
        logger.warning("decoding is launched operator by operator, which is slower; capturing it failed: %s", error)
        return None
