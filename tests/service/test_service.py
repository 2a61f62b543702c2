"""Requests become answers: the engine's own, bounded, on time, and gone when nobody waits for them."""

import asyncio
import itertools
from dataclasses import replace
from typing import Any

import pytest

from cong.config.service import ServiceConfig
from cong.engine import Engine
from cong.errors import DeadlineExceeded, InvalidRequest, ModelError, Overloaded, PromptTooLong, SlowReader, Unavailable
from cong.schemas import (
    SMALLEST_PENALTY,
    SMALLEST_TEMPERATURE,
    SMALLEST_TOP_P,
    Prompt,
    SampleRequest,
    SamplingParameters,
    ScoreRequest,
)
from cong.service import SampleService, facts_of
from cong.service.plan import Planner
from cong.wire import SampleCall, SampleEvent, ScoreCall, TokenEvent
from tests.engine.conftest import World
from tests.engine.test_broken import BAD_TEXT, broken
from tests.service.serving import (
    DEFAULTS,
    ENGINE,
    LIMIT_S,
    Troubled,
    expected,
    long_call,
    make_engine,
    pair,
    run,
    serving,
    until,
)


def call(**fields: Any) -> SampleCall:
    return SampleCall.model_validate({"prompt": "hello", **fields})


def test_samples_are_known_by_the_keys_that_the_engine_gives_them(world: World) -> None:
    plain = pair(world)
    asked = call(num_samples=2)
    (prompt,) = asked.prompts
    found: list[str] = []
    for networks in (plain, replace(plain, eos_ids=plain.eos_ids | {7})):
        facts = facts_of(networks, 100, DEFAULTS)
        planner = Planner(facts.vocabulary, networks.identities, DEFAULTS, facts.limits(ServiceConfig()))
        (question,) = planner.plan(asked, has_keys=True).questions
        request = SampleRequest(prompt=prompt, parameters=DEFAULTS, num_samples=2)
        assert question.keys == Engine(networks, ENGINE).keys(request)
        found += question.keys
    assert len({*found}) == 4, "sequences that end elsewhere are other samples"


async def events_of(service: SampleService, asked: SampleCall) -> list[TokenEvent | SampleEvent]:
    async with await service.open(asked) as answer:
        return [event async for batch in answer for event in batch]


def test_answers_are_the_engine_s_own_whoever_asks_at_the_same_time(world: World) -> None:
    parameters = [
        SamplingParameters.contrastive(alpha, seed=seed, max_tokens=9)
        for seed, alpha in enumerate((0.0, 0.4, 0.8, 1.0))
    ]
    calls = [
        SampleCall(prompts=(Prompt(text=text), Prompt(text="so")), num_samples=2, parameters=one)
        for text in ("hello", "good day", "what")
        for one in parameters
    ]

    async def ask() -> list[Any]:
        async with serving(world) as service:
            return await asyncio.gather(*(service.sample(one, request_id="r") for one in calls))

    for asked, reply in zip(calls, run(ask()), strict=True):
        wanted = expected(world, asked)
        found = [sample.record for sample in reply.samples]
        assert [record.completion_token_ids for record in found] == [record.completion_token_ids for record in wanted]
        assert [record.completion_text for record in found] == [record.completion_text for record in wanted]
        assert [record.key for record in found] == [record.key for record in wanted]
        for ours, theirs in zip(found, wanted, strict=True):
            assert ours.mixture_logprobs == pytest.approx(theirs.mixture_logprobs, abs=1e-4)
        assert reply.usage.completion_tokens == sum(len(record.completion_token_ids) for record in wanted)
        assert reply.usage.prompt_tokens == sum(len(wanted[2 * i].prompt_token_ids) for i in range(2))


def test_token_events_concatenate_to_the_text_and_stand_before_their_sample(world: World) -> None:
    async def ask() -> list[TokenEvent | SampleEvent]:
        async with serving(world) as service:
            return await events_of(service, call(num_samples=3, stream="tokens"))

    events = run(ask())
    texts: dict[int, str] = {}
    tokens: dict[int, list[int]] = {}
    for event in events:
        if isinstance(event, TokenEvent):
            texts[event.sample_index] = texts.get(event.sample_index, "") + event.text
            tokens.setdefault(event.sample_index, []).append(event.token_id)
        else:
            record = event.sample.record
            assert texts.pop(record.sample_index) == record.completion_text
            assert tuple(tokens[record.sample_index]) == record.completion_token_ids
    assert not texts
    assert len(tokens) == 3


