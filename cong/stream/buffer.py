"""Records that were handed in and are not yet stored, and who waits for them. Knows no files, no threads, no clock."""

from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal

from cong.config.stream import WriteSettings
from cong.stream.columns import PackedRow
from cong.stream.names import Lane

Level = Literal["none", "local", "shared"]
STRENGTH: dict[Level, int] = {"none": 0, "local": 1, "shared": 2}
"""Levels in order: nothing promised, survives this machine's crash, survives this machine's loss."""


@dataclass(frozen=True)
class Ack:
    """What became of a record: how durable it is by now, and where it lies."""

    key: str
    level: Level
    lane: Lane
    row: int
    is_duplicate: bool
    """The key was there already; the earlier record stays and this one is dropped."""


@dataclass
class Waiter:
    """Somebody who waits for a record to reach a level."""

    level: Level
    future: "Future[Ack]"
    is_duplicate: bool
    needs_segment: bool = False
    """The journal is not enough, whatever the level."""


@dataclass
class Pending:
    """A record on its way, with its row in the lane."""

    packed: PackedRow
    row: int
    since_s: float
    payload: bytes | None = None
    """As the journal keeps it; None without a journal."""
    waiters: list[Waiter] = field(default_factory=list)

    def settled(self, lane: Lane, level: Level, is_published: bool) -> list[tuple["Future[Ack]", Ack]]:
        """Take out the waiters that are satisfied, with what to tell them."""
        done = [
            waiter
            for waiter in self.waiters
            if STRENGTH[waiter.level] <= STRENGTH[level] and (is_published or not waiter.needs_segment)
        ]
        self.waiters = [waiter for waiter in self.waiters if waiter not in done]
        return [(waiter.future, Ack(self.packed.key, level, lane, self.row, waiter.is_duplicate)) for waiter in done]


class Buffer:
    """Pending records in row order; the first of them may be on their way into a segment."""

    def __init__(self, settings: WriteSettings) -> None:
        self._settings = settings
        self._waiting: deque[Pending] = deque()
        self._by_key: dict[str, Pending] = {}
        self.sealing: list[Pending] = []
        self.num_bytes = 0
        self.waited_since_s: float | None = None
        """Since when the longest-waiting caller waits for a segment."""

    def __len__(self) -> int:
        return len(self._by_key)

    def get(self, key: str) -> Pending | None:
        """The pending record of a key."""
        return self._by_key.get(key)

    def add(self, pending: Pending) -> None:
        """Take a record in, behind all others."""
        self._waiting.append(pending)
        self._by_key[pending.packed.key] = pending
        self.num_bytes += pending.packed.num_bytes

    def is_full(self) -> bool:
        """Whether as much waits as may."""
        limit = self._settings.max_buffered_segments
        return (
            len(self) >= limit * self._settings.rows_per_segment
            or self.num_bytes >= limit * self._settings.bytes_per_segment
        )

    def is_segment_full(self) -> bool:
        """Whether there is enough for a segment."""
        return len(self) >= self._settings.rows_per_segment or self.num_bytes >= self._settings.bytes_per_segment

    def oldest_s(self) -> float | None:
        """When the oldest pending record came."""
        if self.sealing:
            return self.sealing[0].since_s
        return self._waiting[0].since_s if self._waiting else None

    def last(self) -> Pending | None:
        """The newest pending record."""
        if self._waiting:
            return self._waiting[-1]
        return self.sealing[-1] if self.sealing else None

    def take_segment(self) -> list[Pending]:
        """The records of the next segment; the same again until `finish_segment`."""
        if not self.sealing:
            num_bytes = 0
            while self._waiting and len(self.sealing) < self._settings.rows_per_segment:
                num_bytes += self._waiting[0].packed.num_bytes
                if self.sealing and num_bytes > self._settings.bytes_per_segment:
                    break
                self.sealing.append(self._waiting.popleft())
        return self.sealing

    def finish_segment(self) -> list[Pending]:
        """Forget the records of the segment that was stored."""
        done, self.sealing = self.sealing, []
        for pending in done:
            del self._by_key[pending.packed.key]
            self.num_bytes -= pending.packed.num_bytes
        if not any(waiter.needs_segment for pending in self._waiting for waiter in pending.waiters):
            self.waited_since_s = None
        return done

    def from_row(self, row: int) -> list[Pending]:
        """Records from a row on."""
        return [pending for pending in (*self.sealing, *self._waiting) if pending.row >= row]

    def take_waiters(self, *, needs_segment: bool) -> "list[Future[Ack]]":
        """Those who wait for a segment, or those for whom the journal is enough, to be told of a failure.

        The records stay.
        """
        if needs_segment:
            self.waited_since_s = None
        futures = []
        for pending in (*self.sealing, *self._waiting):
            futures += [waiter.future for waiter in pending.waiters if waiter.needs_segment == needs_segment]
            pending.waiters = [waiter for waiter in pending.waiters if waiter.needs_segment != needs_segment]
        return futures
