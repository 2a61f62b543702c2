"""Streams: events in order, a cut that is never mistaken for the end, and a beginning that is not heard twice."""

import asyncio
from typing import Any

import httpx
import pytest

from cong.client import AsyncClient, Client, Patience
from cong.client.events import Lines
from cong.errors import BadReply, Overloaded, StreamCut, Unavailable, Unreachable
from cong.wire import EndEvent, ErrorBody, SampleEvent
from tests.client.replies import (
    URL,
    CutBody,
    Event,
    Face,
    Script,
    end,
    error_reply,
    ndjson,
    record,
    sample_event,
    stream_reply,
    token,
)

TOKENS: list[Event] = [token(1, 0), token(1, 1), token(1, 2), sample_event(1), end(1)]
RESET = httpx.ReadError("reset")
CUTS = pytest.mark.parametrize("error", [None, RESET, httpx.RemoteProtocolError("incomplete chunked read")], ids=str)


def test_a_whole_stream_is_handed_on_in_order(face: Face) -> None:
    service = Script(stream_reply(TOKENS))
    assert face(service).follow("hello", form="tokens") == (TOKENS, None)
    (request,) = service.requests
    assert request.headers["accept"] == "application/x-ndjson"
    assert b'"stream":"tokens"' in request.content


@CUTS
@pytest.mark.parametrize("num_heard", [1, 2, 4])
def test_a_cut_stream_is_an_error_after_what_came(face: Face, num_heard: int, error: Exception | None) -> None:
    rest = ndjson(TOKENS[num_heard:])[:9]
    service = Script(stream_reply(TOKENS[:num_heard], rest, error))
    events, raised = face(service).follow("hello", form="tokens")
    assert events == TOKENS[:num_heard]
    assert isinstance(raised, StreamCut)
    assert len(service.requests) == 1


@CUTS
def test_a_stream_that_is_cut_before_its_first_event_is_asked_for_again(face: Face, error: Exception | None) -> None:
    service = Script(
        httpx.ConnectError("refused"),
        error_reply(429, "rate_limit_error", retry_after_s=1.0),
        stream_reply([], b'{"event": "tok', error),
        stream_reply(TOKENS),
    )
    assert face(service).follow("hello", form="tokens") == (TOKENS, None)
    assert len({*service.keys}) == 1
    assert len(service.requests) == 4


def test_a_stream_that_never_begins_is_given_up(face: Face) -> None:
    events, raised = face(Script(stream_reply([])), Patience(max_tries=3)).follow("hello")
    assert events == []
    assert isinstance(raised, StreamCut)
    _, raised = face(Script(httpx.ConnectError("no")), Patience(max_tries=3)).follow("hello")
    assert isinstance(raised, Unreachable)


@pytest.mark.parametrize("num_heard", [0, 1, 2, 3, 4])
def test_a_resumed_stream_continues_where_it_was_cut(face: Face, num_heard: int) -> None:
    service = Script(stream_reply(TOKENS[:num_heard], error=RESET), stream_reply(TOKENS))
    assert face(service).follow("hello", form="tokens", resumes=True) == (TOKENS, None)
    assert len({*service.keys}) == 1


def test_a_resumed_stream_may_be_cut_any_number_of_times_while_it_advances(face: Face) -> None:
    cuts = [stream_reply(TOKENS[: number + 1], error=RESET) for number in range(4)]
    assert face(Script(*cuts, stream_reply(TOKENS)), Patience(max_tries=2)).follow(
        "hello", form="tokens", resumes=True
    ) == (TOKENS, None)


def test_a_resumed_stream_that_gets_no_further_is_given_up(face: Face) -> None:
    service = Script(stream_reply(TOKENS[:2], error=RESET))
    events, raised = face(service, Patience(max_tries=3, first_pause_s=0.0)).follow(
        "hello", form="tokens", resumes=True
    )
    assert events == TOKENS[:2]
    assert isinstance(raised, StreamCut)
    assert len(service.requests) == 3  # the first, which brought something, and two that brought nothing new


def test_samples_that_were_heard_are_not_heard_again_in_whatever_order_they_come(face: Face) -> None:
    first, second, third = sample_event(1, 0), sample_event(2, 1), sample_event(3, 2)
    service = Script(stream_reply([second, first], error=RESET), stream_reply([first, third, second, end(3)]))
    assert face(service).follow("hello", resumes=True) == ([second, first, third, end(3)], None)


def test_a_finished_sample_stands_for_the_tokens_that_were_not_heard(face: Face) -> None:
    service = Script(stream_reply([token(1, 0)], error=RESET), stream_reply([sample_event(1), end(1)]))
    events, raised = face(service).follow("hello", form="tokens", resumes=True)
    assert (events, raised) == ([token(1, 0), sample_event(1), end(1)], None)


