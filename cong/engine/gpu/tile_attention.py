"""How tiles attend on a GPU: through the block table, in one launch for each kind of tile.

A tile is some consecutive tokens of one sequence. Keys and values of the step are kept before they are looked at, so a
tile finds its whole context in the pool. Legend: S networks of a stack, Q query heads, H key-value heads, N tokens of a
step, B sequences, C blocks of the longest, T tiles, D head width.
"""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from cong.engine.pool import LayerPool, Options
from cong.errors import KernelUnavailable

PROMPT_TOKENS = 16
"""Tokens of a tile of a prompt; each is as many rows of a product as query heads share a key-value head."""
_READ_BYTES = 2**15
"""Of keys and values that a tile looks at together, at most."""
_MAX_KEYS = 64
_NUM_STAGES = 3
"""Of reading ahead: all but one are in flight."""
_MIN_ROWS = 16
"""Rows of the smallest matrix product."""
_NUM_PROGRAMS = 256
"""Programs of a launch that keep a large GPU busy; with fewer, each context is split."""
_MAX_SPLITS = 16


@dataclass(frozen=True)
class Tiles:
    """Tiles of one kind."""

    rows_T: Tensor
    """The first of each tile's rows in the step."""
    counts_T: Tensor
    """Its tokens."""
    positions_T: Tensor
    """The position of its first token in its sequence."""
    sequences_T: Tensor
    """The row of its sequence in the block table."""
    are_single: bool
    """Whether every tile is one token: its context may be split over several programs."""

    @classmethod
    def of_rows(cls, rows_4T: Iterable[Tensor], *, are_single: bool) -> "Tiles":
        """From what `cut_tiles` tells of tiles, on the device."""
        rows, counts, positions, sequences = rows_4T
        return cls(rows, counts, positions, sequences, are_single)


