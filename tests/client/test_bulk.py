"""Many prompts: a bounded number in flight, each once, failures told, and stops that lose nothing."""

import asyncio
import itertools
import json
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from cong.client import AsyncClient, Patience
from cong.client.bulk import Bounds, Bulk, GivenUp, Tally
from cong.client.feed import Feed
from cong.client.ledger import Ledger
from cong.client.units import Ask, Units
from cong.errors import BadReply, ConfigError, Unauthenticated
from cong.schemas import Prompt, SampleRecord, SamplingParameters
from cong.wire import InfoReply
from tests.client.replies import URL, error_reply, info, json_reply, record, reply

ASK = Ask(SamplingParameters(), num_samples=2, store="local")

FOUR = Bounds(in_flight=4, max_failures_in_a_row=0, grace_s=5.0)

Handler = Callable[[httpx.Request], Any]


def prompts(numbers: Iterable[int]) -> list[Prompt]:
    return [Prompt(text=f"prompt {number}", prompt_id=f"p{number}") for number in numbers]


def endless() -> Iterator[Prompt]:
    yield from (Prompt(text=f"prompt {number}") for number in itertools.count())


def records_for(request: httpx.Request, num_samples: int = 2) -> list[SampleRecord]:
    asked = json.loads(request.content)
    (prompt,) = asked["prompts"]
    number = int(prompt["text"].split()[1])
    return [record(number, index, Prompt.model_validate(prompt)) for index in range(num_samples)]


def good(request: httpx.Request) -> httpx.Response:
    return json_reply(reply(records_for(request), "local"))


@dataclass
class Run:
    """A run against a service that is a function, and everything that is known of it afterwards."""

    handler: Handler
    ask: Ask = ASK
    bounds: Bounds = FOUR
    done: set[str] = field(default_factory=set)
    told: InfoReply = field(default_factory=info)
    requests: list[httpx.Request] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)
    given_up: list[GivenUp] = field(default_factory=list)
    num_in_flight: int = 0
    most_in_flight: int = 0
    bulk: Bulk | None = None

    async def _handle(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        self.num_in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.num_in_flight)
        try:
            answer = self.handler(request)
            response: httpx.Response = await answer if asyncio.iscoroutine(answer) else answer
            return response
        finally:
            self.num_in_flight -= 1

    async def over(self, items: Iterable[Prompt], patience: Patience | None = None) -> Tally:
        quick = Patience(total_s=5.0, max_tries=2, first_pause_s=0.0)
        async with AsyncClient(URL, patience=patience or quick, transport=httpx.MockTransport(self._handle)) as client:
            self.bulk = Bulk(
                client,
                self.ask,
                Units(self.told, self.ask),
                self.bounds,
                self.done,
                take=lambda got: self.taken.extend(sample.record.key for sample in got.samples),
                give_up=self.given_up.append,
                settled=lambda tally: None,
            )
            return await self.bulk.run(items)

    def __call__(self, items: Iterable[Prompt], **more: Any) -> Tally:
        return asyncio.run(asyncio.wait_for(self.over(items, **more), 30.0))


def test_every_prompt_is_asked_once_and_no_more_than_allowed_at_a_time() -> None:
    async def slow(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0.02)
        return good(request)

    run = Run(slow)
    tally = run(prompts(range(40)))
    assert (tally.num_done, tally.num_samples, tally.num_failed, tally.stopped) == (40, 80, 0, "")
    assert len(run.taken) == len({*run.taken}) == 80
    assert run.most_in_flight == 4
    assert len(run.done) == 40


def test_what_is_done_is_not_even_asked_for() -> None:
    first = Run(good)
    first(prompts(range(10)))
    again = Run(good, done=set(first.done))
    tally = again(prompts(range(15)))
    assert (tally.num_known, tally.num_done) == (10, 5)
    assert len(again.requests) == 5


def test_the_same_work_has_the_same_keys_in_every_run() -> None:
    first, second = Run(good), Run(good)
    first(prompts(range(5)))
    second(prompts(range(5)))
    assert {request.headers["idempotency-key"] for request in first.requests} == {
        request.headers["idempotency-key"] for request in second.requests
    }


@pytest.mark.parametrize(
    "change",
    [
        {"told": info("other")},
        {"told": info().model_copy(update={"stream_location": "/elsewhere"})},
        {"ask": Ask(SamplingParameters(seed=1), 2, "local")},
        {"ask": Ask(SamplingParameters(), 3, "local")},
        {"ask": Ask(SamplingParameters(), 2, "shared")},
    ],
)
def test_whatever_decides_about_samples_is_part_of_a_prompt_s_name(change: dict[str, Any]) -> None:
    (prompt,) = prompts([1])
    units = Units(change.get("told", info()), change.get("ask", ASK))
    assert units.of(prompt) != Units(info(), ASK).of(prompt)


