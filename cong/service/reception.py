"""Where requests come in to an engine's thread and go out again: a place, a ticket, a time limit, an end.

Knows samples and scores only as things that an engine is asked for.
"""

import asyncio
import time
from collections.abc import Callable, Mapping

from cong.config.service import ServiceConfig
from cong.engine import EngineProtocol, EngineStats, Generate, Rate
from cong.errors import DeadlineExceeded, Unavailable
from cong.service.admission import Admission
from cong.service.engine_thread import EngineThread
from cong.service.switchboard import Switchboard, Ticket
from cong.wire import HealthReply

_STEP_S = 5.0
"""A request that is late waits so long, or a tenth of its deadline, for the end of the step that is under way."""

_REASONS = {
    "starting": "the service starts; try again in a moment",
    "draining": "the service is closing; another one may answer",
    "stuck": "the engine has not finished a step for long; another process may answer",
    "broken": "the engine has failed; this process takes no work any more, another one may",
}


class Reception:
    """The engine's thread, and everybody who waits for something of it. Used on one event loop."""

    def __init__(
        self, engine: EngineProtocol, config: ServiceConfig, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._started_s = clock()
        self._max_buffered_events = config.max_buffered_events
        self._stuck_after_s = config.stuck_after_s
        self._switchboard = Switchboard()
        self._thread = EngineThread(engine, self._switchboard.post, niceness=config.engine_niceness, clock=clock)
        self._admission = Admission(config.max_waiting, config.max_concurrent_per_key, self._usable_seats, clock)
        self._visits: set[Visit] = set()
        self._is_started = self._is_closing = False
        self.quiet = asyncio.Event()
        """Set whenever something has gone out."""

    def open(self) -> None:
        """Begin to let requests in, on the loop that calls; a second time does nothing."""
        if not self._is_started:
            self._switchboard.attach(asyncio.get_running_loop())
            self._thread.start()
            self._is_started = True

    def shut(self) -> None:
        """Let nobody in any more."""
        self._is_closing = True

    def cut(self) -> None:
        """End what is left with an error."""
        for visit in tuple(self._visits):
            visit.fail(Unavailable(_REASONS["draining"]))

    def stop(self, timeout_s: float) -> bool:
        """Stop the engine's thread; whether it did within the time. May be called from any thread."""
        return self._thread.stop(timeout_s)

    def bound(self, max_waiting: int, max_concurrent_per_key: int) -> None:
        """Other bounds of admission from now on."""
        self._admission.bound(max_waiting, max_concurrent_per_key)

    @property
    def failure(self) -> BaseException | None:
        """What has ended the engine's thread before it was told to stop."""
        return self._thread.error

    @property
    def stats(self) -> EngineStats:
        """The engine's, as of its last step."""
        return self._thread.stats

    def _usable_seats(self) -> int:
        """All of the engine, unless samples wait there: then memory may hold no more than those that run."""
        stats = self.stats
        return stats.num_running if stats.num_waiting else max(stats.num_running, stats.num_seats)

    @property
    def num_calls(self) -> int:
        """Requests that have come in and not gone out."""
        return self._admission.num_calls

    def health(self) -> HealthReply:
        """How the engine is, and whether anybody is let in."""
        if self._thread.error is not None:
            status = "broken"
        elif not self._is_started:
            status = "starting"
        elif self._is_closing:
            status = "draining"
        elif not self._thread.is_alive:
            status = "broken"
        elif self._thread.busy_s() > self._stuck_after_s:
            status = "stuck"
        else:
            status = "ok"
        return HealthReply(
            status=status,
            reason=_REASONS.get(status, ""),
            num_running=self.stats.num_running,
            num_waiting=max(0, self._admission.num_open - self.stats.num_running),
            num_steps=self._thread.num_steps,
            uptime_s=self._clock() - self._started_s,
        )

    def require_open(self) -> None:
        """Refuse where nobody is let in."""
        health = self.health()
        if health.status != "ok":
            raise Unavailable(health.reason, retry_after_s=5.0 if health.status == "stuck" else 1.0)

    def require_room(self, caller: str) -> None:
        """Refuse whoever could not come in even for a single sample; costs next to nothing."""
        self.require_open()
        self._admission.require(caller, 1)

    def let_in(self, caller: str, num_samples: int) -> "Visit":
        """A place for a request, or the time to try again; the place must be given back by closing the visit."""
        self._admission.enter(caller, num_samples)
        return Visit(self, caller, num_samples)


class Visit:
    """A request that was let in, until it is closed."""

    def __init__(self, reception: Reception, caller: str, num_samples: int) -> None:
        self._reception = reception
        self._caller = caller
        self._ids: list[str] = []
        self._ticket: Ticket | None = None
        self._guard: asyncio.TimerHandle | None = None
        self._is_closed = False
        self.num_open = num_samples
        """Samples or scores that the engine still owes."""
        reception._visits.add(self)

    def begin(self, requests: Mapping[int, Generate | Rate], deadline_s: float, left_s: float) -> Ticket:
        """Hand requests to the engine by their numbers; what becomes of them is told on the ticket."""
        reception, self._ids = self._reception, [request.request_id for request in requests.values()]
        ticket = self._ticket = Ticket(reception._max_buffered_events, self._abandon)
        # The engine ends what is late by itself; if it does not, because it is stuck, the caller still gets away.
        error = DeadlineExceeded(f"nothing came within the deadline of {deadline_s:g} s")
        self._guard = asyncio.get_running_loop().call_later(left_s + max(_STEP_S, 0.1 * left_s), ticket.fail, error)
        for number, request in requests.items():
            reception._switchboard.expect(request.request_id, ticket, number)
        reception._thread.put([*requests.values()])
        return ticket

    def finish(self, num_samples: int) -> None:
        """So many are no longer owed."""
        self.num_open -= num_samples
        self._reception._admission.finish(num_samples)

    def fail(self, error: Exception) -> None:
        """Tell whoever waits that no more will come."""
        if self._ticket is not None:
            self._ticket.fail(error)

    def close(self) -> None:
        """Give the place back; what is still owed is cancelled."""
        if self._is_closed:
            return
        self._is_closed = True
        reception = self._reception
        if self._guard is not None:
            self._guard.cancel()
        reception._visits.discard(self)
        reception._switchboard.forget(self._ids)
        if self.num_open and self._ids:
            reception._thread.cancel(self._ids)
        self.finish(self.num_open)
        reception._admission.leave(self._caller)
        reception.quiet.set()

    def _abandon(self) -> None:
        """Nobody reads what comes: it need not be made."""
        self._reception._switchboard.forget(self._ids)
        self._reception._thread.cancel(self._ids)
