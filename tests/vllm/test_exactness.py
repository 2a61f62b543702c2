"""vLLM with our networks as one model against the uncached reference sampler and our own engine, token for token."""

import random
from typing import Any

import pytest
import torch
from scipy.stats import chi2

from cong.config.engine import EngineConfig
from cong.decoding import mix, stack_rules, warp
from cong.engine import Engine, EngineProtocol, Generate, Rate, Rated
from cong.lab.sampler import reference_score
from cong.schemas import Prompt, Role, SampleRecord, SampleRequest, SamplingParameters, Score
from tests.engine.conftest import VOCAB
from tests.engine.test_exactness import expect_reference, random_requests, serve
from tests.vllm.conftest import BLOCK, EXACT, VllmWorld

OURS = EngineConfig(max_running=16, max_step_tokens=40, block_size=4, kv_memory_bytes=2**24)


def run(engine: EngineProtocol, request: Generate | Rate) -> list[Any]:
    """Everything that happens until the engine is idle."""
    engine.score(request) if isinstance(request, Rate) else engine.submit(request)
    happened: list[Any] = []
    while engine.has_work:
        happened += engine.events()
    return happened


def tokens_of(records: dict[str, SampleRecord]) -> dict[str, tuple[int, ...]]:
    return {request_id: record.completion_token_ids for request_id, record in records.items()}


@pytest.mark.parametrize("family", EXACT)
def test_greedy_pairs_equal_the_reference_and_our_engine(world: VllmWorld, family: str) -> None:
    """Requests of every kind in one batch, arriving at random steps."""
    folders = world.folder(family, 1), world.folder(family, 2)
    requests = random_requests(3, 64, num_networks=2)
    ours = serve(Engine(world.networks(*folders), OURS), requests)
    # Before vLLM starts: for some architectures it changes transformers' own class in this process.
    expect_reference(ours, requests, world.oracle(*folders))
    records = serve(world.engine(*folders), requests)
    assert tokens_of(records) == tokens_of(ours)
    for request_id, record in records.items():
        expected = ours[request_id]
        assert record.finish_reason == expected.finish_reason
        assert record.head_sizes == expected.head_sizes
        torch.testing.assert_close(record.mixture_logprobs, expected.mixture_logprobs, atol=1e-3, rtol=0)
        for role in ("aligned", "base"):
            torch.testing.assert_close(record.logprobs[role], expected.logprobs[role], atol=1e-3, rtol=0)


@pytest.mark.parametrize("num_networks", [1, 3])
def test_one_network_and_three_equal_the_reference(world: VllmWorld, num_networks: int) -> None:
    deeper: list[dict[str, Any]] = [{"num_hidden_layers": 3}, {}, {}]
    folders = [world.folder("llama", seed, **deeper[seed if num_networks == 3 else 1]) for seed in range(num_networks)]
    requests = random_requests(6, 24, num_networks=num_networks)
    engine = world.engine(*folders)
    expect_reference(serve(engine, requests), requests, world.oracle(*folders))
    (rated,) = run(engine, Rate("s", Prompt(token_ids=(4, 9, 17)), (5, 6, 7)))
    expected = reference_score(world.oracle(*folders), (4, 9, 17), (5, 6, 7))
    for logprobs, reference in zip(rated.score.logprobs.values(), expected, strict=True):
        torch.testing.assert_close(logprobs, reference, atol=1e-3, rtol=0)


def test_different_widths_and_architectures_run_in_lockstep(world: VllmWorld) -> None:
    wide = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    folders = world.folder("qwen3", 1), world.folder("llama", 2, **wide)
    requests = random_requests(5, 24, num_networks=2)
    expect_reference(serve(world.engine(*folders), requests), requests, world.oracle(*folders))


@pytest.mark.parametrize("kernel", ["auto", "torch"])
def test_a_seeded_draw_is_that_of_our_engine_with_and_without_our_kernels(world: VllmWorld, kernel: str) -> None:
    folders = world.folder("llama", 1), world.folder("llama", 2)
    generator = random.Random(12)
    requests = [
        request
        for number in range(6)
        for request in random_requests(
            20 + number,
            8,
            num_networks=2,
            temperature=generator.choice([0.5, 0.9, 1.3]),
            top_p=generator.choice([0.7, 0.95, 1.0]),
            top_k=generator.choice([0, 3, 20]),
        )
    ]
    requests = [
        Generate(f"s{number}", request.prompt, request.parameters, request.sample_indices)
        for number, request in enumerate(requests)
    ]
    ours = serve(Engine(world.networks(*folders), OURS), requests)
    changes = {} if kernel == "auto" else {"kernel": kernel}
    assert tokens_of(serve(world.engine(*folders, **changes), requests, seed=1)) == tokens_of(ours)


def test_records_differ_from_our_engines_only_in_who_computed_and_when(world: VllmWorld) -> None:
    folders = world.folder("llama", 1), world.folder("llama", 2)
    (request,) = random_requests(30, 1, num_networks=2, temperature=1.0, max_tokens=12)
    theirs = serve(world.engine(*folders), [request])[request.request_id]
    ours = serve(Engine(world.networks(*folders), OURS), [request])[request.request_id]
    assert theirs.software["engine"] == "vllm"
    assert theirs.software["vllm"]
    told = {"software", "timings", "created_at", "logprobs", "mixture_logprobs"}
    assert theirs.model_dump(exclude=told) == ours.model_dump(exclude=told)
    assert theirs.timings.total_s >= theirs.timings.first_token_s >= 0