def test_text_that_was_held_back_for_a_stop_string_comes_with_the_last_token(world: World) -> None:
    async def ask() -> None:
        async with serving(world) as service:
            free = (await service.sample(call())).samples[0].record
            assert free.finish_reason == "length"
            stop = free.completion_text[-2:] + "never"
            events = await events_of(service, call(stream="tokens", parameters={"stop": stop}))
            *tokens, last = events
            assert isinstance(last, SampleEvent)
            assert last.sample.record.completion_text == free.completion_text
            assert "".join(event.text for event in tokens if isinstance(event, TokenEvent)) == free.completion_text
            # What is told again later is told in the same pieces.
            assert service.facts.vocabulary.replay(0, last.sample.record) == tokens

    run(ask())


def test_what_a_request_leaves_out_is_the_deployment_s_own(world: World) -> None:
    async def ask() -> SamplingParameters:
        defaults = SamplingParameters.contrastive(0.7, max_tokens=5, top_p=0.9)
        async with serving(world, defaults=defaults) as service:
            return (await service.sample(call(parameters={"temperature": 0.5}))).samples[0].record.parameters

    assert run(ask()) == SamplingParameters.contrastive(0.7, max_tokens=5, top_p=0.9, temperature=0.5)


def test_a_length_that_nobody_asked_for_is_cut_to_the_room_there_is(world: World) -> None:
    async def ask() -> None:
        async with serving(world, defaults=SamplingParameters(max_tokens=100_000), max_total_tokens=20) as service:
            record = (await service.sample(call(parameters={"ignore_eos": True}))).samples[0].record
            assert len(record.prompt_token_ids) + len(record.completion_token_ids) == 20
            with pytest.raises(InvalidRequest, match=r"parameters.max_tokens: is 100; a sample may have 20"):
                await service.sample(call(parameters={"max_tokens": 100}))
            with pytest.raises(PromptTooLong, match=r"5 tokens and max_tokens asks for 18 more; .* 20 here"):
                await service.sample(call(parameters={"max_tokens": 18}))
            with pytest.raises(PromptTooLong, match=r"the prompt has 30 tokens"):
                await service.sample(call(prompt="a" * 30))

    run(ask())


def test_a_method_by_name_draws_like_its_weights(world: World) -> None:
    async def ask() -> None:
        async with serving(world) as service:
            named = await service.sample(
                call(method="contrastive-decoding", method_parameters={"coefficient": 0.5, "a": 0.2})
            )
            spelled = await service.sample(call(parameters={"weights": [1.0, -0.5], "head_lambda": 0.2}))
            assert named.samples[0].record.key == spelled.samples[0].record.key
            greedy = (await service.sample(call(method="aad"))).samples[0].record.parameters
            assert greedy.temperature == 0.0, "the method prescribes it"

    run(ask())


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"method": "no-such"}, "method"),
        ({"method": "cong", "method_parameters": {"beta": 1.0}}, "method"),
        ({"method": "cong", "parameters": {"alpha": 0.3}}, "parameters.weights"),
        ({"method": "aad", "parameters": {"temperature": 0.3}}, "parameters.temperature"),
        ({"method": "proxy-tuning"}, "parameters.weights"),
        ({"method": "cong", "method_parameters": {"relative_top": 3.0}}, "parameters.head_lambda"),
        ({"parameters": {"weights": [1.0]}}, "parameters.weights"),
        ({"parameters": {"stop_token_ids": [61]}}, "parameters.stop_token_ids"),
        ({"parameters": {"min_tokens": 13}}, "parameters"),
        ({"prompt": {"token_ids": [5, 61]}}, "prompts.0.token_ids"),
        ({"prompts": ["a", "b"], "num_samples": 5}, "num_samples"),
    ],
)
def test_a_field_that_cannot_be_served_is_named(world: World, fields: dict[str, Any], field: str) -> None:
    asked = {"prompt": "hello", **fields} if "prompts" not in fields else fields

    async def ask() -> None:
        async with serving(world, max_samples=9) as service:
            with pytest.raises(InvalidRequest) as caught:
                await service.sample(SampleCall.model_validate(asked))
            assert caught.value.field == field
            assert service.health().num_waiting == 0

    run(ask())


