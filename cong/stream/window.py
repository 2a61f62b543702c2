"""The rows that a reader looks at together, and which of them it takes: whole ones, once each, that pass a filter.

Knows no order: rows are those of the window's spans, one after the other.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cong.config.stream import SampleFilter
from cong.errors import StreamCorrupt
from cong.stream.cursor import Cursor, Draw, Rows
from cong.stream.index import KeyIndex
from cong.stream.keys import KEY_BYTES, KeyDigests
from cong.stream.listing import Span, require_rows
from cong.stream.names import SegmentName
from cong.stream.rows import RowReader
from cong.stream.selection import FILTER_COLUMNS, passes

Mask = npt.NDArray[np.bool_]


class Window:
    """Spans of lanes, row by row."""

    def __init__(self, spans: tuple[Span, ...]) -> None:
        self.spans = spans
        self.span_numbers: Rows = np.repeat(np.arange(len(spans)), [span.num_rows for span in spans])
        """Which span each row belongs to."""
        self.rows: Rows = np.concatenate([np.arange(span.start, span.stop) for span in spans])
        """Its place in its lane."""

    @property
    def num_rows(self) -> int:
        """Rows of all spans."""
        return len(self.rows)

    def inside(self, others: Sequence[Span]) -> Mask:
        """Which rows lie in one of some other spans."""
        inside = np.zeros(self.num_rows, dtype=np.bool_)
        for number, span in enumerate(self.spans):
            for other in others:
                if other.lane == span.lane:
                    inside |= (self.span_numbers == number) & (self.rows >= other.start) & (self.rows < other.stop)
        return inside


def damaged_spans(window: Window, reader: RowReader) -> list[Span]:
    """Rows whose bytes cannot be trusted."""
    bad: list[Span] = []
    for span in window.spans:
        row = span.start
        while row < span.stop:
            stop, is_sound = reader.steadily(_checked, span, row, reader)
            if not is_sound:
                bad.append(Span(span.lane, row, stop))
            row = stop
    return joined_spans(bad)


def _checked(span: Span, row: int, reader: RowReader) -> tuple[int, bool]:
    """The row up to which those from a row on stand or fall together, and whether their bytes can be trusted."""
    segment = _segment_of(span, row, reader)
    if segment is None:
        listed = reader.listing.lanes.get(span.lane)
        after = None if listed is None else listed.next_segment(row)
        return (span.stop if after is None else min(span.stop, after.first_row)), False
    stop = min(span.stop, segment.stop_row)
    try:
        file = reader.open(segment)
        number = file.group_of(row - segment.first_row)
        stop = min(stop, segment.first_row + file.groups[number].stop_row)
        file.check(number)
    except StreamCorrupt:
        return stop, False
    return stop, True


def repeated_rows(window: Window, keep: Mask, reader: RowReader, index: KeyIndex, cursor: Cursor) -> Mask:
    """Which of the rows that are kept have a key that came before, in the window or before the cursor."""
    repeated = np.zeros(len(keep), dtype=np.bool_)
    digests = np.zeros((len(keep), KEY_BYTES), dtype=np.uint8)
    start = 0
    for span in window.spans:
        part = slice(start, start + span.num_rows)
        digests[part] = _digests(span, keep[part], reader)
        start += span.num_rows
    first_seen: dict[bytes, int] = {}
    for at in np.flatnonzero((index.num_places(digests) > 1) & keep):
        digest = digests[at].tobytes()
        here = (window.spans[window.span_numbers[at]].lane, int(window.rows[at]))
        passed = any(
            tuple(place) != here and cursor.has_passed(place.lane, place.row) for place in index.find_digest(digest)
        )
        repeated[at] = passed or digest in first_seen
        first_seen.setdefault(digest, int(at))
    return repeated


def _digests(span: Span, wanted: Mask, reader: RowReader) -> KeyDigests:
    """Key digests of the rows of a span that are wanted; zeros for others."""
    digests = np.zeros((span.num_rows, KEY_BYTES), dtype=np.uint8)
    row = span.start
    while row < span.stop:
        segment = _segment_of(span, row, reader)
        stop = min(span.stop, segment.stop_row) if segment else row + 1
        if wanted[row - span.start : stop - span.start].any():
            found = reader.steadily(_digests_from, span, row, reader)
            stop = row + len(found)
            digests[row - span.start : stop - span.start] = found
        row = stop
    return digests


def _digests_from(span: Span, row: int, reader: RowReader) -> KeyDigests:
    """Those of the rows from a row on that lie in its segment."""
    segment = require_rows(reader.listing, span.lane, row)
    return reader.open(segment).key_digests[row - segment.first_row : span.stop - segment.first_row]


def _segment_of(span: Span, row: int, reader: RowReader) -> SegmentName | None:
    listed = reader.listing.lanes.get(span.lane)
    return None if listed is None else listed.segment_of(row)


def passing_rows(window: Window, keep: Mask, reader: RowReader, wanted: SampleFilter, cursor: Cursor) -> Mask:
    """Which of the rows that are kept pass a filter."""
    at = np.flatnonzero(keep)
    if not len(at):
        return keep
    lanes = tuple(span.lane for span in window.spans)
    table = reader.fetch(Draw(lanes, window.span_numbers[at], window.rows[at], cursor), FILTER_COLUMNS)
    found = np.zeros(len(keep), dtype=np.bool_)
    found[at] = passes(wanted, table)
    return found


def joined_spans(spans: Sequence[Span]) -> list[Span]:
    """Neighbouring spans of one lane as one."""
    joined: list[Span] = []
    for span in spans:
        if joined and joined[-1].lane == span.lane and joined[-1].stop == span.start:
            joined[-1] = Span(span.lane, joined[-1].start, span.stop)
        else:
            joined.append(span)
    return joined
