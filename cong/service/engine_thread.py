"""The one thread that owns an engine: takes requests in, steps, hands events out. Knows no asyncio and no HTTP.

Everything that a step yields is handed over in one call, so that another thread is woken once a step and not once a
token. When there is nothing to do the thread sleeps on a condition.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cong.engine import EngineProtocol, Event, Generate, Rate
from cong.errors import CongError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Refused:
    """The engine did not take a request."""

    request_id: str
    error: Exception


@dataclass(frozen=True)
class Died:
    """The engine has failed, and with it everything that it had taken."""

    error: BaseException


Happening = Event | Refused | Died
"""What the thread tells."""


def waited_for_processor_s(thread_id: int) -> float:
    """How long a thread of this process was ready to run and did not; 0 where the system does not tell."""
    try:
        return int(Path(f"/proc/self/task/{thread_id}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


class EngineThread:
    """An engine at work; safe to call from any thread."""

    def __init__(
        self,
        engine: EngineProtocol,
        deliver: Callable[[Sequence[Happening]], None],
        *,
        niceness: int = 0,
        clock: Callable[[], float] = time.monotonic,
        waited_s: Callable[[int], float] = waited_for_processor_s,
    ) -> None:
        """`niceness` is added to that of the process for the thread and for those that compute with it.

        `waited_s` tells how long a thread was ready and had no processor.
        """
        self._engine = engine
        self._niceness = niceness
        self._deliver = deliver
        self._clock = clock
        self._waited_s = waited_s
        self._changed = threading.Condition()
        self._inbox: list[Generate | Rate | str] = []
        """Requests, and the ids of those to be cancelled, in order."""
        self._is_stopping = False
        self._busy_since: float | None = None
        """When the step under way began; None while there is none."""
        self._first_look = (-1, 0.0)
        """A step's number, and how long the thread had waited for a processor when that step was first looked at."""
        self.num_steps = 0
        self.stats = engine.stats()
        """As of the last step."""
        self.error: BaseException | None = None
        """What ended the thread before it was told to stop."""
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to work; once."""
        self._thread.start()

    def put(self, requests: Sequence[Generate | Rate]) -> None:
        """Hand in requests; what becomes of each is told by events."""
        self._post(requests)

    def cancel(self, request_ids: Sequence[str]) -> None:
        """End what is left of requests before the next step."""
        self._post(request_ids)

    def stop(self, timeout_s: float) -> bool:
        """Stop after the step under way and close the engine; whether both was done within the time."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        if self._thread.ident is None:
            self._close()
        else:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def busy_s(self) -> float:
        """How long the step under way has taken so far; 0 between steps.

        Since the first such question about a step, the time in which other programs kept the processors does not count:
        a thread that gives way is not stuck because it waits.
        """
        since, step = self._busy_since, self.num_steps
        if since is None or self._thread.native_id is None:
            return 0.0
        waited_s = self._waited_s(self._thread.native_id)
        if self._first_look[0] != step:
            self._first_look = (step, waited_s)
        return self._clock() - since - (waited_s - self._first_look[1])

    def _post(self, items: Sequence[Generate | Rate | str]) -> None:
        with self._changed:
            self._inbox += items
            self._changed.notify()

    def _run(self) -> None:
        try:
            if self._niceness and sys.platform == "linux":
                # Linux keeps it by thread, and a thread hands it on to those that it starts.
                own = threading.get_native_id()
                os.setpriority(os.PRIO_PROCESS, own, os.getpriority(os.PRIO_PROCESS, own) + self._niceness)
            while self._wait_for_work():
                self._busy_since = self._clock()
                happened: list[Happening] = [*self._take_in()]
                if self._engine.has_work:
                    happened += self._engine.events()
                self.stats = self._engine.stats()
                self.num_steps += 1
                self._busy_since = None
                if happened:
                    self._deliver(happened)
        except BaseException as error:
            # Whatever it is: everybody who waits is told, and nobody is let in any more.
            log.exception("the engine has failed")
            self.error = error
            self._busy_since = None
            self._deliver([Died(error)])
        finally:
            self._close()

    def _close(self) -> None:
        """Close the engine; one that has failed may fail at this too, and nobody waits for it any more."""
        try:
            self._engine.close()
        except Exception:
            log.exception("the engine does not close")

    def _wait_for_work(self) -> bool:
        """Sleep until there is something to do; False when told to stop."""
        with self._changed:
            while not (self._inbox or self._is_stopping or self._engine.has_work):
                self._changed.wait()
            return not self._is_stopping

    def _take_in(self) -> list[Refused]:
        with self._changed:
            inbox, self._inbox = self._inbox, []
        refused = []
        for item in inbox:
            try:
                if isinstance(item, Generate):
                    self._engine.submit(item)
                elif isinstance(item, Rate):
                    self._engine.score(item)
                else:
                    self._engine.cancel(item)
            except Exception as error:
                # An engine checks a request before it takes it, so the others are unaffected.
                if not isinstance(error, CongError):
                    log.exception("the engine stumbled over a request")
                if not isinstance(item, str):
                    refused.append(Refused(item.request_id, error))
        return refused