@pytest.mark.parametrize("rule", ["additive", "multiplicative", "reference"])
def test_factors_at_their_bounds_break_nothing(world: World, rule: str) -> None:
    extremes: dict[str, tuple[float, ...]] = {
        "temperature": (0.0, SMALLEST_TEMPERATURE, 100.0),
        "top_p": (SMALLEST_TOP_P, 1.0),
        "repetition_penalty": (SMALLEST_PENALTY, 100.0),
        "head_lambda": (0.0, 5e-324, 1.0),
        "logprob_floor": (-1e4, -5e-324, 0.0),
    }
    others: list[dict[str, Any]] = [
        {"weights": weights, "network_temperatures": temperatures}
        for weights in ([100.0, -100.0], [-100.0, 0.0], [5e-324, 0.0])
        for temperatures in ([], [SMALLEST_TEMPERATURE, 100.0])
    ]

    async def ask() -> None:
        async with serving(world, max_concurrent_per_key=1000) as service:
            asked = [
                call(
                    parameters={
                        "penalty_rule": rule,
                        "max_tokens": 3,
                        **dict(zip(extremes, values, strict=True)),
                        **other,
                    }
                )
                for values in itertools.product(*extremes.values())
                for other in others
            ]
            await asyncio.gather(*(service.sample(one) for one in asked))
            assert service.health().status == "ok"

    run(ask())


def test_scores_are_the_log_probs_that_the_sample_was_recorded_with(world: World) -> None:
    async def ask() -> None:
        async with serving(world) as service:
            records = [sample.record for sample in (await service.sample(call(num_samples=4))).samples]
            items = tuple(
                ScoreRequest(prompt=record.prompt, completion_token_ids=record.completion_token_ids)
                for record in records
            )
            reply = await service.score(ScoreCall(items=items))
            for record, item in zip(records, reply.items, strict=True):
                assert item.score.completion_token_ids == record.completion_token_ids
                for role, values in record.logprobs.items():
                    assert item.score.logprobs[role] == pytest.approx(values, abs=1e-4)
                assert item.implicit_reward_sum == pytest.approx(record.implicit_reward_sum, abs=1e-3)
            with pytest.raises(InvalidRequest, match=r"items.0.completion_text: has no tokens"):
                await service.score(ScoreCall(items=(ScoreRequest(prompt=Prompt(text="a"), completion_text=""),)))

    run(ask())


def test_a_network_s_logits_that_are_no_numbers_end_one_sample_and_no_engine(world: World) -> None:
    async def ask() -> None:
        async with serving(world, Engine(broken(world, 1), ENGINE)) as service:
            wanted = SampleCall.model_validate({"prompts": ["good", BAD_TEXT, "day"], "parameters": {"max_tokens": 1}})
            records = [sample.record for sample in (await service.sample(wanted)).samples]
            assert [record.finish_reason for record in records] == ["length", "error", "length"]
            assert records[1].completion_token_ids == ()
            item = ScoreRequest(prompt=Prompt(text=BAD_TEXT), completion_text="a")
            with pytest.raises(ModelError, match=r"item 0: token 0 of the completion .* under base"):
                await service.score(ScoreCall(items=(item,)))
            assert service.health().status == "ok"

    run(ask())


def test_a_deadline_returns_what_there_is_however_much_was_asked_for(world: World) -> None:
    async def ask() -> None:
        engine = Troubled(make_engine(world))
        engine.step_s = 0.05
        async with serving(world, engine, default_deadline_s=1.5, max_deadline_s=1.6) as service:
            for asked_s in (None, 1.5, 3600.0):
                reply = await service.sample(long_call(deadline_s=asked_s, num_samples=2))
                for sample in reply.samples:
                    assert sample.record.finish_reason == "deadline"
                    assert 0 < len(sample.record.completion_token_ids) < 50
            items = (ScoreRequest(prompt=Prompt(text="a"), completion_text="b" * 100),) * 40
            with pytest.raises(DeadlineExceeded):
                await service.score(ScoreCall(items=items, deadline_s=0.05))
            await until(lambda: service.health().num_running == 0)

    run(ask())


