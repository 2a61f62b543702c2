"""The engine on a GPU: tiles, captured graphs and compiled layers, against the uncached sampler on the CPU."""

import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import chi2

from cong.config.engine import EngineConfig
from cong.decoding import mix, stack_rules, warp
from cong.engine import Engine, Generate, Rate, drawing
from cong.engine.gpu import heads
from cong.engine.gpu.joined import FirstProduct
from cong.models import attach_adapter, join_networks
from cong.schemas import Prompt, SamplingParameters
from tests.engine.conftest import FAMILIES, VOCAB, World, load, save_adapter
from tests.engine.test_exactness import _run, _score, _tokens, expect_reference, random_requests, serve

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

PLAIN = EngineConfig(
    max_running=16,
    max_step_tokens=40,
    block_size=4,
    kv_memory_bytes=2**22,
    captures_graphs=False,
    compiles_layers=False,
)
CAPTURED = PLAIN.model_copy(update={"captures_graphs": True})
COMPILED = CAPTURED.model_copy(update={"compiles_layers": True})


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_pairs_equal_the_reference(world: World, family: str) -> None:
    folders = world.folder(family, 1), world.folder(family, 2)
    engine = Engine(world.networks(*folders, device="cuda"), CAPTURED)
    assert engine._runner.has_tiles
    assert engine._runner._captured is not None
    requests = random_requests(3, 48, num_networks=2)
    expect_reference(serve(engine, requests), requests, world.oracle(*folders))
    assert engine.stats().num_blocks_free == engine.stats().num_blocks


@pytest.mark.parametrize(
    ("family", "joins_products"),
    [("llama", True), ("qwen3", True), ("gemma2", True), ("qwen2", True), ("qwen2", False)],
)
def test_compiled_layers_equal_the_reference(world: World, family: str, joins_products: bool) -> None:
    folders = world.folder(family, 1), world.folder(family, 2)
    config = COMPILED.model_copy(update={"joins_products": joins_products})
    engine = Engine(world.networks(*folders, device="cuda"), config)
    joint = [module for module in engine._runner.stacks[0].model.modules() if isinstance(module, FirstProduct)]
    assert bool(joint) == joins_products
    requests = random_requests(4, 48, num_networks=2)
    expect_reference(serve(engine, requests), requests, world.oracle(*folders))


def test_torch_alone_equals_the_reference(world: World) -> None:
    folders = world.folder("mistral-window", 1), world.folder("mistral-window", 2)
    engine = Engine(world.networks(*folders, device="cuda"), PLAIN.model_copy(update={"kernel": "torch"}))
    assert not engine._runner.has_tiles
    requests = random_requests(5, 24, num_networks=2)
    expect_reference(serve(engine, requests), requests, world.oracle(*folders))


@pytest.mark.parametrize("num_networks", [1, 3])
def test_one_network_and_three_equal_the_reference(world: World, num_networks: int) -> None:
    sizes: list[dict[str, Any]] = [{"num_hidden_layers": 3}, {}, {}]
    folders = [world.folder("llama", seed, **sizes[seed if num_networks == 3 else 1]) for seed in range(num_networks)]
    requests = random_requests(6, 24, num_networks=num_networks)
    records = serve(Engine(world.networks(*folders, device="cuda"), CAPTURED), requests)
    expect_reference(records, requests, world.oracle(*folders))


def test_a_seeded_sample_is_the_same_alone_in_a_crowd_and_after_preemption(world: World) -> None:
    folders = world.folder("llama", 1), world.folder("llama", 2)
    fixed: dict[str, Any] = {"temperature": 0.9, "max_tokens": 20, "ignore_eos": True, "stop_token_ids": ()}
    requests = random_requests(8, 32, num_networks=2, **fixed)
    roomy = Engine(world.networks(*folders, device="cuda"), CAPTURED)
    alone = {request.request_id: serve(roomy, [request])[request.request_id] for request in requests}
    tight = CAPTURED.model_copy(update={"kv_memory_bytes": roomy._runner.bytes_per_token * 4 * 30})
    crowded = Engine(world.networks(*folders, device="cuda"), tight)
    together = serve(crowded, requests)
    assert crowded.stats().num_preemptions > 0, "memory was meant to run out"
    assert _tokens(together) == _tokens(alone)


def test_sampled_frequencies_follow_the_exact_distribution(world: World) -> None:
    """Chi-square of 4,000 first tokens at the 1 - 1e-6 quantile: one false alarm in a million changes of the seeds."""
    folders = world.folder("llama", 1), world.folder("llama", 2)
    parameters = SamplingParameters.contrastive(0.4, max_tokens=1, temperature=0.8, ignore_eos=True, seed=3)
    config = CAPTURED.model_copy(update={"max_running": 256, "max_step_tokens": 256})
    engine = Engine(world.networks(*folders, device="cuda"), config)
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
    assert statistic < chi2.ppf(1 - 1e-6, int(alive.sum()) - 1)


