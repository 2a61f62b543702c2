"""The compiled kernel against the sweep in torch, and what happens where it cannot be had."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cong.config.engine import EngineConfig
from cong.engine import Engine
from cong.engine.cpu import library
from cong.engine.cpu.attention import KernelLayout, lay_out_for_kernel
from cong.engine.cpu.library import has_kernel, load_kernel
from cong.engine.plain.sweep import lay_out_sweep
from cong.engine.pool import LayerPool, Options, Places, places_of
from cong.errors import KernelUnavailable
from tests.engine.conftest import World

CPU = torch.device("cpu")
LENGTHS = (1, 4, 5, 23, 16, 40)


def filled_pool(
    size: int, num_heads: int, widths: tuple[int, int], dtype: torch.dtype, generator: torch.Generator
) -> tuple[LayerPool, Places]:
    """A pool with random contents, and block tables that are in no order, two of them with shared beginnings."""
    free = [int(block) for block in np.random.default_rng(0).permutation(40)]
    tables = [[free.pop() for _ in range(-(-length // size))] for length in LENGTHS]
    tables[5][:2] = tables[3][:2]
    shape = (41, num_heads, size)
    keys, values = (torch.randn(*shape, width, generator=generator).to(dtype) for width in widths)
    return LayerPool(keys, values), places_of(tables)


def decoding(places: Places) -> KernelLayout:
    """One more token for each sequence."""
    return lay_out_for_kernel(places, [length - 1 for length in LENGTHS], [1] * len(LENGTHS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [Options(0.3, None, None), Options(0.2, 7, None), Options(0.5, None, 3.0)])
@pytest.mark.parametrize(("group", "widths"), [(1, (16, 16)), (3, (20, 12))])
def test_the_kernel_attends_as_the_sweep_does(
    dtype: torch.dtype, options: Options, group: int, widths: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(1)
    num_networks, own_heads, size = 2, 2, 4
    pool, places = filled_pool(size, num_networks * own_heads, widths, dtype, generator)
    others = LayerPool(pool.keys.clone(), pool.values.clone())
    num_rows = len(LENGTHS)
    # As models hand them over: heads and tokens swapped, and a slice of a longer row.
    query = torch.randn(num_networks, num_rows + 3, own_heads * group, widths[0], generator=generator).to(dtype)
    key = torch.randn(num_networks, num_rows + 3, own_heads, widths[0], generator=generator).to(dtype)
    value = torch.randn(num_networks, num_rows + 3, own_heads, widths[1], generator=generator).to(dtype)
    query, key, value = (tensor.transpose(1, 2)[:, :, :num_rows] for tensor in (query, key, value))

    load_kernel()
    ours = decoding(places).attend(query, key, value, pool, options)
    theirs = lay_out_sweep(places, LENGTHS, size, CPU).attend(query, key, value, others, options)

    torch.testing.assert_close(pool.keys, others.keys, rtol=0, atol=0)
    torch.testing.assert_close(pool.values, others.values, rtol=0, atol=0)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_extreme_scores_leave_a_distribution() -> None:
    generator = torch.Generator().manual_seed(2)
    pool, places = filled_pool(4, 2, (8, 8), torch.float32, generator)
    query, key, value = torch.randn(3, 1, 2, len(LENGTHS), 8, generator=generator) * 100.0
    load_kernel()
    mixed = decoding(places).attend(query, key, value, pool, Options(100.0, None, None))
    assert mixed.isfinite().all()
    assert mixed.abs().max() <= pool.values.abs().max()


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    generator = torch.Generator().manual_seed(3)
    pool, places = filled_pool(4, 4, (16, 16), torch.float32, generator)
    query, key, value = torch.randn(3, 2, 2, len(LENGTHS), 16, generator=generator)
    options = Options(0.25, None, None)
    load_kernel()
    crowd = decoding(places).attend(query, key, value, pool, options)
    for row, length in enumerate(LENGTHS):
        one = slice(row, row + 1)
        alone = lay_out_for_kernel(places[one], [length - 1], [1]).attend(
            query[:, :, one], key[:, :, one], value[:, :, one], pool, options
        )
        assert torch.equal(alone[:, 0], crowd[:, row])


def test_a_row_does_not_depend_on_the_chunk_it_is_computed_in() -> None:
    generator = torch.Generator().manual_seed(4)
    pool, places = filled_pool(4, 4, (20, 20), torch.float32, generator)
    query, key, value = torch.randn(3, 2, 2, 40, 20, generator=generator)
    load_kernel()
    for options in (Options(0.25, None, None), Options(0.25, 7, None)):
        whole = lay_out_for_kernel(places[5:], [0], [40]).attend(query, key, value, pool, options)
        for position in range(40):
            one = slice(position, position + 1)
            layout = lay_out_for_kernel(places[5:], [position], [1])
            alone = layout.attend(query[:, :, one], key[:, :, one], value[:, :, one], pool, options)
            assert torch.equal(alone[:, 0], whole[:, position])


def test_a_row_does_not_depend_on_how_many_heads_a_thread_takes_at_once() -> None:
    """A crowd's threads take all heads of a row, a row by itself is shared out, and long rows have no room for all."""
    generator = torch.Generator().manual_seed(5)
    size, num_heads, num_long = 16, 7, 1200
    lengths = [16 * num_long, *[20] * 15]
    tables = [list(range(num_long)), *[[row, num_long + row] for row in range(15)]]
    keys, values = torch.randn(2, num_long + 16, num_heads, size, 4, generator=generator)
    pool, places = LayerPool(keys, values), places_of(tables)
    query, key, value = torch.randn(3, 1, num_heads, 16, 4, generator=generator)
    load_kernel()
    crowd = lay_out_for_kernel(places, [length - 1 for length in lengths], [1] * 16)
    together = crowd.attend(query, key, value, pool, Options(0.5, None, None))
    theirs = lay_out_sweep(places, lengths, size, CPU).attend(query, key, value, pool, Options(0.5, None, None))
    torch.testing.assert_close(together, theirs, rtol=1e-5, atol=1e-5)
    for row, length in enumerate(lengths):
        one = slice(row, row + 1)
        layout = lay_out_for_kernel(places[one], [length - 1], [1])
        alone = layout.attend(query[:, :, one], key[:, :, one], value[:, :, one], pool, Options(0.5, None, None))
        assert torch.equal(alone[:, 0], together[:, row])


