"""How far a piece of work is: a live bar on a terminal, elsewhere a few plain lines. Knows not what is counted."""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextvars import ContextVar
from functools import partial
from types import TracebackType
from typing import Self, TextIO, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.progress import TimeRemainingColumn as RemainingColumn
from rich.table import Column
from rich.text import Text

T = TypeVar("T")

# A non-terminal gets one line at the start, one at the end, and between them at most one per this many seconds.
PLAIN_INTERVAL_S = 10.0

# The display of the enclosing bar: a bar opened inside another becomes a second row of the same display, because two
# displays on one terminal would write over each other.
_display: ContextVar[RichProgress | None] = ContextVar("cong_progress_display", default=None)


class Progress:
    """One running count with a label; made by `progress`, used as a context manager."""

    def __init__(
        self,
        label: str,
        total: int | None,
        *,
        start: int,
        unit: str,
        is_quiet: bool,
        stream: TextIO | None,
        clock: Callable[[], float],
    ) -> None:
        self.label = _printable(label)
        self.total = total
        self.done = start
        self.fields: dict[str, str] = {}
        self._start = start
        self._unit = _printable(unit)
        self._is_quiet = is_quiet
        self._stream = stream
        self._clock = clock
        self._lock = threading.Lock()
        self._view: _LiveView | _PlainView | None = None
        self._started_at = clock()

    def __enter__(self) -> Self:
        self._started_at = self._clock()
        if not self._is_quiet:
            stream = self._stream or sys.stderr
            self._view = _LiveView(self, stream) if _is_live_terminal(stream) else _PlainView(self, stream)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._view is not None:
            self._view.close(is_failed=kind is not None)
            self._view = None

    def advance(self, count: int = 1, **fields: float | int | str) -> None:
        """Count `count` more as done; keyword arguments are live fields shown beside the bar, such as `loss=0.3`."""
        with self._lock:
            self.done += count
            self._show(fields)

    def show(self, **fields: float | int | str) -> None:
        """Change live fields without counting anything as done."""
        with self._lock:
            self._show(fields)

    def _show(self, fields: dict[str, float | int | str]) -> None:
        self.fields.update({_printable(name): _field_text(value) for name, value in fields.items()})
        if self._view is not None:
            self._view.update()

    @property
    def elapsed_s(self) -> float:
        return self._clock() - self._started_at

    @property
    def rate_per_s(self) -> float | None:
        """Units per second since the bar was opened; what was done before (`start`) does not count."""
        elapsed_s = self.elapsed_s
        return (self.done - self._start) / elapsed_s if elapsed_s > 0 and self.done > self._start else None

    @property
    def rate_text(self) -> str:
        rate = self.rate_per_s
        if rate is None:
            return ""
        if rate < 1:
            return f"{1 / rate:,.1f} s each"
        return f"{rate:,.1f} {self._unit}/s" if self._unit else f"{rate:,.1f}/s"

    @property
    def fields_text(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.fields.items())


