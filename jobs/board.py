"""What a job's driver and its workers say to one another: a small actor on the driver's machine.

Workers say how far they are, what they log and why they gave up; the driver says that they are to stop. Knows no
training. Nobody waits for an answer that does not come: each wait has a limit.
"""

import logging
import threading
from collections import deque
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

logger = logging.getLogger(__name__)

ANSWER_LIMIT_S = 30.0
_EVERY_S = 0.5
_MAX_LINES = 2000


@dataclass(frozen=True)
class Numbers:
    """How far training is, and how it went since the last word."""

    step: int
    num_steps: int
    loss: float | None
    """None: nothing of the step was left to train on."""
    num_tokens: int
    wait_s: float
    compute_s: float

    def after(self, former: "Numbers | None") -> "Numbers":
        """These, and what the former ones counted, of which nobody has heard yet."""
        if former is None:
            return self
        return replace(
            self,
            num_tokens=former.num_tokens + self.num_tokens,
            wait_s=former.wait_s + self.wait_s,
            compute_s=former.compute_s + self.compute_s,
        )


@dataclass(frozen=True)
class Line:
    """Something that a worker logged."""

    logger: str
    level: int
    text: str


@dataclass(frozen=True)
class News:
    """What has happened since the driver last asked."""

    lines: tuple[Line, ...] = ()
    numbers: Numbers | None = None
    refusal: str | None = None
    """Why the run cannot go on however often it is started again."""


class Board:
    """The actor; one for each driver."""

    def __init__(self) -> None:
        self._lines: deque[Line] = deque(maxlen=_MAX_LINES)
        self._numbers: Numbers | None = None
        self._refusal: str | None = None
        self._is_stopping = False

    def tell(self, lines: tuple[Line, ...], numbers: Numbers | None) -> bool:
        """A worker's news; answers whether it is to stop."""
        self._lines.extend(lines)
        self._numbers = numbers.after(self._numbers) if numbers else self._numbers
        return self._is_stopping

    def refuse(self, reason: str) -> None:
        """A worker has met what a person must put right; the first reason counts."""
        self._refusal = self._refusal or reason

    def refusal(self) -> str | None:
        """Why starting again is of no use."""
        return self._refusal

    def ask(self, is_stopping: bool) -> News:
        """The driver's question."""
        self._is_stopping = is_stopping
        news = News(tuple(self._lines), self._numbers, self._refusal)
        self._lines.clear()
        self._numbers = None
        return news


def open_board() -> Any:
    """A board on this machine, which ends with this driver."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Board).options(num_cpus=0, scheduling_strategy=here).remote()


class Messenger(logging.Handler):
    """A worker's side: sends log lines and numbers every half second, and hears whether to stop."""

    def __init__(self, board: Any, prefix: str) -> None:
        super().__init__()
        self._board = board
        self._prefix = prefix
        self._lines: deque[Line] = deque(maxlen=_MAX_LINES)
        self._numbers: Numbers | None = None
        self._is_over = threading.Event()
        self._turn = threading.Lock()
        self.stop_asked = threading.Event()
        self._thread = threading.Thread(target=self._run, name="messenger", daemon=True)

    def emit(self, record: logging.LogRecord) -> None:
        """A log line."""
        try:
            self._lines.append(Line(record.name, record.levelno, f"{self._prefix}{record.getMessage()}"))
        except Exception:  # noqa: BLE001 - what logging asks of a handler
            self.handleError(record)

    def show(self, numbers: Numbers) -> None:
        """How far training is; numbers that were not sent yet are added to."""
        with self._turn:
            self._numbers = numbers.after(self._numbers)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def finish(self) -> None:
        """Send what is left."""
        self._is_over.set()
        self._thread.join(2 * ANSWER_LIMIT_S)

    def _run(self) -> None:
        while not self._is_over.wait(_EVERY_S):
            self._send()
        self._send()

    def _send(self) -> None:
        with self._turn:
            numbers, self._numbers = self._numbers, None
        lines = tuple(self._lines.popleft() for _ in range(len(self._lines)))
        try:
            if ray.get(self._board.tell.remote(lines, numbers), timeout=ANSWER_LIMIT_S):
                self.stop_asked.set()
        except GetTimeoutError:
            pass  # a driver that is slow hears of it yet: the call is under way
        except RayError:
            # It was not told. A driver that is gone takes its workers along.
            self._lines.extendleft(reversed(lines))
            with self._turn:
                newer = self._numbers
                self._numbers = newer.after(numbers) if newer else numbers