def test_without_a_compiler_torch_does_it_and_says_so(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    load_kernel.cache_clear()
    monkeypatch.setenv("CXX", "no-such-compiler")
    engine = Engine(world.networks(world.folder("llama", 1)), EngineConfig(kv_memory_bytes=2**20))
    assert not engine._runner.has_kernel
    assert "install g++" in caplog.text
    with pytest.raises(KernelUnavailable, match="install g\\+\\+"):
        Engine(world.networks(world.folder("llama", 1)), EngineConfig(kv_memory_bytes=2**20, kernel="compiled"))


def test_a_compiler_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    load_kernel.cache_clear()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "operators.cpp").write_text("#error this is not the kernel\n")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(library, "SOURCES", tmp_path / "broken")
    with pytest.raises(KernelUnavailable, match="this is not the kernel"):
        load_kernel()
    assert not list(tmp_path.glob("cong/kernels/*")), "nothing is left behind"


def test_a_device_without_a_kernel_is_refused_by_name() -> None:
    assert not has_kernel("auto", torch.device("meta"), torch.float32)
    with pytest.raises(KernelUnavailable, match="set it to auto"):
        has_kernel("compiled", torch.device("meta"), torch.float32)
    with pytest.raises(KernelUnavailable, match="float64"):
        has_kernel("compiled", CPU, torch.float64)
