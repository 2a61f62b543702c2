"""Networks whose logits are no numbers for some tokens: whoever meets them ends in error, and nobody else."""

import math
from typing import Any

import pytest
import torch

from cong.config.engine import EngineConfig, KernelChoice
from cong.engine import Engine, Event, Generate, Rate, Rated, SampleFinished
from cong.errors import ModelError
from cong.models import Network, NetworkSet
from cong.schemas import Prompt, SampleRequest, SamplingParameters
from tests.engine.conftest import ALPHABET, World
from tests.engine.test_exactness import SMALL, expect_reference, random_requests

BAD = 44
"""The token whose embedding is broken in one of the networks, and which none is tried with at the start."""
BAD_TEXT = ALPHABET[BAD - 3]
ROOMY = SMALL.model_copy(update={"max_step_tokens": 64})


def broken(world: World, role: int, value: float = math.nan) -> NetworkSet:
    """A pair of which one network does not know a token."""
    networks = world.networks(world.folder("llama", 1), world.folder("llama", 2))
    with torch.no_grad():
        _embeddings(networks.networks[role])[BAD] = value
    return networks


def _embeddings(network: Network) -> torch.Tensor:
    model: Any = network.model
    weight: torch.Tensor = model.get_input_embeddings().weight
    return weight


def contrast(**fields: Any) -> SamplingParameters:
    return SamplingParameters.contrastive(0.4, **({"max_tokens": 6, "ignore_eos": True} | fields))


def drain(engine: Engine) -> list[Event]:
    happened: list[Event] = []
    while engine.has_work:
        happened += engine.events()
    return happened


WAYS: dict[str, dict[str, Any]] = {
    "drawn": {},
    "greedy": {"temperature": 0.0},
    "cut": {"top_p": 0.9, "top_k": 5},
    "with temperatures": {"network_temperatures": (1.0, 0.9)},
    "penalized": {"repetition_penalty": 1.3, "penalty_rule": "reference"},
    "exempt": {"exempt_token_ids": tuple(range(61)), "head_lambda": 0.0},
}


@pytest.mark.parametrize("kernel", ["compiled", "torch"])
@pytest.mark.parametrize(("role", "value", "name"), [(0, math.nan, "aligned"), (1, math.inf, "base")])
def test_a_sample_ends_in_error_before_the_token_that_no_record_holds(
    world: World, kernel: KernelChoice, role: int, value: float, name: str
) -> None:
    engine = Engine(broken(world, role, value), ROOMY.model_copy(update={"kernel": kernel}))
    for way, fields in WAYS.items():
        engine.submit(Generate(way, Prompt(token_ids=(3, BAD, 5)), contrast(**fields), streams=True))
    engine.score(Rate("scored", Prompt(token_ids=(3, 4)), (5, BAD, 6, 7)))
    happened = drain(engine)
    ended = {event.request_id: event for event in happened if isinstance(event, SampleFinished)}
    assert ended.keys() == WAYS.keys()
    for event in ended.values():
        assert (event.record.finish_reason, event.record.completion_token_ids) == ("error", ())
        assert event.problem.startswith(f"token 0 of the completion has no finite log-probability under {name} (llama-")
    (rated,) = (event for event in happened if isinstance(event, Rated))
    assert len(happened) == len(WAYS) + 1
    told = (5, BAD) if kernel == "compiled" else ()  # torch multiplies what one token may not see by 0
    assert rated.score.completion_token_ids == told
    assert f"under {name}" in rated.problem
    assert engine.stats().num_blocks_free == engine.stats().num_blocks


@pytest.mark.parametrize("kernel", ["compiled", "torch"])
def test_the_others_draw_what_they_draw_alone(world: World, kernel: KernelChoice) -> None:
    config = ROOMY.model_copy(update={"kernel": kernel})
    innocent = [r for r in random_requests(3, 24, num_networks=2) if BAD not in r.prompt.token_ids]
    engine = Engine(broken(world, 0), config)
    happened: list[Event] = []
    for number, request in enumerate(innocent):
        engine.submit(Generate(f"bad {number}", Prompt(token_ids=(BAD,) * (1 + number % 10)), contrast()))
        happened += engine.events()
        engine.submit(request)
        happened += engine.events()
    happened += drain(engine)
    records = {event.request_id: event.record for event in happened if isinstance(event, SampleFinished)}
    reached = {name for name, record in records.items() if record.finish_reason == "error"}
    fine = [request for request in innocent if request.request_id not in reached]
    assert all(records[r.request_id].completion_token_ids[-1] == BAD for r in innocent if r.request_id in reached)
    assert len(fine) > len(innocent) // 2
    expect_reference(records, fine, world.oracle(world.folder("llama", 1), world.folder("llama", 2)))


def test_blocks_of_a_broken_sequence_are_not_shared(world: World) -> None:
    engine = Engine(broken(world, 0), ROOMY.model_copy(update={"kernel": "torch"}))
    opening = tuple(range(5, 25))
    engine.submit(Generate("bad", Prompt(token_ids=(*opening, BAD)), contrast()))
    drain(engine)
    engine.submit(Generate("good", Prompt(token_ids=(*opening, 26)), contrast(max_tokens=2)))
    (event,) = drain(engine)
    assert isinstance(event, SampleFinished)
    assert event.record.finish_reason == "length"


def test_who_samples_offline_hears_of_the_prompt_and_the_network(world: World) -> None:
    engine = Engine(broken(world, 1), EngineConfig(kv_memory_bytes=2**22))
    prompts = [Prompt(token_ids=(4, 5), prompt_id="good"), Prompt(token_ids=(4, BAD), prompt_id="bad")]
    requests = [SampleRequest(prompt=prompt, parameters=contrast()) for prompt in prompts]
    with pytest.raises(ModelError, match=r"prompt 'bad', sample 0: token 0 .* under base \(llama-2-\)"):
        list(engine.generate(requests))


def test_a_network_that_answers_with_no_numbers_is_refused_at_the_start(world: World) -> None:
    networks = world.networks(world.folder("llama", 1), world.folder("llama", 2))
    with torch.no_grad():
        _embeddings(networks.networks[1])[:] = math.inf
    with pytest.raises(ModelError, match=r"llama-2- answers with logits that are not finite"):
        Engine(networks, ROOMY)
