"""How long a call goes on trying, and how it spaces its tries. Knows no HTTP library and does not sleep itself."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from cong.client.failure import Failure

_JITTER_SHARE = 0.25
"""Of a pause that the service asked for: clients that were refused together do not come back together."""


@dataclass(frozen=True)
class Patience:
    """Bounds of a call. A stream has them anew after each of its events."""

    total_s: float = 600.0
    """Until the reply is there, all tries and pauses included; of a stream, until its next event."""
    connect_s: float = 5.0
    max_tries: int = 8
    """With the pauses below some 15 seconds, in which a proxy that died is replaced."""
    first_pause_s: float = 0.25
    """Upper bound of the first pause; it doubles with every try."""
    max_pause_s: float = 20.0
    """Pauses that the service asks for may be longer."""

    def __post_init__(self) -> None:
        bounds = {"total_s": self.total_s, "connect_s": self.connect_s, "max_tries": self.max_tries}
        for name, value in bounds.items():
            if not value > 0:
                raise ValueError(f"{name} is {value}; it must be more than 0")
        if not 0 <= self.first_pause_s <= self.max_pause_s:
            raise ValueError(f"pauses are {self.first_pause_s} to {self.max_pause_s} s; give 0 <= first <= max")


class Tries:
    """The tries of one call: how many there were, how much time is left, and when the next one may start."""

    def __init__(self, patience: Patience, clock: Callable[[], float], rng: random.Random) -> None:
        self._patience = patience
        self._clock = clock
        self._rng = rng
        self.restart()

    def restart(self) -> None:
        """Begin anew: the service has shown that it is there."""
        self._started_at = self._clock()
        self._num_failed = 0

    @property
    def connect_s(self) -> float:
        """How long the next try may take to connect."""
        return max(0.001, min(self._patience.connect_s, self.left_s))

    @property
    def left_s(self) -> float:
        """What is left of the whole call's time."""
        return self._started_at + self._patience.total_s - self._clock()

    def pause_after(self, failure: Failure) -> float:
        """Seconds until the next try; raises the failure's error where there is none."""
        self._num_failed += 1
        if not failure.is_passing:
            raise failure.error("")
        ceiling_s = min(self._patience.max_pause_s, self._patience.first_pause_s * 2 ** (self._num_failed - 1))
        pause_s = self._rng.uniform(0.0, ceiling_s)
        if failure.retry_after_s is not None:
            asked_s = failure.retry_after_s
            pause_s = max(pause_s, asked_s + self._rng.uniform(0.0, _JITTER_SHARE * asked_s))
        if self._num_failed >= self._patience.max_tries:
            raise failure.error(f" (given up after {self._num_failed} tries)")
        if pause_s >= self.left_s:
            raise failure.error(
                f" (given up after {self._num_failed} tries: the next would start in {pause_s:.3g} s, and "
                f"{max(self.left_s, 0.0):.3g} of {self._patience.total_s:g} s are left)"
            )
        return pause_s
