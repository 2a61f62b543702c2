"""An answer that is sent while it is made: as lines of JSON or as server-sent events, with a known last event.

Errors before the first byte are ordinary replies; later ones stand in the last event. A caller that leaves, or does
not read, ends the work.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cong.service import Answer, Batch, usage_of
from cong.wire import StoredSample, Usage
from serve.http.errors import Problem, problem_of
from serve.http.leaving import CallerGone, unless_gone

log = logging.getLogger(__name__)


class Encoder(Protocol):
    """What an answer looks like on the wire."""

    media_type: str
    alive: bytes
    """What is sent to show that the server is alive."""

    def begin(self) -> bytes:
        """What comes before everything."""
        ...

    def batch(self, batch: Batch) -> bytes:
        """What has happened."""
        ...

    def end(self, num_samples: int, usage: Usage, problem: Problem | None) -> bytes:
        """What comes last; with a problem where the answer ended early."""
        ...


@dataclass(frozen=True)
class Patience:
    """How long to wait for whom."""

    keep_alive_s: float
    write_timeout_s: float


class AnswerStream(Response):
    """Opens an answer and sends it."""

    def __init__(
        self, opening: Callable[[], Coroutine[Any, Any, Answer]], encoder: Encoder, patience: Patience
    ) -> None:
        super().__init__(media_type=encoder.media_type)
        self._opening = opening
        self._encoder = encoder
        self._patience = patience
        self._sent_s = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_gone(receive, self._run(scope, send))
        except CallerGone:
            # Nobody reads any more; whatever was sent lacks its last event.
            scope["state"]["error_code"] = "caller_gone"

    async def _run(self, scope: Scope, send: Send) -> None:
        # Opened and closed by one task: there is no moment in which an open answer belongs to nobody.
        async with await self._opening() as answer:
            try:
                await self._produce(answer, scope, send)
            except TimeoutError as error:
                raise CallerGone from error

    async def _produce(self, answer: Answer, scope: Scope, send: Send) -> None:
        start = {
            "type": "http.response.start",
            "status": 200,
            "headers": [
                (b"content-type", self._encoder.media_type.encode()),
                (b"cache-control", b"no-store"),
                (b"x-accel-buffering", b"no"),
            ],
        }
        await send(start)
        await self._send(send, self._encoder.begin())
        staying = asyncio.ensure_future(self._stay_alive(send))
        samples: list[StoredSample] = []
        problem: Problem | None = None
        try:
            async for batch in answer:
                samples += [event.sample for event in batch if event.event == "sample"]
                await self._send(send, self._encoder.batch(batch))
        except TimeoutError:
            raise
        except Exception as error:  # noqa: BLE001
            # The reply has begun, so what went wrong must be told in its last event.
            problem = problem_of(error)
            scope["state"]["error_code"] = problem.code
            if problem.status >= 500:
                log.warning("a streaming answer ends early: %r", error, extra={"code": problem.code})
        finally:
            staying.cancel()
            await asyncio.gather(staying, return_exceptions=True)
        usage = usage_of(answer.num_prompt_tokens, samples)
        scope["state"]["num_prompt_tokens"] = usage.prompt_tokens
        scope["state"]["num_completion_tokens"] = usage.completion_tokens
        await self._send(send, self._encoder.end(len(samples), usage, problem))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, body: bytes) -> None:
        self._sent_s = asyncio.get_running_loop().time()
        if body:
            async with asyncio.timeout(self._patience.write_timeout_s):
                await send({"type": "http.response.body", "body": body, "more_body": True})

    async def _stay_alive(self, send: Send) -> None:
        loop = asyncio.get_running_loop()
        while True:
            left_s = self._sent_s + self._patience.keep_alive_s - loop.time()
            if left_s > 0:
                await asyncio.sleep(left_s)
            else:
                await self._send(send, self._encoder.alive)
