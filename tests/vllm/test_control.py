"""Requests that stream, stop, leave and run out of time under vLLM; what is refused; and its workers as processes."""

import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from cong.config import EngineConfig, ModelsConfig, NetworkConfig
from cong.engine import Engine, Event, Generate, LocalEngine, Rate, Rated, SampleFinished, TokenDrawn, open_engine
from cong.engine.vllm_backend.versions import TESTED_VERSIONS, require_known_runner, require_tested
from cong.errors import ConfigError, InvalidRequest, ModelError, PromptTooLong, UnsupportedModel
from cong.schemas import Prompt, SampleRequest, SamplingParameters
from tests.vllm.conftest import CONFIG, VllmWorld

PROMPT = Prompt(text="hello")
ONE_PROCESS = "VLLM_ENABLE_V1_MULTIPROCESSING"


def contrast(**fields: Any) -> SamplingParameters:
    return SamplingParameters.contrastive(0.4, **({"max_tokens": 12, "ignore_eos": True} | fields))


def llamas(world: VllmWorld) -> tuple[Path, Path]:
    return world.folder("llama", 1), world.folder("llama", 2)


def drain(engine: LocalEngine) -> list[Event]:
    happened: list[Event] = []
    while engine.has_work:
        happened += engine.events()
    return happened


def breathe(engine: LocalEngine) -> None:
    """One more request, so that vLLM's scheduler tells how many blocks are free now."""
    engine.submit(Generate("breath", PROMPT, contrast(max_tokens=1)))
    drain(engine)


def test_streamed_tokens_are_the_sample(world: VllmWorld) -> None:
    engine = world.engine(*llamas(world))
    engine.submit(Generate("r", PROMPT, contrast(), (0, 1), streams=True))
    happened = drain(engine)
    for index in (0, 1):
        tokens = [event for event in happened if isinstance(event, TokenDrawn) and event.sample_index == index]
        (record,) = [e.record for e in happened if isinstance(e, SampleFinished) and e.sample_index == index]
        assert tuple(event.token.token_id for event in tokens) == record.completion_token_ids
        assert "".join(event.text for event in tokens) == record.completion_text
        assert tuple(event.token.logprobs[0] for event in tokens) == record.logprobs["aligned"]


def test_a_stop_string_ends_the_sample_as_in_our_engine(world: VllmWorld) -> None:
    engine = world.engine(*llamas(world))
    ours = Engine(world.networks(*llamas(world)), EngineConfig(kv_memory_bytes=2**22))
    ours.submit(Generate("free", PROMPT, contrast(), (0,)))
    (free,) = [event.record for event in drain(ours) if isinstance(event, SampleFinished)]
    stop = free.completion_text[4:6]
    records = []
    for each in (engine, ours):
        each.submit(Generate("stopped", PROMPT, contrast(stop=(stop,), min_tokens=2), (0,)))
        records += [event.record for event in drain(each) if isinstance(event, SampleFinished)]
    assert records[0].finish_reason == records[1].finish_reason == "stop"
    assert records[0].completion_text == records[1].completion_text == free.completion_text.partition(stop)[0]
    breathe(engine)
    assert engine.stats().num_blocks_free == engine.stats().num_blocks


def test_cancelling_frees_everything_and_hurts_nobody_else(world: VllmWorld) -> None:
    engine = world.engine(*llamas(world))
    for name in ("gone", "stays"):
        engine.submit(Generate(name, PROMPT, contrast(max_tokens=30), tuple(range(6))))
    happened = [*engine.events(), *engine.events()]
    assert engine.stats().num_blocks_free < engine.stats().num_blocks
    engine.cancel("gone")
    happened += drain(engine)
    reasons: dict[str, set[str]] = {"gone": set(), "stays": set()}
    for event in happened:
        if isinstance(event, SampleFinished):
            reasons[event.request_id].add(event.record.finish_reason)
    assert reasons == {"gone": {"cancelled"}, "stays": {"length"}}
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_blocks_free) == (0, 0, stats.num_blocks)
    engine.cancel("gone")
    engine.cancel("never there")
    assert engine.events() == []


