"""What a person watches while a command works for minutes. Knows no jobs."""

import time
from typing import Any

from rich.console import Console
from rich.markup import escape


class Screen:
    """Lines with the time since the start, and below them what is going on at the moment."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._status = self._console.status("")
        self._watched = ""
        self._started_s = time.monotonic()

    def __enter__(self) -> "Screen":
        self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    @property
    def elapsed(self) -> str:
        """Since the start."""
        minutes, seconds = divmod(round(time.monotonic() - self._started_s), 60)
        return f"{minutes}:{seconds:02d}"

    def say(self, text: str, style: str = "") -> None:
        """A line that stays."""
        self._console.print(f"[dim]{self.elapsed:>5}[/]  {escape(text)}", style=style or None)

    def watch(self, text: str) -> None:
        """What is going on; elsewhere than on a terminal a line like any other."""
        if self._console.is_terminal:
            self._status.update(f"[dim]{escape(text)}[/]")
        elif text and text != self._watched:
            self.say(f"  {text}")
        self._watched = text

    def show(self, thing: Any) -> None:
        """A table."""
        self._console.print(thing)