def progress(
    label: str,
    total: int | None = None,
    *,
    start: int = 0,
    unit: str = "",
    is_quiet: bool = False,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Progress:
    """Show how far a piece of work is, for work that takes longer than about two seconds.

    On a terminal a live bar with count, rate, elapsed and remaining time; elsewhere a few plain lines. `start` is what
    an earlier run has done already. A bar opened inside another one is shown below it.

        with progress("sampling", total=2000) as bar:
            for batch in batches:
                bar.advance(len(batch), reward=mean_reward)
    """
    return Progress(label, total, start=start, unit=unit, is_quiet=is_quiet, stream=stream, clock=clock)


def track(
    items: Iterable[T], label: str, total: int | None = None, *, unit: str = "", is_quiet: bool = False
) -> Iterator[T]:
    """Iterate over `items` with a bar; the total is their length where they have one."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with progress(label, total, unit=unit, is_quiet=is_quiet) as bar:
        for item in items:
            yield item
            bar.advance()


class _LiveView:
    """A row of a live display on a terminal; opens the display if there is none yet."""

    def __init__(self, bar: Progress, stream: TextIO) -> None:
        self._bar = bar
        self._outer = _display.get()
        if self._outer is None:
            # With no explicit file rich follows sys.stderr, and moves what others print there above the bar.
            console = Console(stderr=True) if stream is sys.stderr else Console(file=stream)
            self._shown = RichProgress(*_columns(console.width), console=console)
            self._shown.start()
            _display.set(self._shown)
        else:
            self._shown = self._outer
        self._row = self._shown.add_task(bar.label, total=bar.total, completed=bar.done, bar=bar)

    def update(self) -> None:
        self._shown.update(self._row, completed=self._bar.done)

    def close(self, *, is_failed: bool) -> None:
        if self._outer is not None:
            self._shown.remove_task(self._row)
            return
        if self._bar.total is None and not is_failed:
            self._shown.update(self._row, total=self._bar.done)
        self._shown.stop()
        _display.set(None)


class _PlainView:
    """Plain lines for log files and continuous integration: bounded in number, free of control characters."""

    def __init__(self, bar: Progress, stream: TextIO) -> None:
        self._bar = bar
        self._stream = stream
        self._written_at_s = 0.0
        to_do = f" ({max(bar.total - bar.done, 0):,} of {bar.total:,} to do)" if bar.total is not None else ""
        self._write(f"started{to_do}")

    def update(self) -> None:
        bar = self._bar
        elapsed_s = bar.elapsed_s
        if elapsed_s - self._written_at_s < PLAIN_INTERVAL_S:
            return
        self._written_at_s = elapsed_s
        parts = [self._count(), bar.rate_text, f"{_duration(elapsed_s)} elapsed"]
        if bar.total is not None and (rate := bar.rate_per_s) is not None:
            parts.append(f"{_duration(max(bar.total - bar.done, 0) / rate)} left")
        self._write(", ".join(part for part in [*parts, bar.fields_text] if part))

    def close(self, *, is_failed: bool) -> None:
        bar = self._bar
        is_short = is_failed or (bar.total is not None and bar.done < bar.total)
        state = f"stopped at {self._count()} after" if is_short else f"done, {bar.done:,} in"
        parts = [f"{state} {_duration(bar.elapsed_s)}", bar.rate_text, bar.fields_text]
        self._write(", ".join(part for part in parts if part))

    def _count(self) -> str:
        bar = self._bar
        if not bar.total:
            return f"{bar.done:,}"
        return f"{bar.done:,} of {bar.total:,} ({100 * bar.done // bar.total}%)"

    def _write(self, text: str) -> None:
        self._stream.write(f"{self._bar.label}: {text}\n")
        self._stream.flush()


class _LabelColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(task.description, no_wrap=True)


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(task.fields["bar"].rate_text, style="progress.data.speed")


class _FieldsColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(task.fields["bar"].fields_text, style="dim", no_wrap=True)


def _columns(width: int) -> tuple[ProgressColumn, ...]:
    # One line a row: of a narrow terminal the bar takes an eighth, and only the longer of label and fields is cut.
    whole = partial(Column, no_wrap=True)
    return (
        _LabelColumn(),
        BarColumn(bar_width=min(28, width // 8), table_column=whole()),
        MofNCompleteColumn(table_column=whole()),
        _RateColumn(table_column=whole()),
        TimeElapsedColumn(table_column=whole()),
        RemainingColumn(table_column=whole()),
        _FieldsColumn(),
    )


def _is_live_terminal(stream: TextIO) -> bool:
    # Not rich's own test: FORCE_COLOR makes that true for a log file, and a bar is more than colour.
    return stream.isatty() and not Console(file=stream).is_dumb_terminal


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)


def _field_text(value: float | int | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else _printable(str(value))


def _duration(seconds: float) -> str:
    minutes, whole_s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{whole_s:02d}" if hours else f"{minutes}:{whole_s:02d}"