@dataclass(frozen=True)
class TiledLayout:
    """Where the tokens of a step are kept and what they look at."""

    table_BC: Tensor
    """Places of each sequence's blocks."""
    sequences_N: Tensor
    positions_N: Tensor
    kinds: tuple[Tiles, ...]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, pool: LayerPool, options: Options) -> Tensor:
        """Keep the step's keys and values, then attend: [S, Q, N, D] of query to [S, N, Q, D]."""
        query, key, value = (tensor if tensor.stride(3) == 1 else tensor.contiguous() for tensor in (query, key, value))
        # The scheduler shares what a chunk of one token fills from the next step on: no tile waits for another's key.
        are_single = all(tiles.are_single for tiles in self.kinds)
        if not are_single:
            self._keep(key, value, pool)
        out = query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[3])
        for tiles in self.kinds:
            self._attend_tiles(tiles, (query, key, value), pool, options, out, keeps=are_single)
        return out

    def _keep(self, key: Tensor, value: Tensor, pool: LayerPool) -> None:
        """All tokens' keys and values, before a tile looks at those of others."""
        from cong.engine.gpu.tile_kernels import keep_kernel

        num_networks, num_heads, num_rows, key_width = key.shape
        value_width = value.shape[3]
        keep_kernel[(num_rows, num_networks * num_heads)](
            key,
            value,
            pool.keys,
            pool.values,
            self.table_BC,
            self.sequences_N,
            self.positions_N,
            num_heads,
            *key.stride()[:3],
            *value.stride()[:3],
            self.table_BC.stride(0),
            PAGE=pool.block_size,
            KEY_WIDTH=key_width,
            VALUE_WIDTH=value_width,
            WIDTH=_padded(max(key_width, value_width)),
        )

    def _attend_tiles(
        self,
        tiles: Tiles,
        given: tuple[Tensor, Tensor, Tensor],
        pool: LayerPool,
        options: Options,
        out: Tensor,
        *,
        keeps: bool,
    ) -> None:
        """Into `out`; with `keeps`, single tokens keep their own key and value."""
        from cong.engine.gpu.tile_kernels import attend_kernel, join_kernel

        query, key, value = given
        num_networks, num_query_heads, num_rows, key_width = query.shape
        num_heads = pool.keys.shape[1] // num_networks
        group = num_query_heads // num_heads
        value_width, num_tiles = out.shape[3], len(tiles.rows_T)
        num_splits = _num_splits(num_tiles * num_networks * num_heads) if tiles.are_single else 1
        num_tokens = max(_MIN_ROWS // _power_of_two(group), 1) if tiles.are_single else PROMPT_TOKENS
        parts = _parts_of(out, num_splits) if num_splits > 1 else (out, out, out)
        grid = num_tiles, num_networks * num_heads, num_splits

        def attend(num_keys: int) -> None:
            attend_kernel[grid](
                query,
                key,
                value,
                pool.keys,
                pool.values,
                out,
                *parts,
                self.table_BC,
                tiles.rows_T,
                tiles.counts_T,
                tiles.positions_T,
                tiles.sequences_T,
                num_heads,
                num_rows,
                *query.stride()[:3],
                *key.stride()[:3],
                *value.stride()[:3],
                self.table_BC.stride(0),
                num_splits,
                options.scaling,
                options.softcap or 0.0,
                options.window or 0,
                PAGE=pool.block_size,
                GROUP=group,
                GROUP_PADDED=_power_of_two(group),
                TOKENS=num_tokens,
                KEYS=num_keys,
                KEY_WIDTH=key_width,
                KEY_WIDTH_PADDED=_padded(key_width),
                VALUE_WIDTH=value_width,
                VALUE_WIDTH_PADDED=_padded(value_width),
                HAS_SOFTCAP=options.softcap is not None,
                HAS_WINDOW=options.window is not None,
                KEEPS=keeps,
                IS_SPLIT=num_splits > 1,
                num_warps=_num_warps(num_tokens * _power_of_two(group) * _padded(key_width)),
                num_stages=_NUM_STAGES,
            )

        most = _num_keys((_padded(key_width) + _padded(value_width)) * query.element_size())
        launch_with_room(attend, most, (query.device, query.dtype, key_width, value_width, group, num_tokens))
        if num_splits > 1:
            join_kernel[(num_tiles, num_networks * num_query_heads)](
                out,
                *parts,
                tiles.rows_T,
                num_rows,
                num_query_heads,
                VALUE_WIDTH=value_width,
                VALUE_WIDTH_PADDED=_padded(value_width),
                SPLITS=num_splits,
            )


def _parts_of(out: Tensor, num_splits: int) -> tuple[Tensor, ...]:
    """Room for what each share of a context says: weighted sum, largest score and total weight of every answer."""
    shape = (*out.shape[:3], num_splits)
    sums = out.new_empty(*shape, out.shape[3], dtype=torch.float32)
    return sums, out.new_empty(shape, dtype=torch.float32), out.new_empty(shape, dtype=torch.float32)


def _num_keys(num_bytes: int) -> int:
    """Positions of a context that a tile looks at together, each of so many bytes; a power of two."""
    return max(min(1 << (_READ_BYTES // num_bytes).bit_length() - 1, _MAX_KEYS), _MIN_ROWS)


_room: dict[Hashable, int] = {}
"""Positions that tiles of a kind look at together where the device had no room for more."""


def launch_with_room(launch: Callable[[int], None], most: int, kind: Hashable) -> None:
    """Launch for so many positions at once, or for as many as a processor of the device has memory for."""
    from triton import OutOfResources

    num_keys = _room.get(kind, most)
    while True:
        try:
            return launch(num_keys)
        except OutOfResources as error:
            if num_keys <= _MIN_ROWS:
                raise KernelUnavailable(
                    f"attention of these networks does not fit into this GPU: {error}; set engine.kernel to torch"
                ) from error
            num_keys //= 2
            _room[kind] = num_keys


def _num_warps(num_numbers: int) -> int:
    """For a tile of so many numbers of queries."""
    return 8 if num_numbers > 64 * 128 else 4


def _num_splits(num_programs: int) -> int:
    """Shares that a context is split into so that so many programs keep the GPU busy; a power of two."""
    return min(_power_of_two(-(-_NUM_PROGRAMS // num_programs)), _MAX_SPLITS)


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _padded(width: int) -> int:
    """Width of a product's operand."""
    return max(_power_of_two(width), _MIN_ROWS)