def test_preemption_changes_no_token(world: VllmWorld) -> None:
    folders = world.folder("llama", 1), world.folder("llama", 2)
    fixed: dict[str, Any] = {"temperature": 0.9, "max_tokens": 60, "ignore_eos": True, "stop_token_ids": ()}
    requests = random_requests(8, 32, num_networks=2, **fixed)
    roomy = world.engine(*folders)
    alone = {request.request_id: serve(roomy, [request])[request.request_id] for request in requests[:8]}
    bytes_per_block = 2 * 2 * 2 * 32 * 4 * BLOCK  # two networks of two layers: keys and values, 32 wide, float32
    crowded = world.engine(*folders, kv_memory_bytes=bytes_per_block * 14)
    together = serve(crowded, requests)
    assert crowded.stats().num_preemptions > 0, "memory was meant to run out"
    for request_id, record in alone.items():
        assert together[request_id].completion_token_ids == record.completion_token_ids
    assert crowded.stats().num_blocks_free == crowded.stats().num_blocks


def test_samples_of_one_prompt_share_its_blocks(world: VllmWorld) -> None:
    folders = world.folder("llama", 1), world.folder("llama", 2)
    engine = world.engine(*folders)
    generator = random.Random(77)
    prompt = Prompt(token_ids=tuple(generator.randrange(3, VOCAB) for _ in range(2 * BLOCK + 5)))
    before = engine.stats().num_prefix_hits
    request = Generate("many", prompt, SamplingParameters.contrastive(0.4, max_tokens=9, ignore_eos=True), (0, 1, 2, 3))
    together = {event.sample_index: event.record.completion_token_ids for event in run(engine, request)}
    assert engine.stats().num_prefix_hits - before >= 2 * 3, "three of four samples take both full blocks"
    ours = Engine(world.networks(*folders), OURS)
    assert {event.sample_index: event.record.completion_token_ids for event in run(ours, request)} == together


def test_scores_equal_the_reference_and_what_sampling_recorded(world: VllmWorld) -> None:
    folders = world.folder("qwen2", 1), world.folder("qwen2", 2)
    engine = world.engine(*folders)
    oracle = world.oracle(*folders)
    requests = random_requests(9, 12, num_networks=2, temperature=1.0)
    sampled = serve(engine, requests)
    for request in requests:
        completion = sampled[request.request_id].completion_token_ids
        engine.score(Rate(f"score-{request.request_id}", request.prompt, completion))
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
            torch.testing.assert_close(score.logprobs[role], reference, atol=1e-3, rtol=0)
            torch.testing.assert_close(record.logprobs[role], reference, atol=1e-3, rtol=0)


def test_samples_and_scores_may_share_a_step_and_fill_the_context(world: VllmWorld) -> None:
    folders = world.folder("llama", 1), world.folder("llama", 2)
    engine = world.engine(*folders)
    generator = random.Random(4)
    ids = [generator.randrange(3, VOCAB) for _ in range(160)]
    engine.score(Rate("long", Prompt(token_ids=tuple(ids[:100])), tuple(ids[100:])))
    engine.score(Rate("short", Prompt(token_ids=tuple(ids[:5])), (7,)))
    plain = SamplingParameters.contrastive(0.4, max_tokens=150, temperature=0.0, ignore_eos=True)
    engine.submit(Generate("sample", Prompt(token_ids=tuple(ids[:10])), plain, (0,)))
    happened: dict[str, Any] = {}
    while engine.has_work:
        happened |= {event.request_id: event for event in engine.events()}
    oracle = world.oracle(*folders)
    for name, prompt, completion in (("long", ids[:100], ids[100:]), ("short", ids[:5], [7])):
        for role, reference in zip(("aligned", "base"), reference_score(oracle, prompt, completion), strict=True):
            torch.testing.assert_close(happened[name].score.logprobs[role], reference, atol=1e-3, rtol=0)
    assert len(happened["sample"].record.completion_token_ids) == 150
    assert happened["sample"].record.finish_reason == "length"


def test_sampled_frequencies_follow_the_exact_distribution(world: VllmWorld) -> None:
    """Chi-square of 2,000 first tokens at the 1 - 1e-6 quantile: one false alarm in a million changes of the seeds."""
    folders = world.folder("llama", 1), world.folder("llama", 2)
    parameters = SamplingParameters.contrastive(0.4, max_tokens=1, temperature=0.8, ignore_eos=True, seed=3)
    engine = world.engine(*folders, max_running=256, max_step_tokens=256)
    request = Generate("many", Prompt(token_ids=(4, 9, 17, 5)), parameters, tuple(range(2_000)))
    tokens = [event.record.completion_token_ids[0] for event in run(engine, request)]
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


def test_generate_yields_every_sample_but_the_known_ones(world: VllmWorld) -> None:
    engine = world.engine(world.folder("llama", 1), world.folder("llama", 2))
    parameters = SamplingParameters.contrastive(0.4, max_tokens=3, ignore_eos=True)
    requests = [
        SampleRequest(prompt=Prompt(text=text), parameters=parameters, num_samples=2) for text in ("ab", "cd", "ef")
    ]
    known = {engine.keys(requests[0])[1]}
    records = list(engine.generate(requests, known))
    assert len(records) == 5
    assert not known & {record.key for record in records}
