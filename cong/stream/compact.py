"""Many small segments to few large ones, row for row in the same order, so that cursors stay true.

A wide segment stands for the narrow ones within its sequence numbers from the moment it appears; they are removed
after it was read back. Stopping at any point leaves a stream that reads the same; running again finishes the work.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from cong.config.stream import WriteSettings
from cong.errors import StreamError
from cong.stream.identity import require_identity
from cong.stream.listing import LaneListing, list_stream, require
from cong.stream.names import SEGMENTS, TEMPORARY_PREFIX, WRITERS, Lane, SegmentName
from cong.stream.segment import Placement, encode, open_segment
from cong.stream.store import Store


@dataclass(frozen=True)
class Compaction:
    """What compacting did."""

    num_before: int
    num_after: int
    num_removed: int


def compact(store: Store, settings: WriteSettings | None = None, is_dry_run: bool = False) -> Compaction:
    """Merge neighbouring segments of each lane up to the settings' rows and bytes per segment.

    Safe beside readers and other lanes' writers. A lane that is being written keeps all but its neighbours merged. A
    dry run changes nothing, but verifies every byte that would be merged, so that it refuses what the real one would.
    """
    settings = settings or WriteSettings()
    require_identity(store)
    listing = require(list_stream(store), store.location)
    num_before = len(listing.segments)
    sizes = {entry.name: entry.num_bytes for entry in store.entries(SEGMENTS)}
    removed = 0
    merged_away = 0
    for lane in listing.lanes.values():
        for batch in _batches(lane, sizes, settings):
            merged_away += len(batch) - 1
            try:
                if is_dry_run:
                    _check(store, batch)
                else:
                    _merge(store, batch, settings)
                    removed += len(batch)
            except FileNotFoundError as error:
                raise StreamError(
                    f"{error.filename or error} was listed and is gone: another compaction or a retention is at work; "
                    "run this one again when it has ended"
                ) from error
        if lane.superseded and not is_dry_run:
            store.delete([segment.path for segment in lane.superseded])
            removed += len(lane.superseded)
    if not is_dry_run:
        removed += _remove_leftovers(store)
    return Compaction(num_before, num_before - merged_away, removed)


def _batches(lane: LaneListing, sizes: Mapping[str, int], settings: WriteSettings) -> list[list[SegmentName]]:
    batches: list[list[SegmentName]] = []
    num_rows = num_bytes = 0
    for segment in lane.segments:
        size = sizes.get(segment.path.removeprefix(f"{SEGMENTS}/"), 0)
        fits = num_rows + segment.num_rows <= settings.rows_per_segment
        if batches and fits and num_bytes + size <= settings.bytes_per_segment:
            batches[-1].append(segment)
            num_rows, num_bytes = num_rows + segment.num_rows, num_bytes + size
        else:
            batches.append([segment])
            num_rows, num_bytes = segment.num_rows, size
    return [batch for batch in batches if len(batch) > 1]


def _merge(store: Store, batch: list[SegmentName], settings: WriteSettings) -> None:
    parts = []
    for name in batch:
        file = open_segment(store, name)
        parts += [file.load(number) for number in range(len(file.groups))]
    table = pa.concat_tables(parts).combine_chunks()
    place = Placement(batch[0].lane, batch[0].first_sequence, batch[-1].last_sequence, batch[0].first_row)
    name, data = encode(table, place, settings.rows_per_group)
    store.publish(name.path, data)
    # Only what reads back whole may replace what is there.
    _check(store, [name])
    store.delete([old.path for old in batch])


def _check(store: Store, segments: Sequence[SegmentName]) -> None:
    for name in segments:
        file = open_segment(store, name)
        for number in range(len(file.groups)):
            file.check(number)


def _remove_leftovers(store: Store) -> int:
    """Remove temporary files of writers that have ended; those of living ones may still be needed."""
    listing = list_stream(store)
    latest = {lane.writer: lane for lane in sorted(listing.lanes)}
    dead = [lane for lane in listing.lanes if latest[lane.writer] != lane or listing.lanes[lane].closed]
    paths = []
    for folder in (SEGMENTS, WRITERS):
        for name in store.names(folder):
            if name.startswith(TEMPORARY_PREFIX) and any(_belongs(name, lane) for lane in dead):
                paths.append(f"{folder}/{name}")
    if paths:
        store.delete(paths)
    return len(paths)


def _belongs(temporary: str, lane: Lane) -> bool:
    name = temporary.removeprefix(TEMPORARY_PREFIX).partition("-")[2]
    return name.startswith(f"{lane}-")
