"""Requests that come, stream, stop, leave and run out of time; and those that are refused."""

import functools
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cong import schemas
from cong.config.engine import EngineConfig
from cong.decoding import prompt_seed
from cong.engine import Engine, Event, Generate, Rate, Rated, SampleFinished, TokenDrawn, scheduler, sequence
from cong.engine.blocks import prefix_keys
from cong.errors import InvalidRequest, NotEnoughMemory, PromptTooLong
from cong.models import attach_adapter, join_networks
from cong.schemas import Message, Prompt, SampleRequest, SamplingParameters, canonical_json
from tests.engine.conftest import FAMILIES, World, load, save_adapter, save_network
from tests.models.mixtures import MIXTURES

CONFIG = EngineConfig(max_running=8, max_step_tokens=32, block_size=4, kv_memory_bytes=2**20)
PROMPT = Prompt(text="hello")


def make_engine(world: World, **options: Any) -> Engine:
    return Engine(world.networks(world.folder("llama", 1), world.folder("llama", 2)), CONFIG, **options)


def contrast(**fields: Any) -> SamplingParameters:
    return SamplingParameters.contrastive(0.4, **({"max_tokens": 12, "ignore_eos": True} | fields))


def drain(engine: Engine) -> list[Event]:
    happened: list[Event] = []
    while engine.has_work:
        happened += engine.events()
    return happened


def test_streamed_tokens_are_the_sample(world: World) -> None:
    engine = make_engine(world)
    engine.submit(Generate("r", PROMPT, contrast(), (0, 1), streams=True))
    happened = drain(engine)
    for index in (0, 1):
        tokens = [event for event in happened if isinstance(event, TokenDrawn) and event.sample_index == index]
        (record,) = [e.record for e in happened if isinstance(e, SampleFinished) and e.sample_index == index]
        assert tuple(event.token.token_id for event in tokens) == record.completion_token_ids
        assert "".join(event.text for event in tokens) == record.completion_text
        assert tuple(event.token.logprobs[0] for event in tokens) == record.logprobs["aligned"]
    assert isinstance(happened[-1], SampleFinished)


def test_a_stop_string_ends_the_sample_and_is_cut_from_its_text(world: World) -> None:
    engine = make_engine(world)
    engine.submit(Generate("free", PROMPT, contrast(), (0,)))
    (free,) = [event.record for event in drain(engine) if isinstance(event, SampleFinished)]
    text = free.completion_text
    stop = text[4:6]
    engine.submit(Generate("stopped", PROMPT, contrast(stop=(stop,)), (0,)))
    (stopped,) = [event.record for event in drain(engine) if isinstance(event, SampleFinished)]
    assert stopped.finish_reason == "stop"
    assert stopped.completion_text == text[: text.index(stop)]
    num_tokens = len(stopped.completion_token_ids)
    assert stopped.completion_token_ids == free.completion_token_ids[:num_tokens]
    assert stop in text[: num_tokens + 1]


def test_records_carry_provenance_and_name_the_same_question_by_the_same_key(world: World) -> None:
    engine = make_engine(world, writer="w-1")
    for name in ("one", "two"):
        engine.submit(Generate(name, PROMPT, contrast(seed=7), (3,)))
    first, second = (event.record for event in drain(engine) if isinstance(event, SampleFinished))
    assert first.key == second.key
    assert first.completion_token_ids == second.completion_token_ids
    assert [network.role for network in first.networks] == ["aligned", "base"]
    assert first.networks[0].fingerprint != first.networks[1].fingerprint
    assert first.writer == "w-1"
    assert set(first.software) >= {"cong", "torch", "engine"}
    assert first.timings.total_s >= first.timings.first_token_s >= 0
    assert first.implicit_reward_sum is not None
    assert first.prompt == PROMPT


def test_cancelling_frees_everything_and_hurts_nobody_else(world: World) -> None:
    engine = make_engine(world)
    for name in ("gone", "stays"):
        engine.submit(Generate(name, PROMPT, contrast(max_tokens=30), tuple(range(6))))
    happened = [*engine.events(), *engine.events()]
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


