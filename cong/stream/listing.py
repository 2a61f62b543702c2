"""What a stream holds, from its names alone: the listing is the manifest.

Sorts names into lanes, lets a compacted segment stand for those it covers, and says where rows are missing. Opens a
segment only where two names claim the same place.
"""

import bisect
import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from cong.errors import StreamCorrupt, StreamError
from cong.stream.names import SEGMENTS, TEMPORARY_PREFIX, WRITERS, Lane, Marker, SegmentName
from cong.stream.segment import open_segment
from cong.stream.store import Store

_LISTING_TRIES = 4
_LISTING_PAUSE_S = 0.02


@dataclass(frozen=True, order=True)
class Span:
    """Rows [start, stop) of a lane."""

    lane: Lane
    start: int
    stop: int

    @property
    def num_rows(self) -> int:
        """How many rows it covers."""
        return self.stop - self.start

    def __str__(self) -> str:
        rows = f"row {self.start}" if self.num_rows == 1 else f"rows {self.start} to {self.stop - 1}"
        return f"{rows} of {self.lane}"


@dataclass
class LaneListing:
    """One lane's segments in row order, and what its markers say."""

    lane: Lane
    segments: list[SegmentName] = field(default_factory=list)
    superseded: list[SegmentName] = field(default_factory=list)
    is_claimed: bool = False
    closed: Marker | None = None
    retained: Marker | None = None
    gaps: list[Span] = field(default_factory=list)

    @property
    def first_row(self) -> int:
        """Rows below it were removed by retention."""
        return self.retained.row if self.retained else 0

    @property
    def first_sequence(self) -> int:
        """Sequence numbers below it were removed by retention."""
        return self.retained.sequence if self.retained else 0

    @property
    def stop_row(self) -> int:
        """The row after the last that is known to have been written."""
        seen = self.segments[-1].stop_row if self.segments else self.first_row
        return max(seen, self.closed.row if self.closed else 0)

    @property
    def next_sequence(self) -> int:
        """The sequence number after the last published."""
        return self.segments[-1].last_sequence + 1 if self.segments else self.first_sequence

    @property
    def num_rows(self) -> int:
        """Rows that are there."""
        return sum(segment.num_rows for segment in self.segments)

    def segment_of(self, row: int) -> SegmentName | None:
        """The segment that holds a row."""
        at = bisect.bisect_right(self.segments, row, key=lambda segment: segment.first_row) - 1
        return self.segments[at] if at >= 0 and row < self.segments[at].stop_row else None

    def next_segment(self, row: int) -> SegmentName | None:
        """The first segment that begins behind a row."""
        at = bisect.bisect_right(self.segments, row, key=lambda segment: segment.first_row)
        return self.segments[at] if at < len(self.segments) else None


@dataclass
class Listing:
    """A stream at one moment."""

    lanes: dict[Lane, LaneListing]
    impostors: list[SegmentName]
    """Their bytes do not belong to their names."""
    unrecognised: list[str]
    """Paths that no writer makes."""

    @property
    def num_rows(self) -> int:
        """Rows that are there, in all lanes."""
        return sum(lane.num_rows for lane in self.lanes.values())

    @property
    def segments(self) -> list[SegmentName]:
        """Every segment, by lane and row."""
        return [segment for lane in sorted(self.lanes) for segment in self.lanes[lane].segments]

    @property
    def gaps(self) -> list[Span]:
        """Rows that were written and are not there."""
        return [gap for lane in sorted(self.lanes) for gap in self.lanes[lane].gaps]

    def is_ended(self) -> bool:
        """Whether every writer's latest epoch is closed with all its rows in sight; older epochs cannot grow."""
        latest = {lane.writer: lane for lane in sorted(self.lanes)}
        return bool(latest) and all(self.lanes[lane].closed for lane in latest.values()) and not self.gaps

    def latest_epoch(self, writer: str) -> int:
        """The newest epoch of a writer; 0 where it never wrote."""
        return max((lane.epoch for lane in self.lanes if lane.writer == writer), default=0)


def _resolve(
    listing: LaneListing, found: list[SegmentName], is_genuine: Callable[[SegmentName], bool]
) -> list[SegmentName]:
    """Fill in segments, superseded ones and gaps of a lane; returns impostors.

    Where places overlap, the bytes decide who is genuine, and among those the widest stands for what it covers.
    """
    found = sorted(found, key=lambda segment: (segment.first_sequence, -segment.last_sequence, segment.digest))
    contested = _contested(found)
    impostors = [segment for segment in found if segment in contested and not is_genuine(segment)]
    genuine = [segment for segment in found if segment not in impostors]
    for segment in genuine:
        last = listing.segments[-1] if listing.segments else None
        if last is not None and segment.last_sequence <= last.last_sequence:
            listing.superseded.append(segment)
        elif segment.last_sequence < listing.first_sequence:
            # Retention was stopped between its marker and the removal.
            listing.superseded.append(segment)
        else:
            listing.segments.append(segment)
    row, sequence = listing.first_row, listing.first_sequence
    if listing.segments and listing.segments[0].first_sequence < sequence:
        # A compaction that had read its segments before retention removed some: what it made holds their rows again.
        row, sequence = listing.segments[0].first_row, listing.segments[0].first_sequence
    for segment in listing.segments:
        if segment.first_row != row or segment.first_sequence != sequence:
            listing.gaps.append(Span(listing.lane, row, max(row, segment.first_row)))
        row, sequence = segment.stop_row, segment.last_sequence + 1
    if listing.closed and listing.closed.row != row:
        listing.gaps.append(Span(listing.lane, row, max(row, listing.closed.row)))
    return impostors


