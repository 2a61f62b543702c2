"""Records that a dead process left in its write-ahead files: found, locked, carried on by a successor, then removed."""

import contextlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from cong.config.stream import WriteSettings
from cong.errors import StreamError
from cong.schemas import SampleRecord
from cong.stream.filesystem import FileSystem, LocalFileSystem
from cong.stream.journal import Journal, JournalContent, decode_frames
from cong.stream.listing import LaneListing, Listing
from cong.stream.names import JOURNAL, JournalName, Lane, Marker
from cong.stream.store import LocalStore, Store, make_folders
from cong.wording import with_remedy

log = logging.getLogger(__name__)

DAMAGED_SUFFIX = ".damaged"


@dataclass(frozen=True)
class Orphan:
    """A write-ahead file without a living owner, locked by us."""

    path: str
    handle: int
    lane: Lane
    content: JournalContent
    unread_rows: list[int] = field(default_factory=list)
    """Whole records of another version: the file stays for a cong that reads them."""


def journal_place(store: Store, settings: WriteSettings, files: FileSystem | None) -> tuple[FileSystem, str]:
    """The file system and the folder of a stream's write-ahead files."""
    if isinstance(store, LocalStore):
        return files or store.files, settings.journal_dir or f"{store.root}/{JOURNAL}"
    if settings.has_journal and not settings.journal_dir:
        raise StreamError("an object store has no folder for the journal; set journal_dir or has_journal=false")
    return files or LocalFileSystem(), settings.journal_dir


def open_journal(files: FileSystem, folder: str, lane: Lane, stream: str) -> tuple[Journal, list[Orphan]]:
    """A new journal for a lane, and what dead writers of its stream left in the same folder."""
    try:
        make_folders(files, folder)
        return Journal(files, folder, lane, stream), find_orphans(files, folder, stream)
    except OSError as error:
        raise StreamError(f"cannot open the journal in {folder}: {with_remedy(error)}") from error


def find_orphans(files: FileSystem, folder: str, stream: str) -> list[Orphan]:
    """Every write-ahead file of a stream whose owner is gone, oldest first within a lane."""
    found = []
    names = [name for name in map(JournalName.parse, files.names(folder)) if name is not None and name.is_of(stream)]
    for name in sorted(names, key=lambda name: (name.lane, name.number)):
        path = f"{folder}/{name.filename}"
        with contextlib.suppress(FileNotFoundError):
            handle = files.lock(path)
            if handle is None:
                continue
            if not files.exists(path):
                # Its owner removed it between our listing and our lock.
                files.close(handle)
                continue
            content = decode_frames(files.read(path, 0, files.size(path)))
            found.append(Orphan(path, handle, name.lane, content))
    return found


def unsealed_records(orphan: Orphan, listing: Listing) -> Iterator[SampleRecord]:
    """The records of an orphan that its owner did not publish."""
    lane = listing.lanes.get(orphan.lane)
    for frame in orphan.content.frames:
        if lane is not None and (frame.row < lane.first_row or lane.segment_of(frame.row) is not None):
            continue
        try:
            yield SampleRecord.model_validate_json(frame.payload)
        except ValueError as error:
            log.warning(
                "%s: row %d is no record of this version: %s", orphan.path, frame.row, " ".join(str(error).split())
            )
            orphan.unread_rows.append(frame.row)


def close_lanes(store: Store, orphans: Iterable[Orphan], listing: Listing) -> None:
    """Say of the lanes of dead writers that they cannot grow."""
    for lane in sorted({orphan.lane for orphan in orphans}):
        found = listing.lanes.get(lane, LaneListing(lane))
        if found.closed is None and not found.gaps and found.is_claimed:
            store.publish(Marker("closed", lane, found.next_sequence, found.stop_row).path, b"")


def dispose(files: FileSystem, folder: str, orphans: list[Orphan]) -> None:
    """Remove files whose records are stored; one with damage is kept beside, for people and for `verify`."""
    for orphan in orphans:
        if orphan.unread_rows:
            log.warning(
                "%s stays: open the stream with the version of cong that wrote it, which stores %d of its records",
                orphan.path,
                len(orphan.unread_rows),
            )
        elif orphan.content.damage:
            log.warning("%s: %s; kept as %s", orphan.path, "; ".join(orphan.content.damage), DAMAGED_SUFFIX)
            files.rename(orphan.path, orphan.path + DAMAGED_SUFFIX)
        else:
            files.unlink(orphan.path)
        files.close(orphan.handle)
    if orphans:
        files.fsync_directory(folder)