def test_a_deadline_ends_what_is_unfinished_waiting_or_running(world: World) -> None:
    now = 100.0
    engine = make_engine(world, clock=lambda: now)
    engine.submit(Generate("late", PROMPT, contrast(max_tokens=40), tuple(range(12)), deadline_s=5.0))
    engine.submit(Generate("free", PROMPT, contrast(max_tokens=3)))
    happened = [*engine.events(), *engine.events(), *engine.events()]
    now = 105.0
    happened += drain(engine)
    late = [e.record for e in happened if isinstance(e, SampleFinished) and e.request_id == "late"]
    assert len(late) == 12
    assert {record.finish_reason for record in late} == {"deadline"}
    assert {len(record.completion_token_ids) for record in late} == {0, 3}, "some waited, some had drawn"
    (free,) = [e.record for e in happened if isinstance(e, SampleFinished) and e.request_id == "free"]
    assert free.finish_reason == "length"
    assert engine.stats().num_blocks_free == engine.stats().num_blocks


def test_a_record_tells_how_long_it_waited_and_how_long_its_first_token_took(world: World) -> None:
    now = 0.0
    engine = make_engine(world, clock=lambda: now)
    long, short = contrast(max_tokens=6), contrast(max_tokens=2)
    engine.submit(Generate("first", PROMPT, long, tuple(range(CONFIG.max_running))))
    engine.submit(Generate("waits", Prompt(token_ids=tuple(range(3, 43))), short))
    engine.submit(Generate("never", PROMPT, short, deadline_s=3.5))
    timings = {}
    while engine.has_work:
        happened = engine.events()
        now += 1.0
        for event in happened:
            if isinstance(event, SampleFinished):
                told = event.record.timings
                timings[event.request_id] = (told.queued_s, told.first_token_s, told.total_s)
    assert timings["first"] == (0.0, 0.0, 5.0)
    assert timings["waits"] == (6.0, 1.0, 8.0), "40 tokens take two steps of 32"
    assert timings["never"] == (4.0, 0.0, 4.0)


def test_a_deadline_is_that_of_its_own_request_whoever_has_the_id_later(world: World) -> None:
    now = 0.0
    engine = make_engine(world, clock=lambda: now)
    engine.submit(Generate("r", PROMPT, contrast(max_tokens=2), deadline_s=5.0))
    drain(engine)
    engine.submit(Generate("r", PROMPT, contrast(max_tokens=4)))
    now = 6.0
    (event,) = drain(engine)
    assert isinstance(event, SampleFinished)
    assert event.record.finish_reason == "length"


def test_a_cancelled_score_is_answered_as_far_as_it_went(world: World) -> None:
    engine = make_engine(world)
    engine.score(Rate("s", PROMPT, (5, 6, 7)))
    engine.cancel("s")
    (event,) = drain(engine)
    assert isinstance(event, Rated)
    assert event.score.completion_token_ids == ()


def test_generate_yields_every_sample_of_a_stream_of_requests(world: World) -> None:
    engine = make_engine(world)
    requests = (
        SampleRequest(
            prompt=Prompt(text="hello "[: 1 + i % 7 % 6] + "abcdefg"[i % 7]),
            parameters=contrast(max_tokens=1 + i % 5),
            num_samples=2,
        )
        for i in range(40)
    )
    records = list(engine.generate(requests))
    assert len(records) == 80
    assert len({record.key for record in records}) == 7 * 5 * 2
    assert engine.stats().num_finished == 80


def test_who_stops_taking_samples_leaves_nothing_behind(world: World) -> None:
    engine = make_engine(world)
    requests = [SampleRequest(prompt=PROMPT, parameters=contrast(max_tokens=tokens)) for tokens in (9, 2, 12)]
    for record in engine.generate(requests):
        assert len(record.completion_token_ids) == 2
        break
    assert not engine.has_work
    assert [len(record.completion_token_ids) for record in engine.generate(requests)] == [2, 9, 12]


def interrupt(*arguments: Any) -> None:
    """A Ctrl-C."""
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("num_steps", [0, 1, 3])
def test_an_interrupted_step_leaves_an_engine_that_draws_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch, num_steps: int
) -> None:
    parameters = contrast(max_tokens=6, repetition_penalty=1.3)
    requests = [SampleRequest(prompt=Prompt(text=f"{end}hello hello {end}"), parameters=parameters) for end in "abc"]
    requests = [request.model_copy(update={"num_samples": 2}) for request in requests]
    drawn = {record.key: record.completion_token_ids for record in make_engine(world).generate(requests)}
    engine = make_engine(world)
    steps = [engine._runner.forward] * num_steps
    with monkeypatch.context() as patch:
        patch.setattr(engine._runner, "forward", lambda *chunks: (steps.pop() if steps else interrupt)(*chunks))
        with pytest.raises(KeyboardInterrupt):
            list(engine.generate(requests))
    assert not engine.has_work
    assert engine.stats().num_blocks_free == engine.stats().num_blocks
    assert {record.key: record.completion_token_ids for record in engine.generate(requests)} == drawn