def test_leaving_early_frees_the_seats(world: World) -> None:
    async def ask() -> None:
        engine = Troubled(make_engine(world))
        engine.step_s = 0.05
        async with serving(world, engine) as service:
            async with await service.open(long_call(num_samples=40)) as answer:
                async for _ in answer:
                    break
                assert service.health().num_running == 16
                assert service.health().num_waiting == 24
            await until(lambda: service.health().num_running == 0)
            assert service.health().num_waiting == 0
            assert service.meter.value("cong_request_finished_total", "cancelled") == 40

            waiting = asyncio.ensure_future(service.sample(long_call(num_samples=3)))
            await until(lambda: service.health().num_running == 3)
            waiting.cancel()
            await until(lambda: service.health().num_running == 0)
            assert service.meter.value("cong_request_finished_total", "cancelled") == 43
            assert (await service.sample(call())).samples, "the next one is served as ever"

    run(ask())


def test_too_many_are_told_when_to_come_again(world: World) -> None:
    async def ask() -> None:
        engine = Troubled(make_engine(world, max_running=1))
        engine.may_go_on.clear()
        async with serving(world, engine, max_samples=4, max_waiting=4, max_concurrent_per_key=3) as service:
            first = [asyncio.ensure_future(service.sample(call(num_samples=number), "a")) for number in (1, 4)]
            await asyncio.sleep(0)
            with pytest.raises(Overloaded, match="4 samples wait, 1 more are asked for, and 4 may") as caught:
                await service.sample(call(), "b")
            assert 1.0 <= caught.value.retry_after_s <= 60.0
            engine.may_go_on.set()
            await asyncio.gather(*first)
            await service.sample(call(), "b")

            engine.may_go_on.clear()
            three = [asyncio.ensure_future(service.sample(call(), "a")) for _ in range(3)]
            await asyncio.sleep(0)
            with pytest.raises(Overloaded, match="3 requests of this key"):
                await service.sample(call(), "a")
            other = asyncio.ensure_future(service.sample(call(), "b"))
            engine.may_go_on.set()
            await asyncio.gather(*three, other)

    run(ask())


def test_a_reader_that_does_not_read_loses_its_answer_and_nobody_else_s(world: World) -> None:
    async def ask() -> None:
        async with serving(world, max_buffered_events=20) as service:
            async with await service.open(long_call()) as answer:
                await until(lambda: service.health().num_steps > 0 and service.health().num_running == 0)
                with pytest.raises(SlowReader, match="20 tokens and samples wait"):
                    async for _ in answer:
                        pass
            assert (await service.sample(call())).samples[0].record.finish_reason in ("stop", "length")

    run(ask())


def test_a_stuck_engine_is_noticed_and_callers_get_away(world: World) -> None:
    async def ask() -> None:
        engine = Troubled(make_engine(world))
        async with serving(world, engine, stuck_after_s=0.2) as service:
            await service.sample(call())
            await asyncio.sleep(0.3)
            assert service.health().status == "ok", "idle is not stuck"
            engine.may_go_on.clear()
            waiting = asyncio.ensure_future(service.sample(call(deadline_s=0.5)))
            await until(lambda: service.health().status == "stuck")
            with pytest.raises(Unavailable, match="has not finished a step"):
                await service.sample(call())
            with pytest.raises(DeadlineExceeded, match=r"nothing came within the deadline of 0.5 s"):
                await waiting
            engine.may_go_on.set()
            await until(lambda: service.health().status == "ok")
            await service.sample(call())

    run(ask())


