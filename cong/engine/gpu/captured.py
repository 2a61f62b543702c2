"""Decoding steps of a few fixed sizes, captured as CUDA graphs and replayed: one launch instead of thousands.

A step of any number of rows runs in the smallest graph that holds it; the rows too many write to the null block.
Knows tiles and tensors, no sequences. Legend: N rows of a graph, B rows of a step, C blocks of the longest sequence.
"""

import logging
from collections.abc import Callable
from collections.abc import Sequence as Ordered
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cong.engine.gpu.tiles import TiledLayout, Tiles
from cong.engine.pool import NULL_BLOCK
from cong.engine.transfer import Mark

logger = logging.getLogger(__name__)

Run = Callable[[Tensor, Tensor, TiledLayout], tuple[Tensor, ...]]
"""Token ids [N], positions [N] and their layout to the logits [N, V] of every network."""

_NOBODY: tuple[Ordered[int], int] = ((), 0)
_SIZES = (2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256)


class CapturedDecoding:
    """Graphs of one token for each of so many sequences."""

    def __init__(self, run: Run, max_rows: int, max_blocks: int, device: torch.device) -> None:
        self._sizes = graph_sizes(max_rows)
        largest = self._sizes[-1]
        self._tokens = torch.zeros(2, largest, dtype=torch.int64, device=device)
        """Ids and positions."""
        self._table = torch.full((largest, max_blocks), NULL_BLOCK, dtype=torch.int32, device=device)
        self._staged_tokens = _pinned(self._tokens)
        self._staged_table = _pinned(self._table)
        self._tables: list[tuple[Ordered[int], int]] = [_NOBODY] * largest
        """Which blocks each row of the table holds, and how many: they grow at their end only."""
        # Graphs hold addresses, not tensors: whatever they read lives as long as they do.
        self._rows = torch.arange(largest, dtype=torch.int32, device=device)
        self._ones = torch.ones_like(self._rows)
        self._is_staged = Mark(device)
        self._graphs: dict[int, Callable[[], None]] = {}
        self._logits: tuple[Tensor, ...] = ()
        """Of the latest replay: one place for all graphs, for each would keep its own."""
        self._capture(run, device)

    @property
    def max_rows(self) -> int:
        """Rows of the largest graph."""
        return self._sizes[-1]

    def _capture(self, run: Run, device: torch.device) -> None:
        """Largest first, so that the others fit into its memory."""
        recorder = Recorder(device)
        for size in reversed(self._sizes):
            self._graphs[size] = recorder.record(partial(self._compute, run, size))

    def _compute(self, run: Run, size: int) -> None:
        (ids, positions), rows = self._tokens[:, :size], self._rows[:size]
        tiles = Tiles(rows, self._ones[:size], positions, rows, are_single=True)
        logits = run(ids, positions, TiledLayout(self._table[:size], rows, positions, (tiles,)))
        self._logits = self._logits or tuple(torch.empty_like(each) for each in logits)
        for kept, made in zip(self._logits, logits, strict=True):
            kept[:size].copy_(made)

    def replay(
        self, token_ids: Ordered[int] | Tensor, positions: Ordered[int], tables: Ordered[list[int]]
    ) -> tuple[Tensor, ...]:
        """Logits [B, V] of every network, overwritten by the next replay.

        Token ids come from the host or, as a tensor, lie on the device. A table is a sequence's own list of blocks: it
        is read again when it is another list, or has grown.
        """
        num_rows = len(token_ids)
        size = next(size for size in self._sizes if size >= num_rows)
        self._is_staged.wait()  # the last step's transfer has read what is overwritten now
        staged = self._staged_tokens.numpy()
        staged[0, :num_rows] = 0 if isinstance(token_ids, Tensor) else token_ids
        staged[1, :num_rows] = positions
        staged[:, num_rows:size] = 0
        self._tokens[0, :size].copy_(self._staged_tokens[0, :size], non_blocking=True)
        self._tokens[1, :size].copy_(self._staged_tokens[1, :size], non_blocking=True)
        if isinstance(token_ids, Tensor):
            self._tokens[0, :num_rows].copy_(token_ids)
        if self._stage_tables(tables, size):
            self._table[:size].copy_(self._staged_table[:size], non_blocking=True)
        self._is_staged.set()
        self._graphs[size]()
        return tuple(each[:num_rows] for each in self._logits)

    def _stage_tables(self, tables: Ordered[list[int]], size: int) -> bool:
        """Write down what has changed since the last step; whether anything has."""
        staged = self._staged_table.numpy()
        has_changed = False
        for row, blocks in enumerate(tables):
            known, num_known = self._tables[row]
            if known is not blocks or num_known != len(blocks):
                first = num_known if known is blocks else 0
                staged[row, first : len(blocks)] = blocks[first:]
                staged[row, first : len(blocks)] += 1  # places
                self._tables[row] = blocks, len(blocks)
                has_changed = True
        for row in range(len(tables), size):
            if self._tables[row] != _NOBODY:
                staged[row, 0] = NULL_BLOCK
                self._tables[row] = _NOBODY
                has_changed = True
        return has_changed


class Recorder:
    """Makes functions of tensors that stay where they are into graphs, which share their memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None

    def record(self, compute: Callable[[], None]) -> Callable[[], None]:
        """What does the same as `compute`, in one launch; elsewhere than on a GPU `compute` itself, called once."""
        if self._device.type != "cuda":
            compute()
            return compute
        side = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            compute()  # compiles what it needs, and allocates what it keeps
        torch.cuda.current_stream(self._device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            compute()
        self._pool = self._pool or graph.pool()
        return graph.replay


def _pinned(tensor: Tensor) -> Tensor:
    """A copy on the host from which a GPU reads while the host goes on."""
    return tensor.to("cpu", copy=True).pin_memory() if tensor.is_cuda else tensor.clone()


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