def test_who_goes_on_after_an_interrupted_step_gets_the_same_samples(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn(engine: Engine) -> list[tuple[int, ...]]:
        records = [event.record for event in drain(engine) if isinstance(event, SampleFinished)]
        return [record.completion_token_ids for record in sorted(records, key=lambda record: record.sample_index)]

    expected, engine = make_engine(world), make_engine(world)
    for one in (expected, engine):
        one.submit(Generate("r", PROMPT, contrast(repetition_penalty=100.0), (0, 1)))
    engine.events()
    with monkeypatch.context() as patch:  # after tokens were drawn, before anybody has taken them
        patch.setattr(engine._drawer, "score", interrupt)
        with pytest.raises(KeyboardInterrupt):
            engine.events()
    assert drawn(engine) == drawn(expected)


def test_requests_that_cannot_be_read_leave_nothing_behind(world: World) -> None:
    engine = make_engine(world)
    request = SampleRequest(prompt=PROMPT, parameters=contrast(max_tokens=3))

    def unreadable() -> Iterator[SampleRequest]:
        yield request
        raise ValueError("a line that is no prompt")

    with pytest.raises(ValueError, match="a line that is no prompt"):
        list(engine.generate(unreadable()))
    assert not engine.has_work
    assert len(list(engine.generate([request]))) == 1


@pytest.mark.parametrize(
    ("request_", "error", "words"),
    [
        (Generate("r", PROMPT, SamplingParameters.plain(), (0,)), InvalidRequest, "1 entries, and this engine holds 2"),
        (Generate("r", PROMPT, contrast(exempt_token_ids=(61,)), (0,)), InvalidRequest, "ids 0 to 60"),
        (Generate("r", Prompt(token_ids=(3, 99)), contrast(), (0,)), InvalidRequest, "prompt.token_ids: holds 99"),
        (Generate("r", PROMPT, contrast(), ()), InvalidRequest, "sample_indices: are (); give at least one"),
        (Generate("r", PROMPT, contrast(), (0, -1)), InvalidRequest, "none below 0"),
        (Generate("r", PROMPT, contrast(max_tokens=156), (0,)), PromptTooLong, "together they may be 160"),
        (Rate("r", PROMPT, ()), InvalidRequest, "at least one token"),
        (Rate("r", PROMPT, (3,) * 158), PromptTooLong, "shorten one of them"),
    ],
)
def test_what_can_never_be_served_is_refused_at_once(
    world: World, request_: Generate | Rate, error: type[Exception], words: str
) -> None:
    engine = make_engine(world)
    with pytest.raises(error, match=re.escape(words)):
        engine.score(request_) if isinstance(request_, Rate) else engine.submit(request_)
    assert not engine.has_work


def test_an_id_in_use_is_refused_and_its_owner_goes_on(world: World) -> None:
    engine = make_engine(world)
    engine.submit(Generate("r", PROMPT, contrast(), (0,)))
    with pytest.raises(InvalidRequest, match="in use"):
        engine.submit(Generate("r", PROMPT, contrast(), (0,)))
    assert len(drain(engine)) == 1


def test_messages_without_a_template_are_refused(world: World) -> None:
    engine = make_engine(world)
    messages = (Message(role="user", content="hi"),)
    with pytest.raises(Exception, match="template"):
        engine.submit(Generate("r", Prompt(messages=messages), contrast(), (0,)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kv_memory_bytes": 1000}, "room for at least 2 blocks"),
        ({"kv_memory_bytes": 2**60}, "ask for less"),
    ],
)
def test_an_impossible_memory_budget_is_refused_with_its_numbers(
    world: World, settings: dict[str, int], words: str
) -> None:
    networks = world.networks(world.folder("llama", 1), world.folder("llama", 2))
    with pytest.raises(NotEnoughMemory, match=words):
        Engine(networks, CONFIG.model_copy(update=settings))


def test_stats_add_up(world: World) -> None:
    engine = make_engine(world)
    engine.submit(Generate("r", Prompt(token_ids=tuple(range(3, 13))), contrast(max_tokens=5), (0,)))
    drain(engine)
    stats = engine.stats()
    assert stats.num_drawn_tokens == 5
    assert stats.num_prompt_tokens == 10 + 4 - 5, "what was computed and not drawn in the same step"
    assert stats.num_steps == 5
    assert set(stats.seconds) == {"schedule", "forward", "mix", "commit"}
    assert stats.bytes_moved > 5 * engine.networks.own_bytes


def test_the_share_of_the_bound_is_what_steps_need_over_what_they_take(world: World) -> None:
    engine = Engine(world.networks(world.folder("llama", 1)), EngineConfig(kv_memory_bytes=2**22))
    assert engine.stats().share_of_bound == 0.0
    engine.submit(Generate("r", Prompt(token_ids=(5, 6, 7)), SamplingParameters.plain(max_tokens=4, ignore_eos=True)))
    while engine.has_work:
        engine.events()
    stats, ceiling = engine.stats(), engine._ceiling
    assert stats.bytes_moved / ceiling.bytes_per_s <= stats.bound_s * (1 + 1e-9)
    assert stats.num_operations / ceiling.operations_per_s <= stats.bound_s * (1 + 1e-9)
    assert stats.share_of_bound == stats.bound_s / sum(stats.seconds.values()) > 0.0


@pytest.mark.parametrize(
    ("config", "num_met"),
    [(FAMILIES["llama"](), 3 * 32 * 48), (MIXTURES["mixtral"](), 2 * 3 * 32 * 48 + 8 * 32)],
    ids=["dense", "mixture"],
)
def test_operations_and_bytes_by_hand(config: Any, num_met: int, tmp_path: Path) -> None:
    """A token meets 2 of 8 experts, and logits are computed only to draw from them."""
    network = load(save_network(tmp_path / "network", config, 1))
    engine = Engine(join_networks([network]), EngineConfig(kv_memory_bytes=2**22))
    prompt = Prompt(token_ids=tuple(range(3, 13)))
    engine.submit(Generate("r", prompt, SamplingParameters.plain(max_tokens=5, ignore_eos=True), (0,)))
    drain(engine)
    stats = engine.stats()
    attention = 2 * 32 * 8 * (4 + 2)
    assert stats.num_operations == 2 * (14 * 2 * (attention + num_met) + 5 * 61 * 32)
    # Steps of 10 tokens, 1, 1, 1 and 1, which look at 10, 11, 12, 13 and 14; of 8 experts a token leaves 6 out.
    is_mixture = hasattr(config, "num_local_experts")
    unmet = is_mixture * 2 * 8 * 3 * 32 * 48 * sum(0.75**number for number in (10, 1, 1, 1, 1))
    weights = 5 * network.num_parameters - unmet
    assert stats.bytes_moved == pytest.approx(4 * weights + 60 * engine._runner.bytes_per_token, abs=5)


def test_a_mixture_under_an_adapter_is_read_once(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    folder = save_network(tmp_path / "network", MIXTURES["mixtral"](), 1)
    save_adapter(tmp_path / "adapter", folder, ["q_proj"])
    base = load(folder, "base")
    aligned = attach_adapter(base, str(tmp_path / "adapter"), role="aligned")
    engine = Engine(join_networks([aligned, base]), EngineConfig(kv_memory_bytes=2**22))
    adapter = 2 * 2 * 4 * 32  # rank 4, in and out, 2 layers
    assert aligned.weights.num_body - base.weights.num_body == adapter
    assert engine._cost.num_bytes(1, 0) == 4 * (base.weights.num_active + adapter)
    assert engine._cost.num_operations(1, 0) == 2 * (2 * base.weights.num_body + adapter)


def test_the_samples_of_a_request_go_through_its_prompt_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for a thousand may not stop everybody else for as long as a thousand long prompts take."""
    engine = make_engine(world)
    walks: list[str] = []

    def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            walks.append(name)
            return function(*arguments)

        return call

    monkeypatch.setattr(sequence, "_seed_of", functools.lru_cache(maxsize=1)(counting("seed", prompt_seed)))
    monkeypatch.setattr(scheduler, "prefix_keys", counting("prefixes", prefix_keys))
    monkeypatch.setattr(schemas, "canonical_json", counting("key", canonical_json))
    engine.submit(Generate("many", Prompt(token_ids=(5, 6, 7, 8), prompt_id="p"), contrast(), tuple(range(20))))
    assert sorted(walks) == ["key", "prefixes", "seed"]
    keys = [event.record.key for event in drain(engine) if isinstance(event, SampleFinished)]
    assert len(set(keys)) == 20