@pytest.mark.parametrize("num_steps", [0, 2])
@pytest.mark.parametrize("part", ["execute_model", "sample_tokens"])
def test_an_interrupted_step_leaves_an_engine_that_draws_the_same(
    world: VllmWorld, monkeypatch: pytest.MonkeyPatch, part: str, num_steps: int
) -> None:
    engine = world.engine(*llamas(world))
    executor = engine._core._client.engine_core.model_executor
    parameters = contrast(max_tokens=6, repetition_penalty=3.0)
    prompts = [Prompt(text=f"{first}{'hello there, ' * 6}") for first in "abc"]
    requests = [SampleRequest(prompt=prompt, parameters=parameters, num_samples=2) for prompt in prompts]
    ours = Engine(world.networks(*llamas(world)), EngineConfig(kv_memory_bytes=2**22))
    drawn = {record.key: record.completion_token_ids for record in ours.generate(requests)}

    def interrupt(*arguments: Any, **options: Any) -> Any:
        if next(steps) == num_steps:
            raise KeyboardInterrupt
        return run(*arguments, **options)

    run, steps = getattr(executor, part), itertools.count()
    monkeypatch.setattr(executor, part, interrupt)
    with pytest.raises(KeyboardInterrupt):
        list(engine.generate(requests))
    assert {record.key: record.completion_token_ids for record in engine.generate(requests)} == drawn


def test_a_deadline_ends_what_is_unfinished_waiting_or_running(world: VllmWorld) -> None:
    now = 100.0
    config = CONFIG.model_copy(update={"max_running": 4})
    engine = world.new_engine(*llamas(world), config=config, clock=lambda: now)
    engine.submit(Generate("late", PROMPT, contrast(max_tokens=40), tuple(range(12)), deadline_s=5.0))
    happened = [*engine.events(), *engine.events(), *engine.events()]
    assert (engine.stats().num_running, engine.stats().num_waiting) == (4, 8)
    now = 105.0
    happened += drain(engine)
    late = [event.record for event in happened if isinstance(event, SampleFinished)]
    assert [record.finish_reason for record in late] == ["deadline"] * 12
    assert {len(record.completion_token_ids) for record in late} == {0, 3}, "some waited, some had drawn"
    engine.score(Rate("s", PROMPT, (5, 6, 7)))
    engine.cancel("s")
    (event,) = drain(engine)
    assert isinstance(event, Rated)
    assert event.score.completion_token_ids == ()


@pytest.mark.parametrize(
    ("request_", "error", "words"),
    [
        (Generate("r", PROMPT, SamplingParameters.plain(), (0,)), InvalidRequest, "1 entries, and this engine holds 2"),
        (Generate("r", Prompt(token_ids=(3, 99)), contrast(), (0,)), InvalidRequest, "prompt.token_ids: holds 99"),
        (Generate("r", PROMPT, contrast(max_tokens=156), (0,)), PromptTooLong, "together they may be 160"),
        (Rate("r", PROMPT, ()), InvalidRequest, "at least one token"),
    ],
)
def test_what_can_never_be_served_is_refused_at_once(
    world: VllmWorld, request_: Generate | Rate, error: type[Exception], words: str
) -> None:
    engine = world.engine(*llamas(world))
    with pytest.raises(error, match=re.escape(words)):
        engine.score(request_) if isinstance(request_, Rate) else engine.submit(request_)
    assert not engine.has_work


def test_another_version_is_refused_by_name() -> None:
    require_tested(f"{TESTED_VERSIONS[0]}+cpu")
    with pytest.raises(
        ConfigError, match=re.escape(f"vLLM 0.1.2 is installed, and its back end was tested with {TESTED_VERSIONS[0]}")
    ):
        require_tested("0.1.2")


def test_the_other_model_runner_is_refused() -> None:
    require_known_runner(is_v2=False)
    with pytest.raises(ConfigError, match="set VLLM_USE_V2_MODEL_RUNNER=0"):
        require_known_runner(is_v2=True)


def test_pairs_that_one_cache_cannot_hold_are_refused_with_the_reason(world: VllmWorld) -> None:
    wide = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4}
    with pytest.raises(UnsupportedModel, match=r"layers of several kinds .* keys of different widths"):
        world.new_engine(world.folder("gemma2", 1), world.folder("gemma2", 2, **wide))


def test_what_keeps_vllm_from_starting_is_told_in_its_words(world: VllmWorld) -> None:
    with pytest.raises(
        ModelError, match=r"does not start with llama-1- \(llama\), llama-2- \(llama\) as one model: .*memory"
    ):
        world.new_engine(*llamas(world), config=CONFIG.model_copy(update={"kv_memory_bytes": 1000}))


def test_adapters_are_refused_with_the_remedy(world: VllmWorld) -> None:
    aligned, base = llamas(world)
    models = ModelsConfig(
        aligned=NetworkConfig(source=str(base), adapter=str(aligned)), base=NetworkConfig(source=str(base))
    )
    with pytest.raises(ConfigError, match="merge the adapter"):
        open_engine(models, CONFIG)


