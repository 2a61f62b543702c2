"""The engine against the uncached reference sampler, token for token."""

import random
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import chi2
from torch import nn

from cong.config.engine import EngineConfig, KernelChoice
from cong.decoding import mix, prompt_seed, stack_rules, warp
from cong.engine import Engine, EngineProtocol, Generate, Rate, Rated, SampleFinished
from cong.lab.sampler import ReferenceSample, reference_sample, reference_score
from cong.models import attach_adapter, join_networks
from cong.schemas import Prompt, Role, SampleRecord, SamplingParameters, Score
from tests.engine.conftest import EOS, FAMILIES, VOCAB, World, load, save_adapter

SMALL = EngineConfig(max_running=16, max_step_tokens=40, block_size=4, kv_memory_bytes=2**22)
"""Small enough that prompts come in chunks and blocks run out."""


def random_parameters(generator: random.Random, num_networks: int, **fixed: Any) -> SamplingParameters:
    """Parameters of every kind."""
    weights = {1: (1.0,), 2: (1.0, -generator.choice([0.0, 0.3, 0.6, 1.0])), 3: (1.0, 0.8, -0.8)}[num_networks]
    choices: dict[str, Any] = {
        "weights": weights,
        "head_lambda": generator.choice([0.0, 0.05, 0.1, 0.5]),
        "temperature": 0.0,
        "repetition_penalty": generator.choice([1.0, 1.0, 1.3]),
        "penalty_rule": generator.choice(["additive", "multiplicative", "reference"]),
        "max_tokens": generator.randint(1, 24),
        "min_tokens": generator.choice([0, 0, 1]),
        "ignore_eos": generator.random() < 0.5,
        "stop_token_ids": generator.choice([(), (5, 9)]),
        "seed": generator.randint(0, 99),
    }
    return SamplingParameters.model_validate(choices | fixed)


def random_requests(seed: int, count: int, num_networks: int, **fixed: Any) -> list[Generate]:
    """Prompts of mixed lengths, some of them sharing a beginning."""
    generator = random.Random(seed)
    opening = [generator.randrange(3, VOCAB) for _ in range(20)]
    requests = []
    for number in range(count):
        own = [generator.randrange(3, VOCAB) for _ in range(generator.choice([1, 2, 7, 30, 61]))]
        ids = tuple(opening + own if generator.random() < 0.3 else own)
        parameters = random_parameters(generator, num_networks, **fixed)
        requests.append(Generate(f"r{number}", Prompt(token_ids=ids), parameters, (generator.randrange(4),)))
    return requests


def serve(engine: EngineProtocol, requests: Sequence[Generate], seed: int = 0) -> dict[str, SampleRecord]:
    """Submit requests at random steps and collect what comes out."""
    generator = random.Random(seed)
    waiting = list(requests)
    records: dict[str, SampleRecord] = {}
    while waiting or engine.has_work:
        for _ in range(generator.choice([0, 1, 2, 6])):
            if waiting:
                engine.submit(waiting.pop(0))
        for event in engine.events():
            if isinstance(event, SampleFinished):
                records[event.request_id] = event.record
    return records


def as_drawn(request: Generate) -> SamplingParameters:
    """The request's parameters with the seed that its prompt's draws have: the oracle knows no prompts' seeds."""
    seed = prompt_seed(request.parameters.seed, request.prompt.token_ids)
    return request.parameters.model_copy(update={"seed": seed})


def _prompt_length(request: Generate) -> int:
    return len(request.prompt.token_ids)


def expect_reference(records: dict[str, SampleRecord], requests: Sequence[Generate], oracle: list[nn.Module]) -> None:
    by_length = groupby(sorted(requests, key=_prompt_length), key=_prompt_length)
    expectations: list[tuple[Generate, ReferenceSample]] = []
    for _, group in by_length:
        batch = list(group)
        samples = reference_sample(
            oracle,
            [request.prompt.token_ids for request in batch],
            [as_drawn(request) for request in batch],
            [request.sample_indices[0] for request in batch],
            eos_token_ids=[EOS],
        )
        expectations += zip(batch, samples, strict=True)
    for request, expected in expectations:
        record = records[request.request_id]
        assert record.completion_token_ids == expected.token_ids, request
        assert record.finish_reason == expected.finish_reason
        assert record.head_sizes == expected.head_sizes
        torch.testing.assert_close(
            torch.tensor([*record.logprobs.values()]), torch.tensor(expected.logprobs), atol=1e-4, rtol=0
        )
        torch.testing.assert_close(
            torch.tensor(record.mixture_logprobs), torch.tensor(expected.mixture_logprobs), atol=1e-4, rtol=0
        )


