"""The client for asyncio: carries out the same conversations as the blocking one, any number at a time."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, Unpack

import httpx

from cong.client.calls import Prompts, SampleOptions
from cong.client.http import KEEPALIVE, LIMITS, Trouble, broken, head_of, request_arguments
from cong.client.patience import Patience
from cong.client.service import Service, Times
from cong.client.talk import Broken, Close, Emit, Head, Open, Pause, Read, Step, Talk
from cong.schemas import ScoreRequest
from cong.wire import EndEvent, HealthReply, InfoReply, SampleEvent, SampleReply, ScoreReply, TokenEvent

T = TypeVar("T")


class AsyncClient:
    """A service at an address; its methods are those of `Client`. Belongs to one event loop."""

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        patience: Patience | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
        time_of_day: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`url` and `api_key` are taken from CONG_URL and CONG_API_KEY unless given."""
        times = Times(clock, time_of_day, rng or random.Random())
        self._service = Service(url, api_key, patience or Patience(), times)
        self._sleep = sleep
        self._http = httpx.AsyncClient(
            headers=self._service.headers,
            transport=transport or httpx.AsyncHTTPTransport(limits=LIMITS, socket_options=KEEPALIVE),
        )

    @property
    def url(self) -> str:
        """The address of the service."""
        return self._service.url

    async def sample(self, prompts: Prompts, **options: Unpack[SampleOptions]) -> SampleReply:
        """Draw samples of one prompt or of several; the reply is in order of prompts, then of sample index."""
        return await self._run(self._service.sample(prompts, options))

    def stream(
        self,
        prompts: Prompts,
        *,
        form: Literal["samples", "tokens"] = "samples",
        resumes: bool = False,
        **options: Unpack[SampleOptions],
    ) -> AsyncIterator[TokenEvent | SampleEvent | EndEvent]:
        """Samples as they are finished, or tokens as they are drawn; see `Client.stream`."""
        return self._events(self._service.stream(prompts, form, resumes, options))

    async def score(
        self, items: ScoreRequest | Sequence[ScoreRequest], *, deadline_s: float | None = None
    ) -> ScoreReply:
        """Log-probs of given texts under every network of the service."""
        return await self._run(self._service.score(items, deadline_s))

    async def info(self) -> InfoReply:
        """What is deployed, and what may be asked of it."""
        return await self._run(self._service.info())

    async def health(self) -> HealthReply:
        """How the service is at this moment; asked once, without further tries."""
        return await self._run(self._service.health())

    async def wait_ready(self, timeout_s: float = 60.0) -> HealthReply:
        """Wait until the service is well."""
        return await self._run(self._service.wait_ready(timeout_s))

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _run(self, talk: Talk[T]) -> T:
        async with aclosing(_Connection(self._http, self.url, self._sleep)) as connection:
            answer = None
            while True:
                try:
                    step = talk.send(answer)
                except StopIteration as end:
                    result: T = end.value
                    return result
                answer = await connection.carry_out(step)

    async def _events(self, talk: Talk[None]) -> AsyncIterator[TokenEvent | SampleEvent | EndEvent]:
        async with aclosing(_Connection(self._http, self.url, self._sleep)) as connection:
            answer = None
            while True:
                try:
                    step = talk.send(answer)
                except StopIteration:
                    return
                if isinstance(step, Emit):
                    yield step.event
                answer = await connection.carry_out(step)


class _Connection:
    """At most one reply at a time."""

    def __init__(self, http: httpx.AsyncClient, url: str, sleep: Callable[[float], Awaitable[None]]) -> None:
        self._http = http
        self._url = url
        self._sleep = sleep
        self._opened: Open | None = None
        self._response: httpx.Response | None = None
        self._chunks: AsyncIterator[bytes] | None = None

    async def carry_out(self, step: Step) -> Any:
        match step:
            case Open():
                return await self._open(step)
            case Read():
                return await self._read()
            case Close():
                await self.aclose()
            case Pause():
                await self._sleep(step.seconds)
            case Emit():
                pass
        return None

    async def _open(self, step: Open) -> Head | Broken:
        await self.aclose()
        self._opened = step
        try:
            request = self._http.build_request(**request_arguments(step, self._url))
            self._response = await self._http.send(request, stream=True)
        except Trouble as error:
            return broken(error, step)
        self._chunks = self._response.aiter_bytes()
        return head_of(self._response)

    async def _read(self) -> bytes | Broken:
        assert self._opened is not None, "a reply is read after it was opened"
        try:
            return b"" if self._chunks is None else await anext(self._chunks, b"")
        except Trouble as error:
            return broken(error, self._opened)

    async def aclose(self) -> None:
        if self._response is not None:
            await self._response.aclose()
            self._response = None
