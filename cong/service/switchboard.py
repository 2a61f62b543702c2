"""Events from the engine's thread to the callers that wait for them on one event loop.

A step's events cross over together, and a caller takes everything that has come since it last looked: a caller that
is behind gets larger batches, not more wake-ups. What it leaves unread is bounded. Knows no engine and no HTTP.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterable, Sequence

from cong.engine import SampleFinished, TokenDrawn
from cong.engine.protocol import Rated
from cong.errors import SlowReader, Unavailable
from cong.service.engine_thread import Died, Happening, Refused
from cong.wire import StoredSample

Item = tuple[int, TokenDrawn | SampleFinished | Rated | StoredSample]
"""The number of a caller's request, and what happened to it."""


class Ticket:
    """What one caller waits for: events of several engine requests, in order."""

    def __init__(self, max_items: int, abandon: Callable[[], None]) -> None:
        """`abandon` is called at once when the bound is reached, however long the caller goes on not reading."""
        self._max_items = max_items
        self._abandon = abandon
        self._items: list[Item] = []
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._is_patient = False
        """Whether who waits wants no tokens yet."""
        self._is_urgent = False
        """Whether there is something else than tokens."""

    def put(self, number: int, event: TokenDrawn | SampleFinished | Rated | StoredSample) -> None:
        """Add an event; beyond the bound the caller gets an error instead."""
        if self._error is not None:
            return
        if len(self._items) >= self._max_items:
            self._items.clear()
            self._abandon()
            self.fail(
                SlowReader(
                    f"{self._max_items} tokens and samples wait to be read and may not be more; the request was "
                    "cancelled. Read faster, or ask for finished samples instead of tokens"
                )
            )
            return
        self._items.append((number, event))
        self._is_urgent = self._is_urgent or not isinstance(event, TokenDrawn)
        if self._is_urgent or not self._is_patient:
            self._wake()

    def fail(self, error: Exception) -> None:
        """End it with an error, once what has come before is read; only the first counts."""
        if self._error is None:
            self._error = error
            self._wake()

    async def take(self, not_before_s: float = 0.0) -> list[Item]:
        """Everything that has come, waiting until there is something; raises the error behind it.

        Tokens alone are not taken before the loop's time `not_before_s`; anything else is, and ends the wait for them.
        """
        loop = asyncio.get_running_loop()
        if not (self._is_urgent or self._error) and loop.time() < not_before_s:
            timer = loop.call_at(not_before_s, self._wake)
            self._is_patient = True
            try:
                await self._woken(loop)
            finally:
                self._is_patient = False
                timer.cancel()
        if not self._items and self._error is None:
            await self._woken(loop)
        if self._items:
            items, self._items = self._items, []
            self._is_urgent = False
            return items
        assert self._error is not None, "woken without a reason"
        raise self._error

    async def _woken(self, loop: asyncio.AbstractEventLoop) -> None:
        self._waiter = loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Switchboard:
    """Who waits for which request."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: dict[str, tuple[Ticket, int]] = {}
        self._lock = threading.Lock()
        self._posted: list[Happening] = []
        self._is_woken = False
        self._is_dead = False

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Deliver on this loop."""
        self._loop = loop

    def expect(self, request_id: str, ticket: Ticket, number: int) -> None:
        """Send what happens to a request to a ticket."""
        self._waiting[request_id] = (ticket, number)
        if self._is_dead:
            self._fail_all()

    def forget(self, request_ids: Iterable[str]) -> None:
        """Send what happens to these requests nowhere any more."""
        for request_id in request_ids:
            self._waiting.pop(request_id, None)

    def post(self, happened: Sequence[Happening]) -> None:
        """Hand over what a step yielded; from any thread."""
        with self._lock:
            self._posted += happened
            if self._is_woken or self._loop is None:
                return
            self._is_woken = True
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._hand_out)

    def _hand_out(self) -> None:
        with self._lock:
            posted, self._posted = self._posted, []
            self._is_woken = False
        for event in posted:
            if isinstance(event, Died):
                self._is_dead = True
                self._fail_all()
                continue
            found = self._waiting.get(event.request_id)
            if found is None:
                continue
            ticket, number = found
            if isinstance(event, Refused):
                ticket.fail(event.error)
            else:
                ticket.put(number, event)

    def _fail_all(self) -> None:
        for ticket, _ in self._waiting.values():
            ticket.fail(Unavailable("the engine has failed; this process takes no work any more, another one may"))
