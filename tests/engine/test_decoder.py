"""Whole layers as operators: which networks get them, that they answer alike, and that rows are left alone."""

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from cong.config.engine import EngineConfig
from cong.engine import Engine
from cong.engine.runner import Runner
from cong.engine.scheduler import Chunk
from cong.engine.sequence import Sequence
from cong.schemas import SamplingParameters
from tests.engine.conftest import FAMILIES, World, load, save_network
from tests.models.mixtures import SMALL

OF_THE_KIND = {"llama", "llama-tied", "mistral-window", "qwen2", "qwen3", "phi3"}


def runner_of(networks: Any, block_size: int = 4, **options: Any) -> Runner:
    runner = Runner(networks.networks, **options)
    runner.prepare(64, block_size)
    return runner


@pytest.mark.parametrize("family", FAMILIES)
def test_decoders_of_the_common_kind_are_recognised_and_no_others(world: World, family: str) -> None:
    runner = runner_of(world.networks(world.folder(family, 1), world.folder(family, 2)))
    (stack,) = runner.stacks
    assert (stack.compiled is not None) == (family in OF_THE_KIND)


def answers(runner: Runner, token_ids: list[int], counts: list[int], others: int = 0) -> list[Tensor]:
    """Logits [V] after every chunk of a sequence that is computed in chunks, beside so many other sequences."""

    def sequence(number: int, ids: list[int]) -> Sequence:
        parameters = SamplingParameters()
        made = Sequence(str(number), 0, tuple(ids), parameters, frozenset(), arrival=number)
        made.blocks = [*range(number * 16, number * 16 + 16)]
        return made

    own = sequence(0, token_ids)
    crowd = [sequence(number, [number + 2] * 8) for number in range(1, others + 1)]
    found, start = [], 0
    for count in counts:
        chunks = [Chunk(own, start, count, draws=True), *(Chunk(other, 0, 8, draws=True) for other in crowd)]
        logits = runner.forward(sorted(chunks, key=lambda chunk: chunk.count != 1))
        found.append(torch.stack([z_RV[0] for z_RV in logits.drawing]))
        start += count
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama-tied", "qwen3", "mistral-window"])
def test_a_token_has_the_same_logits_alone_in_a_crowd_and_in_any_chunk(world: World, family: str, dtype: str) -> None:
    runner = runner_of(world.networks(world.folder(family, 1), world.folder(family, 2), dtype=dtype))
    ids = [3 + (7 * position) % 50 for position in range(24)]
    one_by_one = answers(runner, ids, [1] * 24)
    for counts, others in ([24], 0), ([24], 3), ([5, 19], 0), ([1] * 20 + [4], 2), ([23, 1], 3):
        assert torch.equal(answers(runner, ids, counts, others)[-1], one_by_one[-1]), (counts, others)


WIDE = {"hidden_size": 96, "intermediate_size": 600, "head_dim": 48, "vocab_size": 61}
"""More than one panel of columns, none of them full, and more than one stretch of depth."""


@pytest.mark.parametrize("num_networks", [1, 2])
def test_layers_of_any_width_answer_like_their_own_code(world: World, num_networks: int) -> None:
    networks = world.networks(*(world.folder("llama", seed, **WIDE) for seed in (1, 2)[:num_networks]))
    runner = runner_of(networks)
    ids = [3 + (11 * position) % 50 for position in range(30)]
    (ours,) = answers(runner, ids, [30])
    assert runner.stacks[0].compiled is not None
    for logits, seed in zip(ours, (1, 2), strict=False):
        own = load(world.folder("llama", seed, **WIDE)).model(torch.tensor([ids])).logits[0, -1]
        torch.testing.assert_close(logits, own, rtol=0, atol=2e-5 * float(own.abs().amax()))


def test_heads_that_turn_only_a_part_of_themselves_answer_like_their_own_code(world: World) -> None:
    folders = [world.folder("phi3", seed, partial_rotary_factor=0.5) for seed in (1, 2)]
    runner = runner_of(world.networks(*folders))
    assert runner.stacks[0].compiled is not None
    ids = [3 + (11 * position) % 50 for position in range(30)]
    ours = answers(runner, ids, [20, *[1] * 10], others=2)[-1]
    for logits, folder in zip(ours, folders, strict=True):
        own = load(folder).model(torch.tensor([ids])).logits[0, -1]
        torch.testing.assert_close(logits, own, rtol=0, atol=2e-5 * float(own.abs().amax()))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("num_networks", [1, 2])
def test_few_rows_meet_strips_of_the_weights_and_many_meet_panels_with_the_same_sums(
    world: World, num_networks: int, dtype: str
) -> None:
    networks = world.networks(*(world.folder("llama", seed, **WIDE) for seed in (1, 2)[:num_networks]), dtype=dtype)
    runner = runner_of(networks)
    ids = [3 + (11 * position) % 50 for position in range(40)]
    (whole,) = answers(runner, ids, [40])
    for num_last in (1, 2, 7, 8, 9, 15, 16, 17):
        assert torch.equal(answers(runner, ids, [40 - num_last, num_last])[-1], whole), num_last


def test_what_only_looks_like_the_kind_runs_through_its_own_code(
    world: World, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    config = transformers.GraniteConfig(**SMALL, residual_multiplier=0.6, attention_multiplier=0.25)
    networks = world.networks(save_network(tmp_path / "granite", config, 1))
    runner = runner_of(networks)
    assert runner.stacks[0].compiled is None
    assert "layer 0 answers differently" in caplog.text
    own = load(tmp_path / "granite").model(torch.tensor([[5, 6, 7, 8]])).logits[0, -1]
    torch.testing.assert_close(answers(runner, [5, 6, 7, 8], [4])[0][0], own, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("change", [{"hidden_act": "gelu"}, {"rms_norm_eps": 0.3}])
def test_another_activation_is_not_taken_for_the_kind_and_any_epsilon_is(world: World, change: dict[str, Any]) -> None:
    runner = runner_of(world.networks(world.folder("llama", 1, **change)))
    assert (runner.stacks[0].compiled is None) == ("hidden_act" in change)


def test_a_norm_of_another_kind_is_noticed(world: World) -> None:
    networks = world.networks(world.folder("llama", 1))
    model: Any = networks.networks[0].model
    norm = model.model.layers[1].input_layernorm
    norm.forward = lambda hidden: type(norm).forward(norm, hidden) + 0.1
    assert runner_of(networks).stacks[0].compiled is None


def test_without_kernels_nothing_is_compiled(world: World) -> None:
    networks = world.networks(world.folder("llama", 1))
    engine = Engine(networks, EngineConfig(kv_memory_bytes=2**20, kernel="torch"))
    assert engine._runner.stacks[0].compiled is None
