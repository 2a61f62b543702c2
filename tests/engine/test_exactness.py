"""The engine against the uncached reference sampler, token for token."""

import random
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import pytest
import torch
from torch import nn

from cong.config.engine import EngineConfig
from cong.engine import Engine, Generate, SampleFinished
from cong.lab.sampler import ReferenceSample, reference_sample
from cong.schemas import Prompt, SampleRecord, SamplingParameters

from .conftest import EOS, FAMILIES, VOCAB, World  # type: ignore[import-not-found]

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


def serve(engine: Engine, requests: Sequence[Generate], seed: int = 0) -> dict[str, SampleRecord]:
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
            [request.parameters for request in batch],
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


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_pairs_equal_the_reference(world: World, family: str) -> None:
    folders = world.folder(family, 1), world.folder(family, 2)
    engine = Engine(world.networks(*folders), SMALL)
    assert [stack.indices for stack in engine._runner.stacks] == [(0, 1)], "equal shapes run as one"
    requests = random_requests(3, 64, num_networks=2)
    expect_reference(serve(engine, requests), requests, world.oracle(*folders))
    assert engine.stats().num_blocks_free == engine.stats().num_blocks