def test_a_prompt_that_stands_there_twice_is_asked_once() -> None:
    twice = [*prompts(range(5)), *[p.model_copy(update={"prompt_id": f"q{p.prompt_id}"}) for p in prompts(range(5))]]
    run = Run(good)
    tally = run(twice)
    assert (tally.num_done, tally.num_known, len(run.requests)) == (5, 5, 5)
    assert tally.num_shared == 5


def test_of_two_prompts_with_one_id_the_second_is_given_up_whether_or_not_the_first_is_done() -> None:
    same = Prompt(text="prompt 7", prompt_id="p1")
    run = Run(good)
    tally = run([*prompts(range(3)), same, *prompts([1])])
    assert (tally.num_done, tally.num_known, tally.num_failed) == (3, 1, 1)
    (failure,) = run.given_up
    assert (failure.error, failure.prompt) == ("DuplicateId", same)
    assert failure.is_final
    assert failure.reason == "a prompt before it has the same id; samples are joined by it, so give each its own"
    again = Run(good, done=run.done)
    assert again([*prompts(range(3)), same]).num_failed == 1
    assert not again.requests


def test_samples_that_are_kept_under_another_id_are_told() -> None:
    run = Run(good)
    assert run(prompts(range(5))).num_shared == 0

    def stored(request: httpx.Request) -> httpx.Response:
        first = json.loads(good(request).content)
        for sample in first["samples"]:
            sample["record"]["prompt"]["prompt_id"] = "first"
        return httpx.Response(200, json=first)

    tally = Run(stored)(prompts(range(5)))
    assert (tally.num_done, tally.num_shared) == (5, 5)


def test_parameters_are_sent_whole() -> None:
    run = Run(good, ask=Ask(SamplingParameters(temperature=0.5), 2, "local"))
    run(prompts([1]))
    sent = json.loads(run.requests[0].content)["parameters"]
    assert sent == SamplingParameters(temperature=0.5).model_dump(mode="json")


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lambda request: error_reply(422, "invalid_request_error", param="prompts.0"), "InvalidRequest"),
        (lambda request: error_reply(422, "invalid_request_error", code="context_length_exceeded"), "PromptTooLong"),
        (lambda request: error_reply(409, "conflict_error"), "Conflict"),
        (lambda request: error_reply(429, "rate_limit_error", retry_after_s=0.0), "Overloaded"),
        (lambda request: httpx.Response(502), "Unavailable"),
        (lambda request: httpx.Response(500), "ServiceError"),
        (lambda request: json_reply(reply(records_for(request, 1), "local")), "IncompleteReply"),
        (lambda request: json_reply(reply(records_for(request), "none")), "IncompleteReply"),
        (
            lambda request: json_reply(
                reply([r.model_copy(update={"finish_reason": "deadline"}) for r in records_for(request)], "local")
            ),
            "IncompleteReply",
        ),
    ],
)
def test_a_prompt_that_fails_is_given_up_with_its_reason_and_the_others_go_on(answer: Handler, error: str) -> None:
    run = Run(lambda request: answer(request) if b"prompt 3" in request.content else good(request))
    tally = run(prompts(range(8)))
    assert (tally.num_done, tally.num_failed) == (7, 1)
    (failure,) = run.given_up
    assert (failure.error, failure.prompt.prompt_id) == (error, "p3")
    assert failure.reason
    assert failure.is_final == (error in ("InvalidRequest", "PromptTooLong", "Conflict"))
    again = Run(good, done=run.done)
    assert again(prompts(range(8))).num_done == 1


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lambda request: error_reply(401, "authentication_error"), Unauthenticated),
        (lambda request: httpx.Response(200, json={"hello": "I am something else"}), BadReply),
        (
            lambda request: json_reply(
                reply([r.model_copy(update={"tokenizer_fingerprint": "other"}) for r in records_for(request)], "local")
            ),
            BadReply,
        ),
    ],
    ids=["key", "other service", "other networks"],
)
def test_what_every_prompt_would_meet_ends_the_run(answer: Handler, error: type[Exception]) -> None:
    run = Run(answer)
    with pytest.raises(error):
        run(prompts(range(1000)))
    assert len(run.requests) <= 8
    assert not run.done


def test_a_service_that_is_down_does_not_use_up_every_prompt() -> None:
    run = Run(lambda request: httpx.Response(503), bounds=Bounds(in_flight=4, max_failures_in_a_row=6))
    tally = run(prompts(range(10_000)))
    assert "6 prompts in a row" in tally.stopped
    assert 6 <= tally.num_failed <= 6 + 4
    assert not run.done


def test_one_success_forgives_the_failures_before_it() -> None:
    numbers = itertools.count()
    run = Run(
        lambda request: good(request) if next(numbers) % 6 == 5 else httpx.Response(503),
        bounds=Bounds(in_flight=1, max_failures_in_a_row=4),
    )
    # Two tries each: every third prompt succeeds.
    assert run(prompts(range(30))).stopped == ""


