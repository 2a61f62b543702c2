"""The same key with the same request is one request, however often and however close together it is sent."""

import asyncio
from typing import Any

import pytest

from cong.errors import Conflict, DeadlineExceeded
from cong.schemas import SamplingParameters
from cong.service.idempotency import Finished, Idempotency, RetryKey
from cong.wire import SampleCall, SampleReply
from tests.engine.conftest import World
from tests.service.serving import Troubled, make_engine, run, serving, until

CALL = SampleCall.model_validate({"prompt": "hello", "num_samples": 2, "parameters": {"ignore_eos": True}})
LONG = CALL.model_copy(update={"parameters": SamplingParameters(max_tokens=120, ignore_eos=True)})
KEY = RetryKey("caller", "key", "digest")


def test_a_retry_gets_the_same_answer_and_nothing_is_made_again(world: World) -> None:
    async def main() -> None:
        async with serving(world) as service:
            first = await service.sample(CALL, "caller", "one", KEY)
            num_steps = service.health().num_steps
            again = await service.sample(CALL, "caller", "two", KEY)
            assert again == first.model_copy(update={"request_id": "two"})
            assert service.health().num_steps == num_steps
            assert service.meter.value("cong_duplicates_total") == 2
            with pytest.raises(Conflict, match="'key' was used before with another request"):
                await service.sample(CALL, "caller", "", RetryKey("caller", "key", "other"))
            other = await service.sample(CALL, "other", "", RetryKey("other", "key", "other"))
            assert other.samples, "keys of others are others"

    run(main())


def test_a_retry_that_comes_meanwhile_waits_for_the_one_answer(world: World) -> None:
    async def main() -> None:
        engine = Troubled(make_engine(world))
        engine.may_go_on.clear()
        async with serving(world, engine) as service:
            asking = [asyncio.ensure_future(service.sample(CALL, "c", "", KEY)) for _ in range(5)]
            await until(lambda: service.health().num_waiting == 2)
            await asyncio.sleep(0.02)
            assert service.health().num_waiting == 2, "and no more come"
            engine.may_go_on.set()
            replies = await asyncio.gather(*asking)
            assert all(reply == replies[0] for reply in replies)
            assert service.meter.value("cong_request_finished_total", "length") == 2

    run(main())


def test_if_the_first_leaves_the_next_makes_the_answer(world: World) -> None:
    async def main() -> None:
        engine = Troubled(make_engine(world))
        engine.step_s = 0.05
        async with serving(world, engine) as service:
            asking = [asyncio.ensure_future(service.sample(LONG, "c", "", KEY)) for _ in range(3)]
            await until(lambda: service.health().num_running == 2)
            asking[0].cancel()
            engine.step_s = 0.0
            first: SampleReply = await asking[1]
            assert await asking[2] == first
            assert service.meter.value("cong_request_finished_total", "cancelled") == 2
            assert service.meter.value("cong_request_finished_total", "length") == 2

    run(main())


def test_an_answer_that_was_cut_short_is_not_kept(world: World) -> None:
    async def main() -> None:
        engine = Troubled(make_engine(world))
        engine.step_s = 0.2
        async with serving(world, engine) as service:
            late = CALL.model_copy(update={"deadline_s": 1.0})
            cut = await service.sample(late, "c", "", KEY)
            assert {sample.record.finish_reason for sample in cut.samples} == {"deadline"}
            engine.step_s = 0.0
            whole = await service.sample(CALL, "c", "", KEY)
            assert {sample.record.finish_reason for sample in whole.samples} == {"length"}

    run(main())


def test_waiting_for_another_s_answer_ends_with_the_deadline(world: World) -> None:
    async def main() -> None:
        engine = Troubled(make_engine(world))
        engine.may_go_on.clear()
        async with serving(world, engine) as service:
            first = asyncio.ensure_future(service.sample(CALL, "c", "", KEY))
            await until(lambda: service.health().num_waiting == 2)
            hurried = CALL.model_copy(update={"deadline_s": 0.05})
            with pytest.raises(DeadlineExceeded, match="the same request is being answered"):
                await service.sample(hurried, "c", "", KEY)
            engine.may_go_on.set()
            await first

    run(main())


def finished(world: World) -> Finished:
    async def main() -> Any:
        async with serving(world) as service:
            return (await service.sample(CALL)).samples

    return Finished(tuple((0, sample) for sample in run(main())))


def test_answers_are_kept_for_a_time_and_within_bounds(world: World) -> None:
    answer = finished(world)
    now = 100.0
    kept = Idempotency(10.0, max_answers=3, max_tokens=10 * answer.num_tokens, clock=lambda: now)

    async def put(name: str) -> bool:
        """Whether it had to be made."""
        key = RetryKey("c", name, "d")
        is_new = await kept.claim(key) is None
        if is_new:
            kept.settle(key, answer)
        return is_new

    async def main() -> None:
        nonlocal now
        assert [await put(name) for name in ("a", "a", "b", "c", "d")] == [True, False, True, True, True]
        assert [await put("a"), await put("d")] == [True, False], "the oldest went first"
        now += 10.0
        assert await put("d")
        assert len(kept) == 1

    run(main())
    small = Idempotency(10.0, max_answers=100, max_tokens=2 * answer.num_tokens)

    async def fill() -> int:
        for number in range(10):
            key = RetryKey("c", str(number), "d")
            assert await small.claim(key) is None
            small.settle(key, answer)
        assert await small.claim(RetryKey("c", "last", "d")) is None
        return len(small)

    assert run(fill()) == 3
