"""The blocking client: carries out conversations with the service over httpx, one at a time per thread."""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
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


class Client:
    """A service at an address; may be shared between threads."""

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        patience: Patience | None = None,
        transport: httpx.BaseTransport | None = None,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
        time_of_day: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`url` and `api_key` are taken from CONG_URL and CONG_API_KEY unless given."""
        times = Times(clock, time_of_day, rng or random.Random())
        self._service = Service(url, api_key, patience or Patience(), times)
        self._sleep = sleep
        self._http = httpx.Client(
            headers=self._service.headers,
            transport=transport or httpx.HTTPTransport(limits=LIMITS, socket_options=KEEPALIVE),
        )

    @property
    def url(self) -> str:
        """The address of the service."""
        return self._service.url

    def sample(self, prompts: Prompts, **options: Unpack[SampleOptions]) -> SampleReply:
        """Draw samples of one prompt or of several; the reply is in order of prompts, then of sample index."""
        return self._run(self._service.sample(prompts, options))

    def stream(
        self,
        prompts: Prompts,
        *,
        form: Literal["samples", "tokens"] = "samples",
        resumes: bool = False,
        **options: Unpack[SampleOptions],
    ) -> Iterator[TokenEvent | SampleEvent | EndEvent]:
        """Samples as they are finished, or tokens as they are drawn; the last event is an `EndEvent`.

        Raises `StreamCut` where the stream ends without one. With `resumes` it is asked for again instead, under the
        same key, and continues where it was cut; samples that the service has stored are not made again. Closing the
        iterator tells the service to stop.
        """
        return self._events(self._service.stream(prompts, form, resumes, options))

    def score(self, items: ScoreRequest | Sequence[ScoreRequest], *, deadline_s: float | None = None) -> ScoreReply:
        """Log-probs of given texts under every network of the service."""
        return self._run(self._service.score(items, deadline_s))

    def info(self) -> InfoReply:
        """What is deployed, and what may be asked of it."""
        return self._run(self._service.info())

    def health(self) -> HealthReply:
        """How the service is at this moment; asked once, without further tries."""
        return self._run(self._service.health())

    def wait_ready(self, timeout_s: float = 60.0) -> HealthReply:
        """Wait until the service is well."""
        return self._run(self._service.wait_ready(timeout_s))

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, talk: Talk[T]) -> T:
        with closing(_Connection(self._http, self.url, self._sleep)) as connection:
            answer = None
            while True:
                try:
                    step = talk.send(answer)
                except StopIteration as end:
                    result: T = end.value
                    return result
                answer = connection.carry_out(step)

    def _events(self, talk: Talk[None]) -> Iterator[TokenEvent | SampleEvent | EndEvent]:
        with closing(_Connection(self._http, self.url, self._sleep)) as connection:
            answer = None
            while True:
                try:
                    step = talk.send(answer)
                except StopIteration:
                    return
                if isinstance(step, Emit):
                    yield step.event
                answer = connection.carry_out(step)


class _Connection:
    """At most one reply at a time."""

    def __init__(self, http: httpx.Client, url: str, sleep: Callable[[float], None]) -> None:
        self._http = http
        self._url = url
        self._sleep = sleep
        self._opened: Open | None = None
        self._response: httpx.Response | None = None
        self._chunks: Iterator[bytes] = iter(())

    def carry_out(self, step: Step) -> Any:
        match step:
            case Open():
                return self._open(step)
            case Read():
                return self._read()
            case Close():
                self.close()
            case Pause():
                self._sleep(step.seconds)
            case Emit():
                pass
        return None

    def _open(self, step: Open) -> Head | Broken:
        self.close()
        self._opened = step
        try:
            request = self._http.build_request(**request_arguments(step, self._url))
            self._response = self._http.send(request, stream=True)
        except Trouble as error:
            return broken(error, step)
        self._chunks = self._response.iter_bytes()
        return head_of(self._response)

    def _read(self) -> bytes | Broken:
        assert self._opened is not None, "a reply is read after it was opened"
        try:
            return next(self._chunks, b"")
        except Trouble as error:
            return broken(error, self._opened)

    def close(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None
