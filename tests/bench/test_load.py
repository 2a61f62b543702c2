"""The load generator: on time whatever the answers do, honest about what came, and on this machine only."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import closing

import pytest

from bench.load import Outcome, Shot, Target, arrivals, fire, keep_busy, percentile, sample_body, summarise

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

DOCUMENT = json.dumps({"samples": [], "usage": {"completion_tokens": 4}}).encode()
TOKEN = b'{"event":"token","text":"x"}\n'
END = b'{"event":"end","error":null}\n'
BODY = sample_body({"text": "x"}, num_tokens=4, seed=0)


def reply(status: int, body: bytes, *headers: str, kind: str = "application/json") -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"content-type: {kind}", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def stream(*parts: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n"
    return head + b"".join(f"{len(part):x}\r\n".encode() + part + b"\r\n" for part in parts)


def answering(*answers: bytes, after_s: float = 0.0, num_asked: list[int] | None = None) -> Handler:
    """A server with a fixed answer to each request on a connection, which is then closed."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            for answer in answers:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
                if num_asked is not None:
                    num_asked[0] += 1
                await asyncio.sleep(after_s)
                writer.write(answer)
                await writer.drain()

    return handle


def answering_together(answer: bytes, number: int) -> Handler:
    """A server that answers nobody before so many have asked."""
    num_asked, all_asked = 0, asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal num_asked
        with closing(writer):
            await reader.readuntil(b"\r\n\r\n")
            num_asked += 1
            if num_asked == number:
                all_asked.set()
            await all_asked.wait()
            writer.write(answer)
            await writer.drain()

    return handle


def shoot(handler: Handler, shots: list[Shot], limit_s: float = 5.0) -> list[Outcome]:
    async def run() -> list[Outcome]:
        server = await asyncio.start_server(handler, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            return await fire(Target.at(f"http://127.0.0.1:{port}"), shots, limit_s)

    return asyncio.run(run())


def test_requests_go_out_at_their_time_however_slow_the_answers_are() -> None:
    shots = [Shot(0.01 * number, BODY) for number in range(40)]
    outcomes = shoot(answering_together(reply(200, DOCUMENT), 40), shots, limit_s=60.0)
    assert all(one.is_complete and one.num_tokens == 4 for one in outcomes)
    assert outcomes[0].total_s > 0.38, "counted from the first one's time, and the last one's is 0.39 s later"


def test_a_stream_counts_as_complete_only_with_its_end() -> None:
    whole = stream(TOKEN, TOKEN + TOKEN, END) + b"0\r\n\r\n"
    (good,) = shoot(answering(whole), [Shot(0.0, BODY)])
    assert (good.is_complete, good.num_tokens, good.error) == (True, 3, "")
    assert good.first_s is not None
    (cut,) = shoot(answering(whole[:-20]), [Shot(0.0, BODY)])
    assert (cut.is_complete, cut.status) == (False, 200)
    assert cut.error
    failed = stream(TOKEN, b'{"event":"end","error":{"message":"no"}}\n') + b"0\r\n\r\n"
    (told,) = shoot(answering(failed), [Shot(0.0, BODY)])
    assert not told.is_complete


def test_some_callers_leave_and_some_are_never_answered() -> None:
    (left,) = shoot(answering(stream(TOKEN, TOKEN)), [Shot(0.0, BODY, leaves_after=2)])
    assert (left.has_left, left.num_tokens) == (True, 2)
    (late,) = shoot(answering(reply(200, DOCUMENT), after_s=30.0), [Shot(0.0, BODY)], limit_s=0.3)
    assert late.status == 0
    assert "not answered" in late.error


def test_connections_are_kept_and_a_kept_one_that_was_closed_is_no_answer() -> None:
    num_asked = [0]
    handler = answering(reply(200, DOCUMENT), reply(200, DOCUMENT), num_asked=num_asked)

    async def run() -> list[Outcome]:
        server = await asyncio.start_server(handler, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            _, outcomes = await keep_busy(Target.at(f"http://127.0.0.1:{port}"), [BODY] * 7, 1)
            return outcomes

    assert all(one.is_complete for one in asyncio.run(run()))
    assert num_asked == [7]


@pytest.mark.parametrize("url", ["http://192.0.2.1:8000", "https://127.0.0.1", "http://8.8.8.8"])
def test_other_machines_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="on this machine"):
        Target.at(url)


def test_arrivals_have_the_rate_that_was_asked_for_and_repeat() -> None:
    times = arrivals(100.0, 100.0, seed=3)
    # 10,000 expected with a standard deviation of 100.
    assert 9_500 < len(times) < 10_500
    assert times == sorted(times) == arrivals(100.0, 100.0, seed=3)
    assert times != arrivals(100.0, 100.0, seed=4)


def test_summaries_count_every_request_once() -> None:
    outcomes = [
        Outcome(0.0, status=200, is_complete=True, total_s=1.0, first_s=0.5, num_tokens=10),
        Outcome(0.0, status=200, has_left=True),
        Outcome(0.0, status=200),
        Outcome(0.0, status=429, retry_after="1", total_s=0.01),
        Outcome(0.0, status=429, total_s=0.02),
        Outcome(0.0, error="unsent"),
    ]
    found = summarise(outcomes, 2.0)
    assert found["statuses"] == {"0": 1, "200": 3, "429": 2}
    counted = ("complete", "left", "incomplete", "unsent", "refused_without_retry_after")
    assert [found[name] for name in counted] == [1, 1, 1, 1, 1]
    assert (found["tokens_per_s"], found["refusal_s_p99"]) == (5.0, 0.02)


def test_percentiles_are_values_that_occurred() -> None:
    values = [float(number) for number in range(1, 101)]
    assert [percentile(values, share) for share in (0.5, 0.99, 1.0)] == [50.0, 99.0, 100.0]
    assert percentile([], 0.5) is None
