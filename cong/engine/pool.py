"""Where keys and values lie: one pool per layer of a stack, cut into blocks under numbers that all networks share.

Legend: S networks of a stack, H key-value heads, D head width.
"""

from collections.abc import Sequence as Ordered
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Places = NDArray[np.int64]
"""Places of sequences' blocks, one row each, filled up with the null block."""

NULL_BLOCK = 0
"""Place of padding; a block numbered b lies at place b + 1."""
NO_BLOCK = NULL_BLOCK - 1
"""Number of the block whose place that is."""


@dataclass
class LayerPool:
    """Keys and values of one layer of a stack."""

    keys: Tensor
    """[places, S * H, block size, D]"""
    values: Tensor

    @property
    def block_size(self) -> int:
        """Tokens of a block."""
        return self.keys.shape[2]

    def write(self, key: Tensor, value: Tensor, places_N: Tensor, offsets_N: Tensor) -> None:
        """Keep the keys and values [S, H, N, D] of N tokens, each at a place and an offset of its own."""
        self.keys.transpose(1, 2)[places_N, offsets_N] = key.flatten(0, 1).transpose(0, 1)
        self.values.transpose(1, 2)[places_N, offsets_N] = value.flatten(0, 1).transpose(0, 1)


@dataclass(frozen=True)
class Options:
    """What a layer asks of its attention."""

    scaling: float
    window: int | None
    """Tokens that a token looks back on, itself included; None = all."""
    softcap: float | None
    """Scores are squeezed into plus or minus this; None = they are not."""


def places_of(tables: Ordered[Ordered[int]]) -> Places:
    """The block tables of several sequences as one array of places."""
    places = np.full((len(tables), max(map(len, tables))), NULL_BLOCK, dtype=np.int64)
    for row, blocks in enumerate(tables):
        places[row, : len(blocks)] = blocks
        places[row, : len(blocks)] += 1
    return places