@pytest.mark.parametrize("kernel", ["compiled", "torch"])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_pairs_equal_the_reference(world: World, family: str, kernel: KernelChoice) -> None:
    folders = world.folder(family, 1), world.folder(family, 2)
    engine = Engine(world.networks(*folders), SMALL.model_copy(update={"kernel": kernel}))
    assert [stack.indices for stack in engine._runner.stacks] == [(0, 1)], "equal shapes run as one"
    requests = random_requests(3, 64, num_networks=2)
    expect_reference(serve(engine, requests), requests, world.oracle(*folders))
    assert engine.stats().num_blocks_free == engine.stats().num_blocks


SHAPES = {
    "deeper": {"num_hidden_layers": 3},
    "wider": {"hidden_size": 48, "intermediate_size": 80},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_networks_of_different_sizes_run_in_lockstep(world: World, shape: str) -> None:
    folders = world.folder("llama", 1), world.folder("llama", 2, **SHAPES[shape])
    engine = Engine(world.networks(*folders), SMALL)
    assert [stack.indices for stack in engine._runner.stacks] == [(0,), (1,)]
    requests = random_requests(4, 24, num_networks=2)
    expect_reference(serve(engine, requests), requests, world.oracle(*folders))


def test_different_architectures_run_in_lockstep(world: World) -> None:
    folders = world.folder("qwen3", 1), world.folder("gpt2", 2)
    requests = random_requests(5, 24, num_networks=2)
    records = serve(Engine(world.networks(*folders), SMALL), requests)
    expect_reference(records, requests, world.oracle(*folders))


@pytest.mark.parametrize("num_networks", [1, 3])
def test_one_network_and_three_equal_the_reference(world: World, num_networks: int) -> None:
    sizes: list[dict[str, Any]] = [{"num_hidden_layers": 3}, {}, {}]
    folders = [world.folder("llama", seed, **sizes[seed if num_networks == 3 else 1]) for seed in range(num_networks)]
    requests = random_requests(6, 24, num_networks=num_networks)
    records = serve(Engine(world.networks(*folders), SMALL), requests)
    expect_reference(records, requests, world.oracle(*folders))


def test_stacked_networks_answer_like_separate_ones(world: World) -> None:
    folders = world.folder("llama-tied", 1), world.folder("llama-tied", 2)
    requests = random_requests(7, 24, num_networks=2, temperature=0.8, top_p=0.9)
    stacked = serve(Engine(world.networks(*folders), SMALL), requests)
    separate = serve(Engine(world.networks(*folders), SMALL.model_copy(update={"stacks_networks": False})), requests)
    assert _tokens(stacked) == _tokens(separate)


def _tokens(records: dict[str, SampleRecord]) -> dict[str, tuple[int, ...]]:
    return {request_id: record.completion_token_ids for request_id, record in records.items()}


def test_a_seeded_sample_is_the_same_alone_in_a_crowd_and_after_preemption(world: World) -> None:
    folders = world.folder("llama", 1), world.folder("llama", 2)
    fixed: dict[str, Any] = {"temperature": 0.9, "max_tokens": 20, "ignore_eos": True, "stop_token_ids": ()}
    requests = random_requests(8, 32, num_networks=2, **fixed)
    roomy = Engine(world.networks(*folders), SMALL)
    alone = {request.request_id: serve(roomy, [request])[request.request_id] for request in requests}
    tight = SMALL.model_copy(update={"kv_memory_bytes": roomy._runner.bytes_per_token * 4 * 30})
    crowded = Engine(world.networks(*folders), tight)
    together = serve(crowded, requests)
    assert crowded.stats().num_preemptions > 0, "memory was meant to run out"
    assert _tokens(together) == _tokens(alone)
    assert crowded.stats().num_blocks_free == crowded.stats().num_blocks


def test_samples_and_an_alpha_sweep_share_their_prompt(world: World) -> None:
    folders = world.folder("llama", 1), world.folder("llama", 2)
    ids = tuple(random.Random(0).randrange(3, VOCAB) for _ in range(33))
    sweep = [
        Generate(
            f"alpha-{alpha}",
            Prompt(token_ids=ids),
            SamplingParameters.contrastive(alpha, max_tokens=9, temperature=0.7, ignore_eos=True),
            tuple(range(4)),
        )
        for alpha in (0.0, 0.4, 1.0)
    ]
    engine = Engine(world.networks(*folders), SMALL)
    records = {
        (event.request_id, event.sample_index): event.record
        for request in sweep
        for event in _run(engine, request)
        if isinstance(event, SampleFinished)
    }
    assert engine.stats().num_prefix_hits == 8 * 11, "eleven of twelve samples take all 8 full blocks from another"
    oracle = world.oracle(*folders)
    for request in sweep:
        for index in request.sample_indices:
            (expected,) = reference_sample(oracle, [ids], [as_drawn(request)], [index], eos_token_ids=[EOS])
            assert records[request.request_id, index].completion_token_ids == expected.token_ids


def _run(engine: Engine, request: Generate) -> list[Any]:
    engine.submit(request)
    happened = []
    while engine.has_work:
        happened += engine.events()
    return happened


def test_scores_equal_the_reference_and_what_sampling_recorded(world: World) -> None:
    folders = world.folder("qwen2", 1), world.folder("qwen2", 2)
    engine = Engine(world.networks(*folders), SMALL)
    oracle = world.oracle(*folders)
    requests = random_requests(9, 12, num_networks=2, temperature=1.0)
    sampled = serve(engine, requests)
    for request in requests:
        record = sampled[request.request_id]
        engine.score(Rate(f"score-{request.request_id}", request.prompt, record.completion_token_ids))
    rated: dict[str, Score] = {}
    while engine.has_work:
        rated |= {event.request_id: event.score for event in engine.events() if isinstance(event, Rated)}
    for request in requests:
        record = sampled[request.request_id]
        score = rated[f"score-{request.request_id}"]
        assert score.completion_token_ids == record.completion_token_ids
        expected = reference_score(oracle, request.prompt.token_ids, record.completion_token_ids)
        roles: tuple[Role, ...] = ("aligned", "base")
        for role, reference in zip(roles, expected, strict=True):
            torch.testing.assert_close(score.logprobs[role], reference, atol=1e-4, rtol=0)
            torch.testing.assert_close(record.logprobs[role], reference, atol=1e-4, rtol=0)


def test_a_score_that_made_room_for_others_has_every_target_once(world: World) -> None:
    folders = world.folder("llama", 1), world.folder("llama", 2)
    small = SMALL.model_copy(update={"max_running": 2, "max_step_tokens": 4})
    bytes_per_token = Engine(world.networks(*folders), small)._runner.bytes_per_token
    tight = small.model_copy(update={"kv_memory_bytes": bytes_per_token * 4 * 8})
    engine = Engine(world.networks(*folders), tight)
    grows = SamplingParameters.contrastive(0.4, max_tokens=26, ignore_eos=True)
    engine.submit(Generate("grows", Prompt(token_ids=(3, 4)), grows))
    prompt, completion = Prompt(token_ids=(5, 6)), tuple(range(7, 33))
    (rated,) = _score(engine, Rate("makes room", prompt, completion))
    assert engine.stats().num_preemptions > 0, "memory was meant to run out"
    expected = reference_score(world.oracle(*folders), prompt.token_ids, completion)
    assert rated.score.completion_token_ids == completion
    for logprobs, reference in zip(rated.score.logprobs.values(), expected, strict=True):
        torch.testing.assert_close(logprobs, reference, atol=1e-4, rtol=0)


def test_a_second_score_shares_the_first_ones_prompt_and_agrees(world: World) -> None:
    folders = world.folder("llama", 1), world.folder("llama", 2)
    engine = Engine(world.networks(*folders), SMALL)
    prompt = Prompt(token_ids=tuple(range(3, 40)))
    scores = []
    for number in range(2):
        engine.score(Rate(f"s{number}", prompt, (5, 6, 7)))
        while engine.has_work:
            scores += [event.score for event in engine.events() if isinstance(event, Rated)]
    assert engine.stats().num_prefix_hits == 9
    for role in ("aligned", "base"):
        torch.testing.assert_close(scores[0].logprobs[role], scores[1].logprobs[role], atol=1e-5, rtol=0)


def test_sampled_frequencies_follow_the_exact_distribution(world: World) -> None:
    """Chi-square of 4,000 first tokens at the 1 - 1e-6 quantile: one false alarm in a million changes of the seeds."""
    folders = world.folder("llama", 1), world.folder("llama", 2)
    parameters = SamplingParameters.contrastive(0.4, max_tokens=1, temperature=0.8, ignore_eos=True, seed=3)
    engine = Engine(world.networks(*folders), SMALL.model_copy(update={"max_running": 256, "max_step_tokens": 256}))
    request = Generate("many", Prompt(token_ids=(4, 9, 17, 5)), parameters, tuple(range(4_000)))
    tokens = [event.record.completion_token_ids[0] for event in _run(engine, request)]
    with torch.no_grad():
        logits = [network(torch.tensor([[4, 9, 17, 5]])).logits[:, -1].double() for network in world.oracle(*folders)]
    rules = stack_rules([parameters], VOCAB)
    expected = warp(mix(logits, rules).scores_BV, rules).exp()[0] * len(tokens)
    observed = torch.bincount(torch.tensor(tokens), minlength=VOCAB).double()
    alive = expected > 0
    assert observed[~alive].sum() == 0
    statistic = ((observed - expected)[alive] ** 2 / expected[alive]).sum().item()
    assert int(alive.sum()) > 2
    assert statistic < chi2.ppf(1 - 1e-6, int(alive.sum()) - 1)


def test_in_bfloat16_a_network_through_our_operators_mixes_with_one_through_its_own_code(world: World) -> None:
    folders = world.folder("llama", 1), world.folder("gpt2", 2)
    engine = Engine(world.networks(*folders, dtype="bfloat16"), SMALL)
    assert [stack.compiled is not None for stack in engine._runner.stacks] == [True, False]
    oracle = world.oracle(*folders)
    for request_id, record in serve(engine, random_requests(12, 8, num_networks=2)).items():
        expected = reference_score(oracle, record.prompt_token_ids, record.completion_token_ids)
        for ours, theirs in zip(record.logprobs.values(), expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=0.35, rtol=0.05, msg=request_id)


def test_bfloat16_stays_near_float32(world: World) -> None:
    folders = world.folder("llama", 1), world.folder("llama", 2)
    prompt, completion = Prompt(token_ids=tuple(range(3, 30))), (8, 9, 10, 11)
    scores = []
    for dtype in ("float32", "bfloat16"):
        engine = Engine(world.networks(*folders, dtype=dtype), SMALL)
        scores += [event.score for event in _score(engine, Rate("s", prompt, completion))]
    for role in ("aligned", "base"):
        torch.testing.assert_close(scores[0].logprobs[role], scores[1].logprobs[role], atol=0.35, rtol=0.05)


def _score(engine: Engine, request: Rate) -> list[Rated]:
    engine.score(request)
    rated: list[Rated] = []
    while engine.has_work:
        rated += [event for event in engine.events() if isinstance(event, Rated)]
    return rated


@pytest.mark.parametrize("family", ["llama-tied", "gpt-neox", "gpt2"])
def test_a_lora_pair_keeps_one_copy_of_the_base_and_is_exact(world: World, family: str, tmp_path: Path) -> None:
    folder = world.folder(family, 1)
    target = {"llama-tied": ["q_proj", "down_proj"], "gpt-neox": ["query_key_value"], "gpt2": ["c_attn"]}[family]
    save_adapter(tmp_path / "adapter", folder, target)
    base = load(folder, "base")
    aligned = attach_adapter(base, str(tmp_path / "adapter"), role="aligned")
    plain = [attach_adapter(load(folder, "base"), str(tmp_path / "adapter"), role="aligned").model, load(folder).model]
    engine = Engine(join_networks([aligned, base]), SMALL)
    assert [stack.indices for stack in engine._runner.stacks] == [(0, 1)]
    own = {parameter.data_ptr(): parameter.numel() for n in (aligned, base) for parameter in n.model.parameters()}
    stacked = [*engine._runner.stacks[0].model.parameters()]
    assert all(parameter.data_ptr() in own for parameter in stacked), "no weight was copied"
    assert sum(own.values()) < 1.5 * base.num_parameters
    requests = random_requests(11, 24, num_networks=2)
    expect_reference(serve(engine, requests), requests, plain)