@pytest.mark.parametrize("again", [[token(1, 0, 7), token(1, 1)], [sample_event(2)]])
def test_a_stream_that_comes_out_differently_is_not_glued_together(face: Face, again: list[Event]) -> None:
    service = Script(stream_reply([token(1, 0), token(1, 1)], error=RESET), stream_reply(again))
    events, raised = face(service).follow("hello", form="tokens", resumes=True)
    assert events == [token(1, 0), token(1, 1)]
    assert isinstance(raised, StreamCut)
    assert "came out differently" in str(raised)


def test_an_end_with_an_error_is_raised_as_that_error_after_what_came(face: Face) -> None:
    told = ErrorBody(message="draining", type="unavailable_error", retry_after_s=2.0)
    events, raised = face(Script(stream_reply([sample_event(1), end(1, told)]))).follow("hello")
    assert events == [sample_event(1)]
    assert isinstance(raised, Unavailable)
    assert raised.retry_after_s == 2.0


def test_an_end_with_an_error_that_passes_is_tried_again_while_nothing_was_heard(face: Face) -> None:
    told = ErrorBody(message="full", type="rate_limit_error", retry_after_s=2.0)
    service = Script(stream_reply([end(0, told)]), stream_reply(TOKENS))
    assert face(service).follow("hello", form="tokens") == (TOKENS, None)
    events, raised = face(Script(stream_reply([end(0, told)])), Patience(max_tries=2)).follow("hello")
    assert (events, type(raised)) == ([], Overloaded)


def test_fewer_samples_than_announced_are_a_cut(face: Face) -> None:
    events, raised = face(Script(stream_reply([sample_event(1), end(2)]))).follow("hello")
    assert events == [sample_event(1)]
    assert isinstance(raised, StreamCut)


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, json={"event": "end"}),
        httpx.Response(200, content=b"data: {}\n\n", headers={"content-type": "text/event-stream"}),
        stream_reply([], b'{"event": "unheard of"}\n'),
        stream_reply([], b"<html>\n"),
    ],
    ids=["document", "other form", "other event", "no json"],
)
def test_what_is_no_stream_of_events_is_refused(face: Face, answer: Any) -> None:
    service = Script(answer)
    events, raised = face(service).follow("hello")
    assert (events, type(raised)) == ([], BadReply)
    assert len(service.requests) == 1


def test_signs_of_life_and_separators_inside_text_are_no_lines(face: Face) -> None:
    odd = record(1).model_copy(update={"completion_text": "a\u2028b\u0085c\x0bd\x1ee\r"})
    event = sample_event(1)
    event = event.model_copy(update={"sample": event.sample.model_copy(update={"record": odd})})
    body = CutBody(b"\n\n" + ndjson([event]) + b"\n\r\n" + ndjson([end(1)]), piece=1)
    answer = httpx.Response(200, stream=body, headers={"content-type": "application/x-ndjson; charset=utf-8"})
    assert face(Script(answer)).follow("hello") == ([event, end(1)], None)


def test_lines_do_not_depend_on_how_bytes_arrive() -> None:
    content = b"one\ntwo two\n\nthree\nrest"
    for size in range(1, len(content) + 1):
        lines = Lines()
        pieces = [content[at : at + size] for at in range(0, len(content), size)]
        assert [line for piece in pieces for line in lines.push(piece)] == [b"one", b"two two", b"three"]


class Watched(CutBody):
    """A body that notes when it is closed."""

    num_closed = 0

    def close(self) -> None:
        self.num_closed += 1

    async def aclose(self) -> None:
        self.num_closed += 1


@pytest.mark.parametrize("how", ["blocking", "asyncio"])
def test_leaving_a_stream_early_closes_its_connection(how: str) -> None:
    body = Watched(ndjson(TOKENS), piece=1000)
    answer = httpx.Response(200, stream=body, headers={"content-type": "application/x-ndjson"})
    transport = httpx.MockTransport(lambda request: answer)
    if how == "blocking":
        with Client(URL, transport=transport) as client:
            events = client.stream("hello")
            next(iter(events))
            assert body.num_closed == 0
            events.close()  # type: ignore[attr-defined]
            assert body.num_closed == 1
        return

    async def run() -> None:
        async with AsyncClient(URL, transport=transport) as client:
            events = client.stream("hello")
            await anext(aiter(events))
            assert body.num_closed == 0
            await events.aclose()  # type: ignore[attr-defined]
            assert body.num_closed == 1

    asyncio.run(run())


def test_the_end_is_an_event_with_what_was_used(face: Face) -> None:
    events, _ = face(Script(stream_reply(TOKENS))).follow("hello", form="tokens")
    assert isinstance(events[-1], EndEvent)
    assert [type(event) for event in events].count(SampleEvent) == 1
