"""The block tables of a step's sequences on the device, of which only what has changed is written down again."""

from collections.abc import Sequence as Ordered

import torch
from torch import Tensor

from cong.engine.pool import NULL_BLOCK
from cong.engine.transfer import Staged

_NOBODY: tuple[Ordered[int], int] = ((), 0)


class BlockTables:
    """Places of so many sequences' blocks, a row each, and one more row of nobody's."""

    def __init__(self, max_rows: int, max_blocks: int, device: torch.device) -> None:
        self.max_rows = max_rows
        self._places = Staged(torch.full((max_rows + 1, max_blocks), NULL_BLOCK, dtype=torch.int32, device=device))
        self._held: list[tuple[Ordered[int], int]] = [_NOBODY] * max_rows
        """Which blocks each row holds, and how many: they grow at their end only."""

    @property
    def table_BC(self) -> Tensor:
        """On the device."""
        return self._places.there

    @property
    def nobody(self) -> int:
        """The row in which no block is."""
        return self.max_rows

    def write(self, tables: Ordered[list[int]], num_rows: int) -> None:
        """Let the first rows hold these sequences' blocks, and the others up to `num_rows` nobody's.

        A table is a sequence's own list of blocks: it is read again when it is another list, or has grown.
        """
        staged = self._places.numbers()
        has_changed = False
        for row, blocks in enumerate(tables):
            known, num_known = self._held[row]
            if known is not blocks or num_known != len(blocks):
                first = num_known if known is blocks else 0
                staged[row, first : len(blocks)] = blocks[first:]
                staged[row, first : len(blocks)] += 1  # places
                self._held[row] = blocks, len(blocks)
                has_changed = True
        for row in range(len(tables), num_rows):
            if self._held[row] != _NOBODY:
                staged[row, 0] = NULL_BLOCK
                self._held[row] = _NOBODY
                has_changed = True
        if has_changed:
            self._places.send(num_rows)
