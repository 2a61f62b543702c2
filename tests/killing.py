"""A kill before any change to a folder: what a process does to files is counted, and from one on it does nothing more.

Nothing can catch it and no clean-up takes effect, as after SIGKILL.
"""

import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "shutil.rmtree"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Killed(BaseException):
    """No `except Exception` catches it."""


class _Watch:
    """Of one folder, while it is set."""

    def __init__(self) -> None:
        self.folder: str | None = None
        self.left = 0
        self.num_seen = 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None or not (event in _CHANGES or (event == "open" and arguments[2] & _WRITING)):
            return
        is_dead = self.num_seen > self.left
        if is_dead or any(self._is_below(argument) for argument in arguments[:2]):
            self.num_seen += 1
            if self.num_seen > self.left:
                raise Killed(f"before change {self.left + 1}: {event} {arguments[0]}")

    def _is_below(self, argument: object) -> bool:
        return isinstance(argument, str | bytes | os.PathLike) and os.fsdecode(argument).startswith(self.folder or "")


_WATCH = _Watch()


@functools.cache
def _begin_to_watch() -> None:
    sys.addaudithook(_WATCH)  # for ever: Python takes none back


@contextmanager
def killed_after(num_changes: int, folder: Path) -> Iterator[None]:
    """The work inside may change what lies in a folder so many times."""
    _begin_to_watch()
    _WATCH.folder, _WATCH.left, _WATCH.num_seen = str(folder), num_changes, 0
    try:
        yield
    finally:
        _WATCH.folder = None


def count_changes(work: Callable[[], object], folder: Path) -> int:
    """How often a piece of work changes what lies in a folder."""
    with killed_after(sys.maxsize, folder):
        work()
        return _WATCH.num_seen
