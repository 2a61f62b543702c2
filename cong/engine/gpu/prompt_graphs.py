"""Graphs of steps that hold prompts: so many tokens, in whatever chunks.

Sequences that decode are there too, a tile each. What a step has too few of, tokens, tiles or rows of logits, is made
up by nobody's: kept in the null block, computed in the last row, which is never anybody's. Legend: N tokens of a graph,
S single tokens, T tiles of prompts, R rows with logits.
"""

from collections.abc import Sequence as Ordered

import torch
from torch import Tensor

from cong.engine.gpu.block_tables import BlockTables
from cong.engine.gpu.recorder import Compute, Recorder
from cong.engine.gpu.tile_attention import PROMPT_TOKENS, TiledLayout, Tiles
from cong.engine.gpu.tiles import Run, cut_tiles
from cong.engine.transfer import Staged

_SMALLEST = 64


class PromptGraphs:
    """Graphs of a few sizes, each twice the one before."""

    def __init__(
        self, run: Run, max_tokens: int, tables: BlockTables, recorder: Recorder, device: torch.device
    ) -> None:
        self._tables = tables
        self._sizes = token_sizes(max_tokens)
        largest, max_rows = self._sizes[-1], tables.max_rows

        def numbers(*shape: int, dtype: torch.dtype = torch.int32) -> Staged:
            return Staged(torch.zeros(shape, dtype=dtype, device=device))

        self._tokens = numbers(2, largest, dtype=torch.int64)
        """Ids and positions."""
        self._sequences = numbers(largest)
        self._single = numbers(4, max_rows)
        """As `cut_tiles` tells them: rows, tokens, positions, sequences."""
        self._prompts = numbers(4, num_tiles(largest, max_rows))
        self._logit_rows = numbers(max_rows, dtype=torch.int64)
        self._graphs = {size: recorder.record(self._computing(run, size)) for size in reversed(self._sizes)}

    def _computing(self, run: Run, size: int) -> Compute:
        ids, positions = self._tokens.there[:, :size]
        prompts_4T = self._prompts.there[:, : num_tiles(size, self._tables.max_rows)]
        kinds = (
            Tiles.of_rows(self._single.there, are_single=True),
            Tiles.of_rows(prompts_4T, are_single=False),
        )
        layout = TiledLayout(self._tables.table_BC, self._sequences.there[:size], positions, kinds)
        return lambda: run(ids, positions, layout, self._logit_rows.there)

    def replay(
        self,
        token_ids: Ordered[int],
        starts: Ordered[int],
        counts: Ordered[int],
        tables: Ordered[list[int]],
        logit_rows: Ordered[int],
    ) -> tuple[Tensor, ...]:
        """Logits [R, V] of every network for these rows, overwritten by the next replay.

        None where no graph is so large.
        """
        size = next((size for size in self._sizes if size > len(token_ids)), None)
        if size is None or len(logit_rows) > self._tables.max_rows:
            return ()
        sequences_N, positions_N, single_4S, prompts_4T = cut_tiles(starts, counts)
        tokens = self._tokens.numbers()
        tokens[:] = 0
        tokens[0, : len(token_ids)] = token_ids
        tokens[1, : len(token_ids)] = positions_N
        sequences = self._sequences.numbers()
        sequences[:] = self._tables.nobody
        sequences[: len(token_ids)] = sequences_N
        of_nobody = [[size - 1], [1], [0], [self._tables.nobody]]
        for staged, tiles in ((self._single.numbers(), single_4S), (self._prompts.numbers(), prompts_4T)):
            staged[:] = of_nobody
            staged[:, : tiles.shape[1]] = tiles
        rows = self._logit_rows.numbers()
        rows[:] = 0
        rows[: len(logit_rows)] = logit_rows
        for sent in (self._tokens, self._sequences, self._single, self._prompts, self._logit_rows):
            sent.send()
        self._tables.write(tables, len(tables))
        return tuple(each[: len(logit_rows)] for each in self._graphs[size]())


def token_sizes(max_tokens: int) -> tuple[int, ...]:
    """Sizes of graphs for steps of up to `max_tokens` tokens: each holds a tile more than a power of two."""
    sizes = [_SMALLEST]
    while sizes[-1] < max_tokens:
        sizes.append(2 * sizes[-1])
    return tuple(size + PROMPT_TOKENS for size in sizes)


def num_tiles(num_tokens: int, max_chunks: int) -> int:
    """Tiles that so many tokens in so many chunks take at most."""
    return num_tokens // PROMPT_TOKENS + max_chunks
