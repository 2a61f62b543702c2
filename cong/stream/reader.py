"""Reading a stream by cursor: which rows come next.

`draw` decides, `fetch` reads. One process draws; any number of ranks fetch their share of the same draw, so position
is never split over ranks. Knows nothing of bytes and nothing of batches of tensors.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from cong.config.stream import ReadSettings
from cong.errors import StreamError, StreamInterrupted
from cong.schemas import SampleRecord
from cong.stream.columns import to_records
from cong.stream.cursor import Cursor, Draw, Rows, split_spans, window_order
from cong.stream.identity import read_identity, require_identity
from cong.stream.index import KeyIndex, index_cache
from cong.stream.listing import Listing, Span, describe_gap, list_stream, require, require_rows
from cong.stream.names import Lane
from cong.stream.rows import RowReader
from cong.stream.selection import is_selective
from cong.stream.store import Store
from cong.stream.window import Window, damaged_spans, joined_spans, passing_rows, repeated_rows

log = logging.getLogger(__name__)

_WINDOW_ROWS = 4096
"""Rows looked at together where the order is not shuffled; it has no influence on the order."""
_MIN_CACHED_ROWS = 2048


def order_identity(settings: ReadSettings) -> dict[str, Any]:
    """What a cursor must have in common with the reader that goes on from it."""
    return {
        "filter": settings.filter.model_dump(mode="json"),
        "shuffle_rows": settings.shuffle_rows,
        "shuffle_seed": settings.shuffle_seed if settings.shuffle_rows else 0,
        "is_deduplicated": settings.is_deduplicated,
    }


class StreamReader:
    """Rows of a stream from a cursor on."""

    def __init__(
        self,
        store: Store,
        settings: ReadSettings | None = None,
        cursor: Cursor | None = None,
        cache_dir: str = "",
        *,
        is_closed: bool = False,
        wants_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """`is_closed`: take in nothing beyond what the cursor has admitted, whatever has come since.

        `wants_stop` is asked while the reader waits; then it raises `StreamInterrupted`, and what it was about to draw
        is still to come for whoever goes on from the cursor before.
        """
        self._wants_stop = wants_stop
        self._store = store
        self._settings = settings or ReadSettings()
        identity = order_identity(self._settings)
        self._await_stream()
        stream = require_identity(store)
        if cursor is not None:
            _require_same(cursor, stream, identity, store.location)
        self._cursor = cursor or Cursor(stream, identity)
        self._rows = RowReader(store, self._look, max(2 * self._settings.shuffle_rows, _MIN_CACHED_ROWS))
        self._is_fresh = not is_closed
        self._index: KeyIndex | None = None
        if self._settings.is_deduplicated:
            self._index = KeyIndex(store, stream, index_cache(store, cache_dir))
        self._walk: Rows = np.zeros(0, dtype=np.int64)
        self._walk_at = 0
        self._spans: tuple[Span, ...] = ()
        self._window_rows: Rows = self._walk
        self._window_lanes: Rows = self._walk
        if self._cursor.window:
            self._open_window()

    @property
    def cursor(self) -> Cursor:
        """The position behind everything drawn so far."""
        return self._cursor

    @property
    def location(self) -> str:
        """Where the stream lies."""
        return self._store.location

    @property
    def listing(self) -> Listing:
        """The stream as last looked at."""
        return self._rows.listing

    def admit(self) -> Cursor:
        """Take in every row in sight; a closed reader that goes on from this cursor reads them and no others."""
        self._admit()
        return self._cursor

    def draw(self, num_records: int) -> Draw | None:
        """The next records, fewer only where the stream ends, None behind its end. Waits only when following."""
        assert num_records > 0, f"num_records is {num_records}, must be positive"
        if self._settings.max_records:
            num_records = min(num_records, self._settings.max_records - self._cursor.num_records)
        lanes: dict[Lane, int] = {}
        numbers: list[Rows] = []
        rows: list[Rows] = []
        count = 0
        while count < num_records and (self._walk_at < len(self._walk) or self._begin_window()):
            taken = self._walk[self._walk_at : self._walk_at + num_records - count]
            if len(taken):
                names = [lanes.setdefault(span.lane, len(lanes)) for span in self._spans]
                numbers.append(np.array(names, dtype=np.int64)[self._window_lanes[taken]])
                rows.append(self._window_rows[taken])
            count += len(taken)
            self._advance(len(taken))
        if not count:
            return None
        return Draw(tuple(lanes), np.concatenate(numbers), np.concatenate(rows), self._cursor)

    def fetch(self, draw: Draw, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of a draw, or of a rank's share of it, in the draw's order; all columns unless named."""
        return self._rows.fetch(draw, columns)

    def tables(self, num_records: int, columns: Sequence[str] | None = None) -> Iterator[tuple[pa.Table, Cursor]]:
        """Batch after batch, each with the cursor behind it."""
        while (draw := self.draw(num_records)) is not None:
            yield self.fetch(draw, columns), draw.cursor

    def records(self) -> Iterator[SampleRecord]:
        """Record after record, whole and validated: for people."""
        for table, _ in self.tables(256):
            yield from to_records(table)

    def _advance(self, num_taken: int) -> None:
        cursor = replace(self._cursor, num_records=self._cursor.num_records + num_taken)
        self._walk_at += num_taken
        if self._walk_at >= len(self._walk):
            self._cursor = replace(cursor, window=(), offset=0)
            self._walk, self._walk_at = self._walk[:0], 0
            return
        offset = int(self._walk[self._walk_at - 1]) + 1
        if self._settings.shuffle_rows:
            self._cursor = replace(cursor, offset=offset)
        else:
            # In the stated order nothing depends on where a window began, so retention need not keep its beginning.
            self._cursor = replace(cursor, window=split_spans(self._spans, offset)[1])

    def _begin_window(self) -> bool:
        """Open the next window that has rows in it; whether there is one."""
        wanted = self._settings.shuffle_rows or _WINDOW_ROWS
        while self._fill(wanted):
            window, pending = split_spans(self._cursor.pending, wanted)
            self._cursor = replace(
                self._cursor, window=window, pending=pending, num_windows=self._cursor.num_windows + 1, offset=0
            )
            self._open_window()
            if len(self._walk):
                return True
            self._cursor = replace(self._cursor, window=())
        return False

    def _fill(self, wanted: int) -> bool:
        """Admit until a window can be filled or the stream ends; whether anything is pending."""
        follow = self._settings.follow
        waiting_since = time.monotonic()
        while True:
            num_pending = sum(span.num_rows for span in self._cursor.pending)
            is_enough = num_pending >= (wanted if self._settings.shuffle_rows else 1)
            if is_enough:
                return True
            if self._admit():
                waiting_since = time.monotonic()
                continue
            is_over = follow is None or self.listing.is_ended()
            if is_over or time.monotonic() - waiting_since >= follow.idle_timeout_s:  # type: ignore[union-attr]
                return num_pending > 0
            self._sleep()

    def _admit(self) -> bool:
        """One round: take in every row in sight that was not taken in before; whether there was any."""
        if not self._is_fresh:
            if self._settings.follow is None:
                return False
            self._rows.look_again()
        self._is_fresh = False
        admitted = dict(self._cursor.admitted)
        fresh: list[Span] = []
        lost: list[Span] = []
        for lane, listed in self.listing.lanes.items():
            start = admitted.get(lane, listed.first_row)
            if start < listed.first_row:
                if self._settings.on_damage == "error":
                    require_rows(self.listing, lane, start)
                lost.append(Span(lane, start, listed.first_row))
                start = listed.first_row
            for segment in listed.segments:
                if segment.stop_row <= start:
                    continue
                if segment.first_row > start:
                    lost.append(Span(lane, start, segment.first_row))
                fresh.append(Span(lane, max(start, segment.first_row), segment.stop_row))
                start = segment.stop_row
            if start < listed.stop_row:
                # Behind the last segment in sight: the mark of the lane's end tells of more.
                lost.append(Span(lane, start, listed.stop_row))
                start = listed.stop_row
            if start:
                admitted[lane] = start
        self._skip(lost)
        self._cursor = replace(
            self._cursor,
            admitted=tuple(sorted(admitted.items())),
            pending=(*self._cursor.pending, *joined_spans(fresh)),
        )
        return bool(fresh)

    def _look(self) -> Listing:
        listing = list_stream(self._store)
        return require(listing, self._store.location) if self._settings.on_damage == "error" else listing

    def _await_stream(self) -> None:
        follow = self._settings.follow
        since = time.monotonic()
        while follow is not None and read_identity(self._store) is None:
            if time.monotonic() - since >= follow.idle_timeout_s:
                break
            self._sleep()

    def _sleep(self) -> None:
        assert self._settings.follow is not None, "only a following reader waits"
        if self._wants_stop():
            raise StreamInterrupted("asked to stop while waiting for more of the stream")
        time.sleep(self._settings.follow.poll_s)

    def _skip(self, lost: Sequence[Span]) -> None:
        for span in lost:
            log.warning("skipped, as on_damage=skip asks: %s", describe_gap(span))
        if lost:
            self._cursor = replace(self._cursor, skipped=(*self._cursor.skipped, *lost))

    def _open_window(self) -> None:
        """Find which rows of the cursor's window are taken, in order, from its offset on."""
        window = Window(self._cursor.window)
        keep = np.ones(window.num_rows, dtype=np.bool_)
        if self._settings.on_damage == "skip":
            known = self._cursor.skipped
            self._skip([span for span in damaged_spans(window, self._rows) if span not in known])
            keep &= ~window.inside(self._cursor.skipped)
        if self._index is not None:
            self._index.refresh(self.listing)
            keep &= ~repeated_rows(window, keep, self._rows, self._index, self._cursor)
        if is_selective(self._settings.filter):
            keep &= passing_rows(window, keep, self._rows, self._settings.filter, self._cursor)
        order = window_order(
            len(keep), self._settings.shuffle_seed, self._cursor.num_windows, bool(self._settings.shuffle_rows)
        )
        # `offset` counts rows in the order of the permutation, and so does the walk.
        self._spans = window.spans
        self._window_lanes, self._window_rows = window.span_numbers[order], window.rows[order]
        walk = np.flatnonzero(keep[order])
        self._walk, self._walk_at = walk[walk >= self._cursor.offset], 0


def _require_same(cursor: Cursor, stream: str, identity: Mapping[str, Any], location: str) -> None:
    if cursor.stream != stream:
        raise StreamError(f"the cursor belongs to stream {cursor.stream}; {location} is stream {stream}")
    changed = [
        f"{name} was {cursor.identity.get(name)!r} and is {identity.get(name)!r}"
        for name in sorted({*cursor.identity, *identity})
        if cursor.identity.get(name) != identity.get(name)
    ]
    if changed:
        raise StreamError(
            f"the cursor was made with another order or filter: {'; '.join(changed)}. Read with the same settings, or "
            "start without the cursor"
        )
