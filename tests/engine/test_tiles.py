"""Attention in tiles, by Triton's interpreter where there is no GPU, against plain attention; sizes of graphs."""

import importlib.util

import numpy as np
import pytest
import torch

from cong.config.engine import EngineConfig
from cong.engine.gpu.decoding_graphs import graph_sizes
from cong.engine.gpu.prompt_graphs import num_tiles, token_sizes
from cong.engine.gpu.tile_attention import launch_with_room
from cong.engine.gpu.tiles import cut_tiles, has_tiles, lay_out_tiles
from cong.engine.plain.layout import attend_dense
from cong.engine.pool import LayerPool, Options, places_of
from cong.errors import KernelUnavailable

HAS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if HAS_GPU else "cpu")
SIXTEEN_BIT = torch.bfloat16 if HAS_GPU else torch.float16
"""The interpreter computes nothing sensible in bfloat16."""
STARTS, COUNTS = [0, 3, 4, 22, 69, 0, 5, 30], [1, 1, 1, 1, 1, 20, 7, 33]
"""Five sequences that decode, then a prompt and two that go on with theirs."""
SIZE = 4

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def tables() -> list[list[int]]:
    """Blocks in no order."""
    free = [int(block) for block in np.random.default_rng(0).permutation(120)]
    return [
        [free.pop() for _ in range(-(-(start + count) // SIZE))] for start, count in zip(STARTS, COUNTS, strict=True)
    ]


@needs_triton
@pytest.mark.parametrize("num_chunks", [len(COUNTS), 5])
@pytest.mark.parametrize(
    ("options", "group", "widths", "dtype"),
    [
        (Options(0.3, None, None), 7, (64, 64), torch.float32),
        (Options(0.2, 7, None), 3, (20, 12), torch.float32),
        (Options(0.5, None, 3.0), 1, (16, 16), torch.float32),
        (Options(0.3, 7, None), 3, (20, 12), SIXTEEN_BIT),
    ],
)
def test_tiles_attend_as_plain_attention_does(
    options: Options, group: int, widths: tuple[int, int], dtype: torch.dtype, num_chunks: int
) -> None:
    """With prompts and without: single tokens alone keep their own keys and values."""
    generator = torch.Generator().manual_seed(1)
    starts, counts = STARTS[:num_chunks], COUNTS[:num_chunks]
    num_networks, own_heads, num_rows = 2, 2, sum(counts)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(DEVICE, dtype)

    pool = LayerPool(*(random(121, num_networks * own_heads, SIZE, width) for width in widths))
    query, key, value = (
        random(num_networks, num_rows, heads, width).transpose(1, 2)  # as models hand them over
        for heads, width in ((own_heads * group, widths[0]), (own_heads, widths[0]), (own_heads, widths[1]))
    )
    blocks = tables()[:num_chunks]
    laid_out = lay_out_tiles(places_of(blocks), starts, counts, DEVICE)
    ours = laid_out.attend(query, key, value, pool, options)
    row = 0
    for places, start, count in zip(blocks, starts, counts, strict=True):
        rows, length = slice(row, row + count), start + count
        context = [
            part[torch.tensor(places) + 1]
            .transpose(0, 1)
            .flatten(1, 2)[:, :length]
            .view(num_networks, own_heads, length, -1)
            for part in (pool.keys, pool.values)
        ]
        for kept, given in zip(context, (key, value), strict=True):
            assert torch.equal(kept[:, :, start:], given[:, :, rows]), "what the step gives is kept"
        theirs = attend_dense(query[:, :, rows].float(), context[0].float(), context[1].float(), options)
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(ours[:, rows].float(), theirs.transpose(1, 2), rtol=tolerance, atol=tolerance)
        row += count


@needs_triton
def test_a_gpu_with_little_room_looks_at_fewer_positions_and_remembers() -> None:
    from triton import OutOfResources

    tried: list[int] = []
    room = 32

    def launch(num_keys: int) -> None:
        tried.append(num_keys)
        if num_keys > room:
            raise OutOfResources(2_000 * num_keys, 2_000 * room, "shared memory")

    launch_with_room(launch, 64, "kind")
    launch_with_room(launch, 64, "kind")
    assert tried == [64, 32, 32]
    room = 8
    with pytest.raises(KernelUnavailable, match=r"shared memory.*set engine\.kernel to torch"):
        launch_with_room(launch, 64, "kind")


def test_kernels_get_addresses_of_one_kind_whatever_a_step_holds() -> None:
    """Triton compiles again for every combination of aligned and unaligned addresses, in the middle of serving."""
    for num_single in range(6):
        for counts in ((), (1,), (7, 33), (20, 2, 3)):
            starts, all_counts = list(range(num_single + len(counts))), [1] * num_single + list(counts)
            if not all_counts:
                continue
            places = places_of([[3] * (1 + start + count) for start, count in zip(starts, all_counts, strict=True)])
            laid_out = lay_out_tiles(places, starts, all_counts, DEVICE)
            assert laid_out.sequences_N.tolist() == [n for n, count in enumerate(all_counts) for _ in range(count)]
            tensors = [laid_out.table_BC, laid_out.sequences_N, laid_out.positions_N]
            for kind in laid_out.kinds:
                tensors += [kind.rows_T, kind.counts_T, kind.positions_T, kind.sequences_T]
            offsets = {(tensor.data_ptr() - laid_out.table_BC.data_ptr()) % 16 for tensor in tensors}
            assert offsets == {0}


def test_graphs_come_in_sizes_that_hold_every_step_with_few_rows_in_vain() -> None:
    for max_rows in (1, 2, 3, 64, 100, 256, 1000):
        sizes = graph_sizes(max_rows)
        assert list(sizes) == sorted(set(sizes))
        assert sizes[-1] >= max_rows
        for rows in range(1, max_rows + 1):
            chosen = next(size for size in sizes if size >= rows)
            assert chosen - rows < max(rows, 64)


def test_a_graph_of_prompts_holds_every_step_and_a_row_of_nobody_s() -> None:
    generator = np.random.default_rng(1)
    for max_tokens, max_chunks in ((1, 2), (40, 4), (1024, 256), (1500, 3)):
        sizes = token_sizes(max_tokens)
        assert sizes[-1] > max_tokens
        for _ in range(50):
            num_tokens = int(generator.integers(1, max_tokens + 1))
            size = next(size for size in sizes if size > num_tokens)
            cuts = np.sort(generator.integers(0, num_tokens + 1, max_chunks - 1))
            counts = sorted(np.diff([0, *cuts, num_tokens]).tolist(), key=lambda count: count != 1)
            counts = [count for count in counts if count]
            *_, single, prompts = cut_tiles([0] * len(counts), counts)
            assert single.shape[1] <= max_chunks
            assert prompts.shape[1] <= num_tiles(size, max_chunks)
            assert single[1].sum() + prompts[1].sum() == num_tokens


def test_a_cpu_has_no_tiles_and_torch_alone_can_be_asked_for() -> None:
    assert not has_tiles("auto", torch.device("cpu"))
    assert not has_tiles("torch", torch.device("cuda"))
    assert EngineConfig().captures_graphs
