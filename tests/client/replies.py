"""What a service might answer, and both clients behind one face, on a clock that only tests move."""

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import httpx

from cong.client import AsyncClient, Client, Patience
from cong.lab.records import PAIR, synthetic_record
from cong.schemas import Prompt, SampleRecord, SamplingParameters
from cong.wire import (
    EndEvent,
    ErrorBody,
    ErrorReply,
    ErrorType,
    InfoReply,
    Limits,
    NetworkInfo,
    SampleEvent,
    SampleReply,
    StoredSample,
    StoreLevel,
    TokenEvent,
    Usage,
)

URL = "http://service.test/cong"

Event = TokenEvent | SampleEvent | EndEvent


def record(number: int, sample_index: int = 0, prompt: Prompt | None = None) -> SampleRecord:
    made = synthetic_record(number, num_tokens=3)
    changes: dict[str, Any] = {"sample_index": sample_index, "key": f"{made.key}-{sample_index}"}
    return made.model_copy(update=changes | ({"prompt": prompt} if prompt is not None else {}))


def reply(records: Iterable[SampleRecord], stored: StoreLevel = "none", is_duplicate: bool = False) -> SampleReply:
    samples = tuple(StoredSample(record=one, stored=stored, is_duplicate=is_duplicate) for one in records)
    return SampleReply(request_id="r-1", samples=samples, usage=Usage())


def info(fingerprint: str = "", store_levels: Sequence[StoreLevel] = ("none", "local", "shared")) -> InfoReply:
    return InfoReply(
        deployment="test",
        backend="cong",
        networks=tuple(
            NetworkInfo(
                role=network.role,
                name=network.name,
                fingerprint=fingerprint or network.fingerprint,
                num_parameters=1,
                architecture="llama",
            )
            for network in PAIR
        ),
        tokenizer_fingerprint="t-lab",
        defaults=SamplingParameters(),
        limits=Limits(
            max_total_tokens=100,
            max_new_tokens=50,
            max_samples=16,
            max_body_bytes=10_000,
            max_deadline_s=60.0,
            max_concurrent_per_key=8,
        ),
        store_levels=tuple(store_levels),
        stream_location="/stream",
        methods=(),
        software={},
    )


def json_reply(document: Any, status: int = 200, **headers: str) -> httpx.Response:
    content = document.model_dump_json()
    return httpx.Response(status, content=content, headers={"content-type": "application/json", **headers})


def error_reply(status: int, kind: ErrorType, message: str = "no", headers: Any = None, **more: Any) -> httpx.Response:
    body = ErrorReply(error=ErrorBody(message=message, type=kind, **more))
    return httpx.Response(status, content=body.model_dump_json(), headers=headers)


def token(number: int, place: int, token_id: int | None = None) -> TokenEvent:
    ids = record(number).completion_token_ids
    return TokenEvent(
        prompt_index=0,
        sample_index=0,
        text="x",
        token_id=ids[place] if token_id is None else token_id,
        mixture_logprob=-1.0,
    )


def sample_event(number: int, sample_index: int = 0) -> SampleEvent:
    return SampleEvent(prompt_index=0, sample=StoredSample(record=record(number, sample_index)))


def end(num_samples: int, error: ErrorBody | None = None) -> EndEvent:
    return EndEvent(request_id="r-1", num_samples=num_samples, usage=Usage(), error=error)


def ndjson(events: Iterable[Event]) -> bytes:
    return b"".join(event.model_dump_json().encode() + b"\n" for event in events)


class CutBody(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that breaks off, or ends as if it were whole."""

    def __init__(self, content: bytes, error: Exception | None = None, piece: int = 7) -> None:
        self._pieces = [content[at : at + piece] for at in range(0, len(content), piece)]
        self._error = error

    def __iter__(self) -> Any:
        yield from self._pieces
        if self._error is not None:
            raise self._error

    async def __aiter__(self) -> Any:
        for piece in self:
            yield piece


def stream_reply(events: Iterable[Event], rest: bytes = b"", error: Exception | None = None) -> httpx.Response:
    body = CutBody(ndjson(events) + rest, error)
    return httpx.Response(200, stream=body, headers={"content-type": "application/x-ndjson"})


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.pauses: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now_s += seconds

    async def asleep(self, seconds: float) -> None:
        self.sleep(seconds)


Answer = httpx.Response | Exception | Callable[[httpx.Request], httpx.Response]


class Script:
    """A service that gives prepared answers in order, the last one for ever, and remembers what it was asked."""

    def __init__(self, *answers: Answer) -> None:
        self._answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return _fresh(answer) if isinstance(answer, httpx.Response) else answer(request)

    @property
    def keys(self) -> list[str]:
        return [request.headers["idempotency-key"] for request in self.requests]


def _fresh(response: httpx.Response) -> httpx.Response:
    """The same answer, not read yet; responses are made for one kind of client and one reading."""
    if isinstance(response.stream, CutBody):
        return httpx.Response(response.status_code, headers=response.headers, stream=response.stream)
    return httpx.Response(response.status_code, headers=response.headers, content=response.content)


class Face:
    """One of the two clients, called in the same way."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.clock = Clock()

    def __call__(
        self, service: Callable[[httpx.Request], httpx.Response], patience: Patience | None = None, url: str = URL
    ) -> "Asker":
        shared: dict[str, Any] = {
            "patience": patience,
            "transport": httpx.MockTransport(service),
            "rng": random.Random(1),
            "clock": self.clock,
            "time_of_day": lambda: 1_800_000_000.0 + self.clock.now_s,
        }
        if self.name == "blocking":
            return Asker(lambda: Client(url, "k", sleep=self.clock.sleep, **shared))
        return Asker(lambda: AsyncClient(url, "k", sleep=self.clock.asleep, **shared))


class Asker:
    """A client made anew for each call, so that the asynchronous one meets one loop only."""

    def __init__(self, make: Callable[[], Client | AsyncClient]) -> None:
        self._make = make

    def __getattr__(self, method: str) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            client = self._make()
            if isinstance(client, Client):
                with client:
                    return getattr(client, method)(*given, **named)

            async def run() -> Any:
                async with client:
                    return await getattr(client, method)(*given, **named)

            return asyncio.run(run())

        return call

    def follow(self, *given: Any, **named: Any) -> tuple[list[Event], Exception | None]:
        """All events of a stream, and the error in which it ended."""
        client = self._make()
        events: list[Event] = []

        async def run(client: AsyncClient) -> None:
            async with client:
                async for event in client.stream(*given, **named):
                    events.append(event)

        try:
            if isinstance(client, Client):
                with client:
                    for event in client.stream(*given, **named):
                        events.append(event)
            else:
                asyncio.run(run(client))
        except Exception as error:  # noqa: BLE001 - whatever it is, the test judges it
            return events, error
        return events, None
