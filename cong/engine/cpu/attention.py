"""How the tokens of a step attend on a CPU: every row by itself, by the compiled kernel.

Legend: S networks of a stack, Q query heads, N tokens of a step, T sequences of a step, C blocks of the longest, D head
width.
"""

from collections.abc import Sequence as Ordered
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cong.engine.pool import LayerPool, Options, Places


@dataclass(frozen=True)
class KernelLayout:
    """Rows of a step, and where everything lies that they look at."""

    places_TC: Tensor
    sequences_N: Tensor
    """Whose token each row is."""
    positions_N: Tensor

    def attend(self, query: Tensor, key: Tensor, value: Tensor, pool: LayerPool, options: Options) -> Tensor:
        """Keep the rows' keys and values, then attend: [S, Q, N, D] of query to [S, N, Q, D]."""
        out = query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[3])
        torch.ops.cong.paged_attention(
            *(tensor if tensor.stride(3) == 1 else tensor.contiguous() for tensor in (query, key, value)),
            pool.keys,
            pool.values,
            self.places_TC,
            self.sequences_N,
            self.positions_N,
            options.scaling,
            options.window or 0,
            options.softcap or 0.0,
            out,
        )
        return out


def lay_out_for_kernel(places_TC: Places, starts: Ordered[int], counts: Ordered[int]) -> KernelLayout:
    """What the kernel has to know of sequences that compute `count` tokens each from position `start` on."""
    counts_T = np.array(counts)
    sequences_N = np.repeat(np.arange(len(counts_T), dtype=np.int32), counts_T)
    within_N = np.arange(len(sequences_N)) - (np.cumsum(counts_T) - counts_T)[sequences_N]
    positions_N = (np.array(starts)[sequences_N] + within_N).astype(np.int32)
    return KernelLayout(torch.from_numpy(places_TC).int(), torch.from_numpy(sequences_N), torch.from_numpy(positions_N))
