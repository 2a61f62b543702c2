"""Steps that are computed before the tokens of the one before are known, as on a GPU: the same samples."""

import importlib.util
import random
from typing import Any

import pytest
import torch

from cong.config.engine import EngineConfig, KernelChoice
from cong.engine import Engine, Event, Generate, SampleFinished, TokenDrawn, drawing, runner
from cong.engine.drawing import Drawer
from cong.engine.gpu import heads, prompt_graphs, tile_attention
from cong.schemas import Prompt, SamplingParameters
from tests.engine.conftest import VOCAB, World
from tests.engine.test_exactness import SMALL, expect_reference, random_requests, serve

Folders = tuple[Any, Any]

needs_interpreter = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or torch.cuda.is_available(), reason="needs Triton's interpreter"
)


@pytest.fixture
def folders(world: World) -> Folders:
    return world.folder("llama", 1), world.folder("llama", 2)


def make_engine(world: World, folders: Folders, config: EngineConfig = SMALL, *, looks_ahead: bool = True) -> Engine:
    engine = Engine(world.networks(*folders), config)
    engine._looks_ahead = looks_ahead  # which by itself it does on a GPU alone
    return engine


def count_ahead(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sequences of every step that is computed ahead from now on."""
    sizes: list[int] = []
    look_ahead = engine._scheduler.look_ahead

    def counting(chunks: Any) -> Any:
        ahead = look_ahead(chunks)
        if ahead:
            sizes.append(len(ahead))
        return ahead

    monkeypatch.setattr(engine._scheduler, "look_ahead", counting)
    return sizes


@pytest.mark.parametrize("kernel", ["compiled", "torch"])
@pytest.mark.parametrize("family", ["llama", "mistral-window", "gpt2"])
def test_greedy_pairs_equal_the_reference(
    world: World, family: str, kernel: KernelChoice, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = world.folder(family, 1), world.folder(family, 2)
    engine = make_engine(world, pair, SMALL.model_copy(update={"kernel": kernel}))
    sizes = count_ahead(engine, monkeypatch)
    requests = random_requests(3, 48, num_networks=2)
    expect_reference(serve(engine, requests), requests, world.oracle(*pair))
    assert max(sizes) > 4
    assert engine.stats().num_blocks_free == engine.stats().num_blocks


def test_seeded_samples_are_the_same_when_memory_runs_out(
    world: World, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = random_requests(8, 48, num_networks=2, temperature=0.9, max_tokens=20)
    tight = SMALL.model_copy(update={"kv_memory_bytes": make_engine(world, folders)._runner.bytes_per_token * 4 * 30})
    plain = make_engine(world, folders, tight, looks_ahead=False)
    ahead = make_engine(world, folders, tight)
    sizes = count_ahead(ahead, monkeypatch)
    tokens = [
        {name: record.completion_token_ids for name, record in serve(engine, requests).items()}
        for engine in (plain, ahead)
    ]
    assert tokens[0] == tokens[1]
    assert sizes
    assert ahead.stats().num_preemptions > 0, "memory was meant to run out"
    assert ahead.stats().num_blocks_free == ahead.stats().num_blocks


def test_no_step_is_in_vain_where_lengths_end_samples(world: World, folders: Folders) -> None:
    """Who ends at a length that is known beforehand is not computed again."""
    steps = []
    for looks_ahead in (False, True):
        engine = make_engine(world, folders, looks_ahead=looks_ahead)
        for number in range(8):
            parameters = SamplingParameters.contrastive(0.4, max_tokens=4 + number, ignore_eos=True)
            engine.submit(Generate(f"r{number}", Prompt(text="hello"), parameters))
        drain(engine)
        stats = engine.stats()
        steps.append((stats.num_steps, stats.num_prompt_tokens, stats.num_drawn_tokens))
    assert steps[0] == steps[1]


def drain(engine: Engine) -> list[Event]:
    happened: list[Event] = []
    while engine.has_work:
        happened += engine.events()
    return happened


@pytest.mark.parametrize("seed", range(6))
def test_who_leaves_while_a_step_is_on_its_way_frees_everything_and_hurts_nobody(
    world: World, folders: Folders, seed: int
) -> None:
    generator = random.Random(seed)
    requests = random_requests(seed, 24, num_networks=2, temperature=0.8, max_tokens=24, ignore_eos=True)
    expected = serve(make_engine(world, folders, looks_ahead=False), requests)
    engine = make_engine(world, folders)
    waiting, told, left = list(requests), {}, set()
    while waiting or engine.has_work:
        if waiting and generator.random() < 0.6:
            engine.submit(waiting.pop(0))
        for event in engine.events():
            if isinstance(event, SampleFinished):
                told[event.request_id] = event.record
        if generator.random() < 0.1:
            left.add(name := generator.choice(requests).request_id)
            engine.cancel(name)
    assert told.keys() == expected.keys()
    for name, record in told.items():
        if record.finish_reason == "cancelled":
            assert name in left
        else:
            assert record.completion_token_ids == expected[name].completion_token_ids
    assert engine.stats().num_blocks_free == engine.stats().num_blocks


def test_tokens_are_told_step_by_step(world: World, folders: Folders) -> None:
    """Nobody hears of a token later than one step after it was computed."""
    engine = make_engine(world, folders)
    parameters = SamplingParameters.contrastive(0.4, max_tokens=6, ignore_eos=True)
    engine.submit(Generate("r", Prompt(text="hello"), parameters, streams=True))
    told = [sum(isinstance(event, TokenDrawn) for event in engine.events()) for _ in range(6)]
    assert told == [1] * 6
    assert not engine.has_work


def emulate_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles and head sets by Triton's interpreter; instead of a graph what it is made of."""
    monkeypatch.setattr(runner, "has_tiles", lambda kernel, device: True)
    monkeypatch.setattr(tile_attention, "_NUM_PROGRAMS", 8)  # contexts are split in two
    monkeypatch.setattr(prompt_graphs, "_SMALLEST", 4)


@needs_interpreter
@pytest.mark.parametrize(("family", "captures_graphs"), [("llama", False), ("llama", True), ("gemma2", True)])
def test_all_that_a_gpu_does_equals_the_reference(
    world: World, monkeypatch: pytest.MonkeyPatch, family: str, captures_graphs: bool
) -> None:
    emulate_a_gpu(monkeypatch)
    pair = world.folder(family, 1, num_key_value_heads=1), world.folder(family, 2, num_key_value_heads=1)
    config = SMALL.model_copy(update={"max_running": 4, "max_step_tokens": 16, "captures_graphs": captures_graphs})
    engine = make_engine(world, pair, config)
    assert (engine._runner._captured is not None) == captures_graphs
    assert engine.stats().num_steps == 0, "what warms it up is not counted"
    sizes = count_ahead(engine, monkeypatch)
    if captures_graphs:
        monkeypatch.setattr(engine._runner, "_run_chunks", None)  # no step is computed otherwise
    parameters = SamplingParameters.contrastive(
        0.4, temperature=0.0, repetition_penalty=1.3, max_tokens=3, ignore_eos=True
    )
    requests = [
        Generate(f"r{number}", Prompt(token_ids=tuple(range(3, 3 + length))), parameters)
        for number, length in enumerate((1, 4, 18, 2, 7))
    ]
    expect_reference(serve(engine, requests), requests, world.oracle(*pair))
    assert sizes
    assert engine.stats().num_blocks_free == engine.stats().num_blocks


@needs_interpreter
def test_a_gpu_s_steps_bear_who_comes_and_who_leaves_and_blocks_that_run_out(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: dict[str, Any] = {"num_hidden_layers": 1, "num_key_value_heads": 1}
    pair = world.folder("llama", 1, **sizes), world.folder("llama", 2, **sizes)
    generator = random.Random(3)
    requests = [
        Generate(
            f"r{number}",
            Prompt(token_ids=tuple(generator.randrange(3, VOCAB) for _ in range(generator.randint(1, 6)))),
            SamplingParameters.contrastive(0.4, max_tokens=generator.randint(2, 14), ignore_eos=number % 2 > 0, seed=3),
        )
        for number in range(10)
    ]
    plain = make_engine(world, pair, SMALL, looks_ahead=False)
    expected = serve(plain, requests)
    emulate_a_gpu(monkeypatch)
    tight = SMALL.model_copy(
        update={"max_running": 4, "max_step_tokens": 16, "kv_memory_bytes": plain._runner.bytes_per_token * 4 * 10}
    )
    engine = make_engine(world, pair, tight)
    assert engine._runner._captured is not None
    told, leaving = {}, ["r2", "r7"]
    for request in requests[:6]:
        engine.submit(request)
    for number in range(200):
        for event in engine.events():
            if isinstance(event, SampleFinished):
                told[event.request_id] = event.record
        if number % 3 == 2 and len(told) < len(requests) and number // 3 < 4:
            engine.submit(requests[6 + number // 3])
        if number in (4, 17):
            engine.cancel(leaving.pop())
        if not engine.has_work and number > 17:
            break
    assert engine.stats().num_preemptions > 0, "memory was meant to run out"
    assert told.keys() == expected.keys()
    for name, record in told.items():
        whole = expected[name].completion_token_ids
        assert record.completion_token_ids == whole[: len(record.completion_token_ids)]
        assert record.finish_reason in ("cancelled", expected[name].finish_reason)
    assert engine.stats().num_blocks_free == engine.stats().num_blocks


@needs_interpreter
def test_a_step_is_computed_again_where_head_sets_were_too_large(
    world: World, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = random_requests(5, 6, num_networks=2, max_tokens=6, head_lambda=1e-4, repetition_penalty=1.3)
    engine = make_engine(world, folders)
    engine._drawer = Drawer(VOCAB, torch.device("cpu"), finds_heads=True)
    for module in (drawing, heads):
        monkeypatch.setattr(module, "HEAD_WIDTH", 16)
    computed = []
    draw_from_all = engine._drawer.draw_from_all

    def counting(*arguments: Any) -> Any:
        computed.append(engine.stats().num_steps)
        return draw_from_all(*arguments)

    monkeypatch.setattr(engine._drawer, "draw_from_all", counting)
    expect_reference(serve(engine, requests), requests, world.oracle(*folders))
    assert 0 < len(computed) < engine.stats().num_steps, "some head sets were larger, others were not"
