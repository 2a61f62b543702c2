"""How the chunks of a step are cut into tiles, and where those lie on a GPU.

Legend: N tokens of a step, T tiles, R rows with logits, V tokens of the vocabulary.
"""

import importlib.util
import logging
from collections.abc import Callable
from collections.abc import Sequence as Ordered

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cong.config.engine import KernelChoice
from cong.engine.gpu.tile_attention import PROMPT_TOKENS, TiledLayout, Tiles
from cong.engine.pool import Places
from cong.engine.transfer import to_device
from cong.errors import KernelUnavailable

logger = logging.getLogger(__name__)

Numbers = NDArray[np.int64]

_ALIGNED = 4
"""Numbers of 32 bits in the 16 bytes by which Triton tells addresses apart."""


def has_tiles(choice: KernelChoice, device: torch.device) -> bool:
    """Whether the step attends in tiles: on a GPU, where triton is installed."""
    if choice == "torch" or device.type != "cuda":
        return False
    if importlib.util.find_spec("triton") is not None:
        return True
    missing = "triton is not installed; install it as torch for CUDA brings it, or set engine.kernel to torch"
    if choice == "compiled":
        raise KernelUnavailable(missing)
    logger.warning("attention runs in torch alone, which is slower: %s", missing)
    return False


def cut_tiles(positions: Ordered[int], counts: Ordered[int]) -> tuple[Numbers, Numbers, Numbers, Numbers]:
    """Chunks in tiles, given the position of each one's first token and its tokens; those of one token come first.

    The sequence and the position of every token [N], then tiles of single tokens and of prompts [4, T]: rows, tokens,
    positions, sequences.
    """
    sequences_N = np.repeat(np.arange(len(counts)), counts)
    positions_N = np.concatenate([np.arange(p, p + n) for p, n in zip(positions, counts, strict=True)])
    num_single = next((number for number, count in enumerate(counts) if count != 1), len(counts))
    single = np.arange(num_single)
    single_4T = np.stack([single, np.ones_like(single), positions_N[:num_single], single])
    cut: list[tuple[int, int, int, int]] = []
    row = num_single
    for sequence in range(num_single, len(counts)):
        position, count = positions[sequence], counts[sequence]
        for start in range(0, count, PROMPT_TOKENS):
            cut.append((row + start, min(PROMPT_TOKENS, count - start), position + start, sequence))
        row += count
    return sequences_N, positions_N, single_4T, np.array(cut, dtype=np.int64).reshape(-1, 4).T


def lay_out_tiles(places: Places, positions: Ordered[int], counts: Ordered[int], device: torch.device) -> TiledLayout:
    """The tiles of chunks, and each one's places, on the device."""
    sequences_N, positions_N, *kinds = cut_tiles(positions, counts)
    moved = _to_device([places.ravel(), sequences_N, positions_N, *(row for kind in kinds for row in kind)], device)
    table, sequences, first, *rows = moved
    tiles = Tiles.of_rows(rows[:4], are_single=True), Tiles.of_rows(rows[4:], are_single=False)
    return TiledLayout(table.view(places.shape), sequences, first, tuple(kind for kind in tiles if len(kind.rows_T)))


Run = Callable[[Tensor, Tensor, TiledLayout, Tensor | None], tuple[Tensor, ...]]
"""Token ids [N], positions [N], their layout, and rows [R] or None for all, to every network's logits [R, V]."""


def _to_device(arrays: Ordered[Numbers], device: torch.device) -> list[Tensor]:
    """All arrays in one transfer, each at an address that Triton takes for aligned: for others it compiles again."""
    starts = np.cumsum([0, *(-(-len(array) // _ALIGNED) * _ALIGNED for array in arrays)])
    packed = np.zeros(starts[-1], dtype=np.int32)
    for start, array in zip(starts, arrays, strict=False):
        packed[start : start + len(array)] = array
    moved = to_device(torch.from_numpy(packed), device)
    return [moved[start : start + len(array)] for start, array in zip(starts, arrays, strict=False)]
