"""How threads that compute together wait for each other: turning circles on free cores, asleep beside other work.

Every operation of a step ends where its threads meet. GNU's OpenMP, which torch brings along, lets whoever comes first
turn circles for milliseconds, which is fastest on cores of one's own. Beside other work it is slowest: a thread that
turns circles spends its share of the core, is put aside for the other's, and all wait for it at the next meeting, a
hundred times a step. OpenMP reads how long to wait when the process starts, but waits briefly and then sleeps while a
process has more OpenMP threads than there are cores. A team of threads that does nothing makes that so, and can be sent
away again.

A thread that has been told to give way (`service.engine_niceness`) is left alone: it would get more done, and those who
are to go first would wait for what it holds of the interpreter.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

_INTERVAL_S = 0.25
_CONTENDED = 0.3
"""Seconds in a second that the threads of the process, taken together, stood ready and had no core; 0.1 is usual."""
_TASKS = Path("/proc/self/task")


class Waiting:
    """Looks now and then whether the cores are free, and lets the threads wait accordingly."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, delayed_s: Callable[[], float] | None = None
    ) -> None:
        self._clock = clock
        self._delayed_s = delayed_s or seconds_without_a_core
        self._team: _IdleTeam | None = None
        self._looked_at = clock()
        self._delay_s = self._delayed_s()

    @property
    def is_brief(self) -> bool:
        """Whether threads that wait for each other go to sleep soon."""
        return self._team is not None

    def look(self) -> None:
        """Change how threads wait where the cores have become free or contended; cheap, for every step."""
        passed_s = self._clock() - self._looked_at
        if passed_s < _INTERVAL_S:
            return
        delay_s = self._delayed_s()
        is_contended = delay_s - self._delay_s > _CONTENDED * passed_s and not gives_way()
        self._looked_at, self._delay_s = self._clock(), delay_s
        if is_contended and self._team is None:
            self._team = _IdleTeam()
        elif not is_contended:
            self.close()

    def close(self) -> None:
        """Send the idle team away."""
        if self._team is not None:
            self._team.end()
            self._team = None


class _IdleTeam:
    """A thread that has computed once with a team of its own, which stays as long as the thread does."""

    def __init__(self) -> None:
        self._is_over = threading.Event()
        is_there = threading.Event()
        self._thread = threading.Thread(target=self._stay, args=(is_there,), daemon=True)
        self._thread.start()
        is_there.wait(10.0)

    def _stay(self, is_there: threading.Event) -> None:
        torch.zeros(2**20).add_(1.0)  # large enough for torch to divide it
        is_there.set()
        self._is_over.wait()

    def end(self) -> None:
        """Let the thread go, and its team with it."""
        self._is_over.set()
        self._thread.join(10.0)


def gives_way() -> bool:
    """Whether this thread has been told to let the other threads of the process go first."""
    own, first = threading.get_native_id(), os.getpid()
    return os.getpriority(os.PRIO_PROCESS, own) > os.getpriority(os.PRIO_PROCESS, first)


def seconds_without_a_core() -> float:
    """For how long the threads of this process were ready to run while none of the cores took them; 0 if unknown."""
    total = 0
    for task in _TASKS.iterdir() if _TASKS.exists() else ():
        # A thread that has just ended, or a kernel that keeps no account.
        with contextlib.suppress(OSError, IndexError):
            total += int((task / "schedstat").read_text().split()[1])
    return total / 1e9
