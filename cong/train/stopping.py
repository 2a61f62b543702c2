"""Being asked to stop: the first signal lets the step finish and the run be saved, the second ends it at once."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

STOPPED_EXIT_CODE = 75
"""Of a program that was asked to stop, has saved its work and can go on: "try again later" to shells."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Whether somebody wants the run to stop; as a context manager it listens to SIGTERM and SIGINT."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._former: dict[signal.Signals, Any] = {}

    @property
    def is_set(self) -> bool:
        """Somebody asked."""
        return self._event.is_set()

    def set(self) -> None:
        """Ask."""
        self._event.set()

    def __enter__(self) -> Self:
        # Only the main thread may set handlers; elsewhere whoever runs the process passes the request on.
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._event.is_set():
            os._exit(128 + number)
        self._event.set()