PROGRAM = """
import json, multiprocessing, os, random, sys
from cong.config import EngineConfig, ModelsConfig, NetworkConfig
from cong.engine import Generate, Rate, open_engine
from cong.schemas import Prompt, SampleRequest, SamplingParameters

if __name__ == "__main__":
    aligned, base, config = sys.argv[1:]
    networks = {"aligned": NetworkConfig(source=aligned), "base": NetworkConfig(source=base)}
    random.seed(7)
    before = random.getstate(), dict(os.environ).get("VLLM_ENABLE_V1_MULTIPROCESSING")
    engine = open_engine(ModelsConfig(dtype="float32", **networks), EngineConfig.model_validate_json(config))
    found = {"num_processes": len(multiprocessing.active_children())}
    if not found["num_processes"]:
        found["is_untouched"] = before == (random.getstate(), os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING"))
    parameters = SamplingParameters.contrastive(0.4, max_tokens=12, ignore_eos=True)
    engine.submit(Generate("r", Prompt(text="hello"), parameters, (0, 1)))
    engine.score(Rate("s", Prompt(text="hello"), (5, 6, 7)))
    happened = []
    while engine.has_work:
        happened += engine.events()
    engine.close()
    for event in happened:
        record = getattr(event, "record", None)
        if record is None:
            found["score"] = event.score.logprobs
        else:
            found[f"tokens {record.sample_index}"] = record.completion_token_ids
            found[f"head sizes {record.sample_index}"] = record.head_sizes
            found[f"logprobs {record.sample_index}"] = {"mixture": record.mixture_logprobs, **record.logprobs}
    print("RESULT", json.dumps(found))
"""


@pytest.mark.parametrize(
    ("changes", "variable"),
    [({}, "1"), ({"is_eager": False}, "1"), ({"tensor_parallel_size": 2}, None), ({}, None)],
    ids=["eager", "compiled", "divided", "one process"],
)
def test_what_is_drawn_and_told_does_not_depend_on_vllms_processes(
    world: VllmWorld, tmp_path: Path, changes: dict[str, int], variable: str | None
) -> None:
    """One process on a CPU unless the environment or a division says otherwise; others learn of the model by vLLM."""
    cores = sorted(os.sched_getaffinity(0))
    num_workers = changes.get("tensor_parallel_size", 1)
    if len(cores) < num_workers:
        pytest.skip("a worker needs a core of its own")
    config = CONFIG.model_copy(update={"vllm": CONFIG.vllm.model_copy(update=changes)}).model_dump_json()
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(tmp_path / "program.py"), *map(str, llamas(world)), config]
    environment = {name: value for name, value in os.environ.items() if name != ONE_PROCESS}
    environment["VLLM_CACHE_ROOT"] = str(tmp_path / "cache")
    environment["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(map(str, cores[:num_workers]))
    environment |= {} if variable is None else {ONE_PROCESS: variable}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    found = json.loads(line.removeprefix("RESULT"))
    if variable is None and num_workers == 1:
        assert found.pop("num_processes") == 0
        assert found.pop("is_untouched"), "numbers drawn at random and the environment are the caller's"
    else:
        assert found.pop("num_processes") > 0
    assert found == told_here(world)


def told_here(world: VllmWorld) -> dict[str, Any]:
    """What `PROGRAM` tells, by an engine of this process; numbers within rounding."""
    engine = world.engine(*llamas(world))
    engine.submit(Generate("r", PROMPT, contrast(), (0, 1)))
    engine.score(Rate("s", PROMPT, (5, 6, 7)))
    told: dict[str, Any] = {}
    for event in drain(engine):
        if isinstance(event, Rated):
            told["score"] = close_to(event.score.logprobs)
        elif isinstance(event, SampleFinished):
            record = event.record
            told[f"tokens {record.sample_index}"] = [*record.completion_token_ids]
            told[f"head sizes {record.sample_index}"] = [*record.head_sizes]
            told[f"logprobs {record.sample_index}"] = close_to({"mixture": record.mixture_logprobs, **record.logprobs})
    return told


def close_to(logprobs: Mapping[Any, tuple[float, ...]]) -> dict[str, Any]:
    return {name: pytest.approx([*values], abs=1e-4) for name, values in logprobs.items()}


def test_a_vllm_that_lacks_what_is_needed_is_refused_by_name() -> None:
    from cong.engine.vllm_backend.internals import Core

    class NoCore:
        engine_core = object()
        input_processor = object()

    with pytest.raises(ConfigError, match=r"object has no get_output, .* tested with vLLM 0\.32\.0: install one"):
        Core(cast("Any", NoCore()), num_networks=2)