def test_a_broken_engine_is_told_to_everybody(world: World) -> None:
    async def ask() -> None:
        engine = Troubled(make_engine(world))
        engine.may_go_on.clear()
        async with serving(world, engine) as service:
            waiting = [asyncio.ensure_future(service.sample(call())) for _ in range(3)]
            scoring = asyncio.ensure_future(
                service.score(ScoreCall(items=(ScoreRequest(prompt=Prompt(text="a"), completion_text="b"),)))
            )
            await asyncio.sleep(0.01)
            engine.failure = MemoryError("no memory on the device")
            engine.may_go_on.set()
            for one in [*waiting, scoring]:
                with pytest.raises(Unavailable, match="the engine has failed"):
                    await one
            assert service.health().status == "broken"
            with pytest.raises(Unavailable, match="the engine has failed"):
                await service.sample(call())

    run(ask())


def test_a_request_that_the_engine_stumbles_over_hurts_no_other(world: World) -> None:
    async def ask() -> None:
        engine = Troubled(make_engine(world))
        async with serving(world, engine) as service:
            engine.refusal = ZeroDivisionError("a fault of ours")
            with pytest.raises(ZeroDivisionError):
                await service.sample(call())
            engine.refusal = InvalidRequest("seed", "is unlucky")
            with pytest.raises(InvalidRequest, match="is unlucky"):
                await service.sample(call(num_samples=3))
            assert (service.health().status, service.health().num_waiting) == ("ok", 0)
            await service.sample(call())

    run(ask())


def test_closing_lets_what_runs_finish_and_takes_nothing_new(world: World) -> None:
    async def ask() -> None:
        engine = Troubled(make_engine(world))
        engine.step_s = 0.2
        async with serving(world, engine, drain_s=LIMIT_S) as service:
            running = asyncio.ensure_future(service.sample(call(parameters={"ignore_eos": True})))
            await until(lambda: service.health().num_running == 1)
            engine.step_s = 0.02
            closing = asyncio.ensure_future(service.close())
            await asyncio.sleep(0)
            assert service.health().status == "draining"
            with pytest.raises(Unavailable, match="is closing"):
                await service.sample(call())
            assert (await running).samples[0].record.finish_reason == "length"
            await closing

    run(ask())


def test_closing_cuts_short_what_takes_too_long(world: World) -> None:
    async def ask() -> None:
        engine = Troubled(make_engine(world))
        engine.step_s = 0.05
        async with serving(world, engine) as service:
            running = asyncio.ensure_future(service.sample(long_call()))
            await until(lambda: service.health().num_running == 1)
            await service.close(0.1)
            with pytest.raises(Unavailable, match="is closing"):
                await running

    run(ask())


def test_a_service_that_was_not_started_takes_nothing(world: World) -> None:
    async def ask() -> None:
        async with serving(world) as started:
            service = SampleService(make_engine(world), started.facts, started.config)
            assert service.health().status == "starting"
            with pytest.raises(Unavailable, match="starts"):
                await service.sample(call())

    run(ask())


def test_limits_that_are_adopted_hold_from_then_on(world: World) -> None:
    async def ask() -> None:
        async with serving(world) as service:
            await service.sample(call(num_samples=8))
            service.adopt(service.config.model_copy(update={"max_waiting": 4}))
            with pytest.raises(InvalidRequest, match="8 samples are asked for; 4 may wait"):
                await service.sample(call(num_samples=8))

    run(ask())


def test_what_happened_is_counted(world: World) -> None:
    async def ask() -> None:
        async with serving(world) as service:
            reply = await service.sample(call(num_samples=2))
            families = {family.metric.name: family for family in service.measurements()}
            num_tokens = reply.usage.completion_tokens
            assert families["cong_generation_tokens_total"].values[()] >= num_tokens
            assert families["cong_prompt_tokens_total"].values[()] == 5
            assert sum(families["cong_head_set_size"].bins[()].counts) == num_tokens
            assert sum(families["cong_time_to_first_token_seconds"].bins[()].counts) == 2
            assert sum(families["cong_inter_token_latency_seconds"].bins[()].counts) == num_tokens - 2
            assert sum(families["cong_request_finished_total"].values.values()) == 2
            assert families["cong_engine_health"].values[("ok",)] == 1.0
            assert sum(families["cong_engine_health"].values.values()) == 1.0

    assert DEFAULTS.max_tokens == 12
    run(ask())