def test_rows_without_a_head_set_are_decoded_on_the_whole_vocabulary(world: World) -> None:
    folders = world.folder("llama", 1), world.folder("llama", 2)
    requests = random_requests(7, 24, num_networks=2, head_lambda=0.0)
    records = serve(Engine(world.networks(*folders, device="cuda"), CAPTURED), requests)
    expect_reference(records, requests, world.oracle(*folders))


def test_steps_one_at_a_time_equal_the_reference(world: World) -> None:
    folders = world.folder("llama", 1), world.folder("llama", 2)
    config = CAPTURED.model_copy(update={"looks_ahead": False})
    requests = random_requests(12, 24, num_networks=2)
    engine = Engine(world.networks(*folders, device="cuda"), config)
    expect_reference(serve(engine, requests), requests, world.oracle(*folders))


@pytest.mark.parametrize("config", [CAPTURED, PLAIN])
def test_decoding_waits_for_the_device_only_where_tokens_arrive(world: World, config: EngineConfig) -> None:
    """Whatever else waits, such as a copy from pageable memory, would undo that a step begins ahead."""
    folders = world.folder("llama", 1), world.folder("llama", 2)
    engine = Engine(world.networks(*folders, device="cuda"), config)
    fixed: dict[str, Any] = {"head_lambda": 0.1, "max_tokens": 40, "min_tokens": 0, "ignore_eos": True}
    requests = random_requests(13, 4, num_networks=2, stop_token_ids=(), **fixed)
    serve(engine, requests)  # compiles the kernels
    for request in requests:
        engine.submit(request)
    drawn = [engine.stats().num_drawn_tokens]
    while len(drawn) < 2 or drawn[-1] - drawn[-2] < len(requests):
        engine.events()
        drawn.append(engine.stats().num_drawn_tokens)
    try:
        torch.cuda.set_sync_debug_mode("error")
        for _ in range(8):
            engine.events()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert engine.stats().num_drawn_tokens == drawn[-1] + 8 * len(requests)


def test_a_captured_step_is_computed_again_where_head_sets_were_too_large(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step ahead has been computed in its place, with tokens that were none."""
    for module in (drawing, heads):
        monkeypatch.setattr(module, "HEAD_WIDTH", 16)
    folders = world.folder("llama", 1), world.folder("llama", 2)
    requests = random_requests(5, 24, num_networks=2, head_lambda=1e-4, repetition_penalty=1.3)
    engine = Engine(world.networks(*folders, device="cuda"), CAPTURED)
    expect_reference(serve(engine, requests), requests, world.oracle(*folders))


def test_bfloat16_stays_near_float32_on_the_cpu(world: World) -> None:
    folders = world.folder("llama", 1), world.folder("llama", 2)
    prompt, completion = Prompt(token_ids=tuple(range(3, 30))), (8, 9, 10, 11)
    exact = _score(Engine(world.networks(*folders), PLAIN), Rate("s", prompt, completion))[0].score
    networks = world.networks(*folders, dtype="bfloat16", device="cuda")
    near = _score(Engine(networks, COMPILED), Rate("s", prompt, completion))[0].score
    for role in ("aligned", "base"):
        torch.testing.assert_close(near.logprobs[role], exact.logprobs[role], atol=0.35, rtol=0.05)


def test_decoding_in_bfloat16_stays_near_float32_on_the_cpu(world: World) -> None:
    """In the mean: rounding alone parts them by .03, on a CPU too."""
    folders = [world.folder("qwen2", seed) for seed in (1, 2)]
    engine = Engine(world.networks(*folders, dtype="bfloat16", device="cuda"), COMPILED)
    assert engine._runner._captured is not None
    fixed: dict[str, Any] = {"max_tokens": 20, "min_tokens": 0, "ignore_eos": True, "stop_token_ids": ()}
    requests = random_requests(14, 16, num_networks=2, **fixed)
    records = serve(engine, requests)
    exact = Engine(world.networks(*folders), PLAIN)
    differences = []
    for request in requests:
        record = records[request.request_id]
        score = _score(exact, Rate("s", request.prompt, record.completion_token_ids))[0].score
        differences += [
            abs(ours - theirs)
            for role in ("aligned", "base")
            for ours, theirs in zip(record.logprobs[role], score.logprobs[role], strict=True)
        ]
    assert statistics.mean(differences) < 0.1


def test_a_lora_pair_keeps_one_copy_of_the_base_and_is_exact(world: World, tmp_path: Path) -> None:
    folder = world.folder("llama-tied", 1)
    save_adapter(tmp_path / "adapter", folder, ["q_proj", "down_proj"])
    base = load(folder, "base", device="cuda")
    aligned = attach_adapter(base, str(tmp_path / "adapter"), role="aligned")
    plain = [attach_adapter(load(folder, "base"), str(tmp_path / "adapter"), role="aligned").model, load(folder).model]
    requests = random_requests(11, 24, num_networks=2)
    expect_reference(serve(Engine(join_networks([aligned, base]), CAPTURED), requests), requests, plain)