def _contested(ordered: list[SegmentName]) -> set[SegmentName]:
    contested: set[SegmentName] = set()
    widest: SegmentName | None = None
    for segment in ordered:
        if widest is not None and segment.first_sequence <= widest.last_sequence:
            contested |= {widest, segment}
        if widest is None or segment.last_sequence > widest.last_sequence:
            widest = segment
    return contested


def arrange(
    segment_names: Iterable[str], marker_names: Iterable[str], is_genuine: Callable[[SegmentName], bool]
) -> Listing:
    """A listing from the names in both folders."""
    lanes: dict[Lane, LaneListing] = {}
    found: dict[Lane, list[SegmentName]] = {}
    unrecognised = []
    for name in segment_names:
        segment = SegmentName.parse(name)
        if segment is not None:
            found.setdefault(segment.lane, []).append(segment)
        elif not name.startswith(TEMPORARY_PREFIX):
            unrecognised.append(f"{SEGMENTS}/{name}")
    for name in marker_names:
        marker = Marker.parse(name)
        if marker is None:
            if not name.startswith(TEMPORARY_PREFIX):
                unrecognised.append(f"{WRITERS}/{name}")
            continue
        lane = lanes.setdefault(marker.lane, LaneListing(marker.lane))
        if marker.kind == "claim":
            lane.is_claimed = True
        elif marker.kind == "closed":
            lane.closed = marker
        elif lane.retained is None or marker.sequence > lane.retained.sequence:
            lane.retained = marker
    impostors = []
    for key, segments in found.items():
        impostors += _resolve(lanes.setdefault(key, LaneListing(key)), segments, is_genuine)
    for key in lanes.keys() - found.keys():
        _resolve(lanes[key], [], is_genuine)
    return Listing(dict(sorted(lanes.items())), impostors, sorted(unrecognised))


def _list_once(store: Store) -> Listing:
    def is_genuine(name: SegmentName) -> bool:
        try:
            open_segment(store, name)
        except StreamCorrupt:
            return False
        return True

    # Segments first: a marker that explains a missing segment is published before the segment goes, and one that
    # counts segments after the last of them.
    segments = store.names(SEGMENTS)
    return arrange(segments, store.names(WRITERS), is_genuine)


def list_stream(store: Store, known_gaps: Iterable[Span] = ()) -> Listing:
    """A stream at this moment.

    A folder that is being written may be listed with a name missing before one that is there; a gap counts only if
    it is still there when looked at again, or was there when the stream was listed before.
    """
    known = frozenset(known_gaps)
    listing: Listing | None = None
    for _ in range(_LISTING_TRIES):
        # A file that vanishes between being listed and being opened was removed by compaction: look again.
        with contextlib.suppress(FileNotFoundError):
            listing = _list_once(store)
            if known.issuperset(listing.gaps):
                return listing
        time.sleep(_LISTING_PAUSE_S)
    if listing is None:
        raise StreamError(f"files of {store.location} vanish while they are listed; try again when less is removed")
    return listing


def describe_gap(gap: Span) -> str:
    """A gap, in words."""
    which = str(gap) if gap.num_rows else f"a segment of {gap.lane} at row {gap.start}"
    return f"{which} should be there and cannot be found"


def require(listing: Listing, location: str) -> Listing:
    """The listing, unless something in it is wrong."""
    problems = [describe_gap(gap) for gap in listing.gaps]
    problems += [f"{segment.path}: name and bytes do not belong together" for segment in listing.impostors]
    problems += [f"{path}: not a name that a writer makes" for path in listing.unrecognised]
    if problems:
        raise StreamCorrupt(
            f"{location}: {'; '.join(problems[:5])}{' and more' if len(problems) > 5 else ''}. "
            "Run `cong stream verify`, restore the files, or read with on_damage=skip to go on without them"
        )
    return listing


def require_rows(listing: Listing, lane: Lane, row: int) -> SegmentName:
    """The segment of a row that must be there."""
    found = listing.lanes.get(lane)
    if found is None:
        raise StreamError(f"the stream has no writer {lane}; the cursor belongs to another stream")
    if row < found.first_row:
        raise StreamError(
            f"row {row} of {lane} was removed by retention, which kept rows from {found.first_row}; "
            "the cursor is older than every checkpoint that retention was told of"
        )
    segment = found.segment_of(row)
    if segment is None:
        raise StreamCorrupt(f"row {row} of {lane} should be there and cannot be found; run `cong stream verify`")
    return segment
