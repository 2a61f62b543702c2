"""Who may come in: samples that wait, and requests of one key, are bounded. Knows numbers and names only.

What is refused is told when to try again: the time that what is too much takes at the present rate.
"""

import time
from collections import Counter, deque
from collections.abc import Callable

from cong.errors import InvalidRequest, Overloaded

_WINDOW_S = 30.0
_LONGEST_RETRY_S = 60.0
_SHORTEST_RETRY_S = 1.0


class Admission:
    """Counts of what has come in and not gone out."""

    def __init__(
        self,
        max_waiting: int,
        max_concurrent_per_key: int,
        num_seats: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`num_seats` tells how many samples the engine computes or could begin; the others that are open wait."""
        self._max_waiting = max_waiting
        self._max_concurrent_per_key = max_concurrent_per_key
        self._num_seats = num_seats
        self._clock = clock
        self._calls: Counter[str] = Counter()
        self._finished: deque[tuple[float, int]] = deque()
        self.num_open = 0
        """Samples that have come in and not gone out."""

    def bound(self, max_waiting: int, max_concurrent_per_key: int) -> None:
        """Other bounds from now on; what has come in stays."""
        self._max_waiting = max_waiting
        self._max_concurrent_per_key = max_concurrent_per_key

    @property
    def num_calls(self) -> int:
        """Requests that have come in and not gone out."""
        return self._calls.total()

    @property
    def num_waiting(self) -> int:
        """Samples for which there is no seat."""
        return max(0, self.num_open - self._num_seats())

    def enter(self, caller: str, num_samples: int) -> None:
        """Let a request in, or say when to try again; each that is let in leaves once."""
        self.require(caller, num_samples)
        self._calls[caller] += 1
        self.num_open += num_samples

    def require(self, caller: str, num_samples: int) -> None:
        """Say when to try again where a request would not be let in now."""
        if self._calls[caller] >= self._max_concurrent_per_key:
            raise Overloaded(
                f"{self._calls[caller]} requests of this key are being served and may not be more; wait for one to end",
                self._retry_after_s(1),
            )
        if num_samples > self._max_waiting:
            raise InvalidRequest("num_samples", f"{num_samples} samples are asked for; {self._max_waiting} may wait")
        excess = self.num_open + num_samples - self._num_seats() - self._max_waiting
        if excess > 0:
            raise Overloaded(
                f"{self.num_waiting} samples wait, {num_samples} more are asked for, and {self._max_waiting} may; try "
                "again later",
                self._retry_after_s(excess),
            )

    def finish(self, num_samples: int) -> None:
        """Samples have gone out, finished or not."""
        if not num_samples:
            return
        self.num_open -= num_samples
        now = self._clock()
        self._finished.append((now, num_samples))
        self._forget(now)

    def leave(self, caller: str) -> None:
        """A request has gone out; its samples are told of by `finish`."""
        self._calls[caller] -= 1
        if self._calls[caller] <= 0:
            del self._calls[caller]

    def _forget(self, now: float) -> None:
        while self._finished and self._finished[0][0] < now - _WINDOW_S:
            self._finished.popleft()

    def _retry_after_s(self, excess: int) -> float:
        now = self._clock()
        self._forget(now)
        num_finished = sum(count for _, count in self._finished)
        if not num_finished:
            return _SHORTEST_RETRY_S
        seconds = max(now - self._finished[0][0], 1.0)
        return min(max(excess * seconds / num_finished, _SHORTEST_RETRY_S), _LONGEST_RETRY_S)
