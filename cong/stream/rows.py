"""Rows of a stream by their places: verified, decoded, in the order asked for, with what was read last kept at hand.

Knows nothing of cursors' order: whoever asks has decided.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

import numpy as np
import pyarrow as pa

from cong.errors import StreamCorrupt, StreamError
from cong.stream.cursor import Draw, Rows
from cong.stream.listing import Listing, require_rows
from cong.stream.names import Lane, SegmentName
from cong.stream.segment import SegmentFile, open_segment
from cong.stream.store import Store

_MAX_OPEN_SEGMENTS = 16
"""Each keeps its footer and the bytes of the group that was read last."""
_READ_TRIES = 3

P = ParamSpec("P")
T = TypeVar("T")


class RowReader:
    """Reads rows of a stream as it was last looked at."""

    def __init__(self, store: Store, look: Callable[[], Listing], num_kept_rows: int) -> None:
        """`look` lists the stream; about `num_kept_rows` decoded rows are kept."""
        self._store = store
        self._look = look
        self._num_kept_rows = num_kept_rows
        self._segments: OrderedDict[SegmentName, SegmentFile] = OrderedDict()
        self._groups: OrderedDict[tuple[SegmentName, int, tuple[str, ...]], pa.Table] = OrderedDict()
        self.listing = look()

    def look_again(self) -> None:
        """List the stream anew."""
        self.listing = self._look()

    def steadily(self, work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """What some reading comes to, begun again where a file is gone: compaction put its rows into another one."""
        for _ in range(_READ_TRIES):
            try:
                return work(*arguments, **named)
            except FileNotFoundError as error:
                gone = error
                self._segments.clear()
                self.look_again()
        raise StreamCorrupt(f"{gone.filename or gone} is listed and cannot be opened; run `cong stream verify`")

    def fetch(self, draw: Draw, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of a draw in its order; all columns unless named."""
        parts: list[pa.Table] = []
        positions: list[Rows] = []
        for number, lane in enumerate(draw.lanes):
            at = np.flatnonzero(draw.lane_numbers == number)
            at = at[np.argsort(draw.rows[at], kind="stable")]
            rows = draw.rows[at]
            start = 0
            while start < len(rows):
                table, first_row = self._group(lane, int(rows[start]), columns)
                stop = int(np.searchsorted(rows, first_row + table.num_rows))
                inside = rows[start:stop] - first_row
                is_run = inside[-1] - inside[0] == len(inside) - 1
                parts.append(table.slice(int(inside[0]), len(inside)) if is_run else table.take(pa.array(inside)))
                positions.append(at[start:stop])
                start = stop
        if not parts:
            raise StreamError("a draw without rows has no columns; skip it")
        table = pa.concat_tables(parts)
        order = np.concatenate(positions)
        if (order == np.arange(len(order))).all():
            return table
        return table.take(pa.array(np.argsort(order)))

    def open(self, segment: SegmentName) -> SegmentFile:
        """A segment's file, verified as far as its footer."""
        if segment in self._segments:
            self._segments.move_to_end(segment)
            return self._segments[segment]
        file = open_segment(self._store, segment)
        self._segments[segment] = file
        if len(self._segments) > _MAX_OPEN_SEGMENTS:
            self._segments.popitem(last=False)
        return file

    def _group(self, lane: Lane, row: int, columns: Sequence[str] | None) -> tuple[pa.Table, int]:
        """The row group that holds a row, and the row at which it begins in its lane."""
        listed = self.listing.lanes.get(lane)
        if listed is None or row >= listed.stop_row:
            # Rows beyond what was in sight may have come since: another process drew them.
            self.look_again()
        return self.steadily(self._load, lane, row, columns)

    def _load(self, lane: Lane, row: int, columns: Sequence[str] | None) -> tuple[pa.Table, int]:
        segment = require_rows(self.listing, lane, row)
        file = self.open(segment)
        number = file.group_of(row - segment.first_row)
        key = (segment, number, tuple(columns) if columns is not None else ())
        if key not in self._groups:
            self._groups[key] = file.load(number, columns)
            self._bound_groups()
        self._groups.move_to_end(key)
        return self._groups[key], segment.first_row + file.groups[number].first_row

    def _bound_groups(self) -> None:
        while sum(table.num_rows for table in self._groups.values()) > self._num_kept_rows and len(self._groups) > 1:
            self._groups.popitem(last=False)
