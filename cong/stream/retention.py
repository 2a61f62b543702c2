"""Removing what every committed checkpoint has passed, and nothing else.

The caller hands in the cursors of all committed checkpoints that are kept; a checkpoint that was reported and not yet
committed does not count. A marker says what is removed before anything is, so a stop at any point leaves a stream that
reads the same. Retention forgets keys: a removed sample may be made and stored again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from cong.errors import StreamError
from cong.stream.cursor import Cursor
from cong.stream.identity import require_identity
from cong.stream.listing import LaneListing, list_stream, require
from cong.stream.names import Marker, SegmentName
from cong.stream.store import Store


@dataclass(frozen=True)
class Retention:
    """What was removed, or would be."""

    segments: tuple[SegmentName, ...]

    @property
    def num_rows(self) -> int:
        """Rows in the removed segments."""
        return sum(segment.num_rows for segment in self.segments)


def retain(store: Store, cursors: Sequence[Cursor], is_dry_run: bool = False) -> Retention:
    """Remove segments that lie wholly below every cursor."""
    if not cursors:
        raise StreamError(
            "retention needs the cursor of at least one committed checkpoint; without one it removes nothing"
        )
    stream = require_identity(store)
    for cursor in cursors:
        if cursor.stream != stream:
            raise StreamError(f"a cursor belongs to stream {cursor.stream}; {store.location} is stream {stream}")
    listing = require(list_stream(store), store.location)
    removed: list[SegmentName] = []
    for lane in listing.lanes.values():
        needed = min(cursor.needed_from(lane.lane) for cursor in cursors)
        passed = [segment for segment in lane.segments if segment.stop_row <= needed]
        removed += passed
        if not is_dry_run:
            _remove(store, lane, passed)
    return Retention(tuple(removed))


def _remove(store: Store, lane: LaneListing, passed: Sequence[SegmentName]) -> None:
    former = lane.retained
    if passed:
        marker = Marker("retained", lane.lane, passed[-1].last_sequence + 1, passed[-1].stop_row)
        store.publish(marker.path, b"")
        if former is not None:
            store.delete([former.path])
    # Superseded ones include what an earlier run marked and did not come to remove.
    gone = [*passed, *lane.superseded]
    if gone:
        store.delete([segment.path for segment in gone])
