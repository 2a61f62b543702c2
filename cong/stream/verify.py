"""Checks all that a stream's names and bytes can prove, and names what is wrong, rows included. Repairs nothing."""

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from cong.errors import StreamCorrupt, StreamError
from cong.stream.columns import SCHEMA
from cong.stream.filesystem import FileSystem
from cong.stream.identity import require_identity
from cong.stream.journal import decode_frames
from cong.stream.keys import key_digests
from cong.stream.listing import LaneListing, Listing, Span, describe_gap, list_stream
from cong.stream.names import IDENTITY, TEMPORARY_PREFIX, JournalName, SegmentName
from cong.stream.recovery import DAMAGED_SUFFIX
from cong.stream.segment import open_segment
from cong.stream.store import Store
from cong.wording import with_remedy


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where, what, and the rows that cannot be trusted."""

    path: str
    what: str
    rows: Span | None = None


@dataclass
class Report:
    """What was checked and what was found."""

    num_segments: int = 0
    num_rows: int = 0
    num_bytes: int = 0
    num_journal_records: int = 0
    """Durable on this machine, not yet in a segment."""
    num_leftovers: int = 0
    """Temporary or superseded files of something that was stopped; harmless."""
    problems: list[Problem] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify(store: Store, journal: tuple[FileSystem, str] | None = None) -> Report:
    """Check a stream, and the folder of its write-ahead files where one is given."""
    report = Report()
    stream = ""
    try:
        stream = require_identity(store)
    except StreamCorrupt as error:
        report.problems.append(Problem(IDENTITY, str(error)))
    listing = list_stream(store)
    _check_names(store, listing, report)
    for lane in listing.lanes.values():
        for segment in lane.segments:
            _check_segment(store, segment, report)
    if journal is not None:
        _check_journal(*journal, stream, listing, report)
    return report


def _check_names(store: Store, listing: Listing, report: Report) -> None:
    report.problems += [Problem(path, "no writer makes such a name") for path in listing.unrecognised]
    for segment in listing.impostors:
        rows = Span(segment.lane, segment.first_row, segment.stop_row)
        report.problems.append(Problem(segment.path, "name and footer do not belong together", rows))
    for gap in listing.gaps:
        report.problems.append(Problem(str(gap.lane), describe_gap(gap), gap))
    for lane in listing.lanes.values():
        report.num_leftovers += len(lane.superseded)
        if lane.segments and not lane.is_claimed:
            report.problems.append(Problem(str(lane.lane), "it has segments and no claim"))
    for folder in ("", "segments", "writers"):
        for name in store.names(folder):
            report.num_leftovers += name.startswith(TEMPORARY_PREFIX)


def _check_segment(store: Store, name: SegmentName, report: Report) -> None:
    rows = Span(name.lane, name.first_row, name.stop_row)
    try:
        file = open_segment(store, name)
    except FileNotFoundError:
        report.problems.append(Problem(name.path, "it vanished while the stream was checked; check again", rows))
        return
    except StreamError as error:
        report.problems.append(Problem(name.path, str(error), rows))
        return
    report.num_segments += 1
    report.num_bytes += file.num_bytes
    for number, group in enumerate(file.groups):
        part = Span(name.lane, name.first_row + group.first_row, name.first_row + group.stop_row)
        try:
            table = file.load(number)
        except (StreamError, pa.ArrowException, OSError) as error:
            report.problems.append(Problem(name.path, str(error), part))
            continue
        report.num_rows += table.num_rows
        keys = table.column("key").to_pylist()
        is_whole = table.num_rows == part.num_rows and table.schema.equals(SCHEMA)
        if not is_whole or not np.array_equal(key_digests(keys), file.key_digests[group.first_row : group.stop_row]):
            report.problems.append(Problem(name.path, "its rows are not those that its footer tells of", part))


def _check_journal(files: FileSystem, folder: str, stream: str, listing: Listing, report: Report) -> None:
    try:
        names = sorted(files.names(folder))
    except FileNotFoundError:
        return
    for name in names:
        path = f"{folder}/{name}"
        journal = JournalName.parse(name.removesuffix(DAMAGED_SUFFIX))
        if journal is not None and stream and not journal.is_of(stream):
            # Another stream has its journal in the same folder.
            continue
        if name.startswith(TEMPORARY_PREFIX):
            report.num_leftovers += 1
            continue
        if name.endswith(DAMAGED_SUFFIX):
            report.problems.append(
                Problem(path, "a recovered journal in which records were damaged; remove it when read")
            )
            continue
        if journal is None:
            report.problems.append(Problem(path, "no writer makes such a name"))
            continue
        try:
            content = decode_frames(files.read(path, 0, files.size(path)))
        except FileNotFoundError:
            continue
        except OSError as error:
            report.problems.append(Problem(path, f"cannot be read: {with_remedy(error)}"))
            continue
        lane = listing.lanes.get(journal.lane, LaneListing(journal.lane))
        report.num_journal_records += sum(lane.segment_of(frame.row) is None for frame in content.frames)
        report.num_leftovers += content.num_torn_bytes > 0
        report.problems += [Problem(path, problem) for problem in content.damage]