def test_a_stop_sends_no_more_and_lets_what_is_in_flight_finish() -> None:
    async def stopping(request: httpx.Request) -> httpx.Response:
        assert run.bulk is not None
        if len(run.requests) == 6:
            run.bulk.stop("by a test")
        await asyncio.sleep(0.05)
        return good(request)

    run = Run(stopping)
    tally = run(endless())
    assert tally.stopped == "by a test"
    assert tally.num_done == len(run.requests) == len(run.done)
    assert tally.num_cut_off == 0
    assert 6 <= len(run.requests) <= 8


def test_what_does_not_finish_in_the_time_of_grace_is_cut_off_and_not_done() -> None:
    async def stuck(request: httpx.Request) -> httpx.Response:
        assert run.bulk is not None
        if len(run.requests) == 4:
            run.bulk.stop("by a test")
        if b"prompt 0" in request.content:
            return good(request)
        await asyncio.Event().wait()
        raise AssertionError

    run = Run(stuck, bounds=Bounds(in_flight=4, max_failures_in_a_row=0, grace_s=0.1))
    tally = run(endless())
    assert tally.num_done + tally.num_cut_off == len(run.requests)
    assert len(run.done) == tally.num_done == 1
    assert run.num_in_flight == 0


def test_a_stop_does_not_wait_for_prompts_that_do_not_come() -> None:
    release = threading.Event()

    def hanging() -> Iterator[Prompt]:
        yield from prompts([1])
        release.wait(120.0)

    def stopping(request: httpx.Request) -> httpx.Response:
        assert run.bulk is not None
        asyncio.get_running_loop().call_later(0.05, run.bulk.stop, "by a test")
        return good(request)

    run = Run(stopping)
    assert run(hanging()).num_done == 1
    release.set()


def test_an_error_of_the_source_of_prompts_is_raised_after_what_came_before() -> None:
    def broken() -> Iterator[Prompt]:
        yield from prompts(range(3))
        raise ConfigError("the file ends here")

    run = Run(good)
    with pytest.raises(ConfigError, match="ends here"):
        run(broken())
    assert len(run.done) == 3


def test_reading_ahead_is_bounded() -> None:
    num_read = 0

    def counting() -> Iterator[int]:
        nonlocal num_read
        for number in range(1000):
            num_read += 1
            yield number

    async def run() -> list[int | None]:
        feed = Feed(counting(), 5)
        await asyncio.sleep(0.1)
        assert num_read <= 6
        taken = [await feed.take() for _ in range(3)]
        await asyncio.sleep(0.1)
        assert num_read <= 9
        feed.close()
        return taken

    assert asyncio.run(run()) == [0, 1, 2]


def test_everybody_who_waits_hears_of_the_end() -> None:
    async def run() -> list[int | None]:
        feed = Feed([1, 2], 1)
        return sorted(await asyncio.gather(*(feed.take() for _ in range(5))), key=str)

    assert asyncio.run(run()) == [1, 2, None, None, None]


UNITS = [f"{number:040x}" for number in range(6)]


def test_a_ledger_remembers(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "progress"
    with Ledger(path) as ledger:
        for unit in [*UNITS[:3], UNITS[0]]:
            ledger.add(unit)
    with Ledger(path) as ledger:
        assert len(ledger) == 3
        assert [unit in ledger for unit in UNITS] == [True] * 3 + [False] * 3
    assert len(path.read_bytes().splitlines()) == 4


def test_a_ledger_that_was_torn_anywhere_keeps_what_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "progress"
    with Ledger(path) as ledger:
        for unit in UNITS[:3]:
            ledger.add(unit)
    whole = path.read_bytes()
    header = len(whole.splitlines(keepends=True)[0])
    for size in range(header, len(whole) + 1):
        path.write_bytes(whole[:size])
        with Ledger(path) as ledger:
            num_whole = (size - header + 1) // 41
            assert [unit in ledger for unit in UNITS[:3]] == [number < num_whole for number in range(3)]
            ledger.add(UNITS[5])
        with Ledger(path) as ledger:
            assert UNITS[5] in ledger
            assert len(ledger) == num_whole + 1


def test_a_ledger_belongs_to_one_run(tmp_path: Path) -> None:
    with Ledger(tmp_path / "progress"), pytest.raises(ConfigError, match="in use by another run"):
        Ledger(tmp_path / "progress")
    Ledger(tmp_path / "progress").close()


def test_another_file_is_not_taken_for_a_ledger(tmp_path: Path) -> None:
    path = tmp_path / "progress"
    path.write_text("something else\n")
    with pytest.raises(ConfigError, match="no ledger"):
        Ledger(path)
    assert path.read_text() == "something else\n"
