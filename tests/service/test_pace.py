"""Token streams share a number of writes: the more of them there are, the more tokens go together."""

import asyncio

import pytest

from cong.engine import SampleFinished, TokenDrawn
from cong.engine.protocol import TokenRecord
from cong.errors import Unavailable
from cong.service.pace import Pace
from cong.service.switchboard import Ticket
from cong.wire import SampleEvent, TokenEvent
from tests.engine.conftest import World
from tests.service.serving import StepByStep, expected, long_call, make_engine, run, serving

FAR_S = 1000.0


def token(number: int) -> TokenDrawn:
    return TokenDrawn("r1", 0, "a", TokenRecord(number, (-1.0, -1.0)))


def test_the_gap_grows_with_the_streams_and_has_a_bound() -> None:
    pace = Pace(writes_per_s=100.0, longest_s=0.25)
    gaps = []
    for pace.num_streams in (0, 1, 10, 1000):
        gaps.append(pace.gap_s)
    assert gaps == [0.0, 0.01, 0.1, 0.25]
    pace.bound(1000.0, 0.5)
    assert pace.gap_s == 0.5


def test_tokens_wait_for_each_other_until_the_time_is_over() -> None:
    async def main() -> None:
        loop, ticket = asyncio.get_running_loop(), Ticket(100, lambda: None)
        ticket.put(0, token(1))
        assert len(await ticket.take()) == 1, "the first goes at once"
        until_s = loop.time() + 0.5
        taking = asyncio.ensure_future(ticket.take(until_s))
        for number in range(5):
            await asyncio.sleep(0)
            ticket.put(0, token(number))
        assert len(await taking) == 5
        assert loop.time() >= until_s

    run(main())


@pytest.mark.parametrize("what", ["sample", "error"])
@pytest.mark.parametrize("is_waiting", [True, False])
def test_whatever_is_no_token_ends_the_wait(world: World, what: str, is_waiting: bool) -> None:
    record = expected(world, long_call())[0]

    async def main() -> None:
        loop, ticket = asyncio.get_running_loop(), Ticket(100, lambda: None)

        def happen() -> None:
            ticket.put(0, token(1))
            if what == "sample":
                ticket.put(0, SampleFinished("r1", 0, record))
            else:
                ticket.fail(Unavailable("gone"))

        if is_waiting:
            loop.call_later(0.01, happen)
        else:
            happen()
        found = await ticket.take(loop.time() + FAR_S)
        assert len(found) == (2 if what == "sample" else 1)
        if what == "error":
            with pytest.raises(Unavailable):
                await ticket.take(loop.time() + FAR_S)

    run(main())


def test_a_stream_that_is_held_back_tells_the_same_in_fewer_pieces(world: World) -> None:
    engine = StepByStep(make_engine(world))
    engine.num_steps_allowed.release()

    async def main() -> None:
        async with serving(world, engine, stream_writes_per_s=1 / FAR_S, max_stream_gap_s=FAR_S) as service:
            async with await service.open(long_call()) as answer:
                batches = []
                async for batch in answer:
                    batches.append(batch)
                    engine.num_steps_allowed.release(200)
            assert [type(event) for event in batches[0]] == [TokenEvent], "the first token is not held back"
            assert len(batches) == 2
            *tokens, last = [event for batch in batches for event in batch]
            assert isinstance(last, SampleEvent)
            assert len(tokens) == len(last.sample.record.completion_token_ids) == 120
            assert service.health().num_waiting == 0

    run(main())
