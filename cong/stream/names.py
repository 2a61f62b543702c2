"""What the files of a stream are called, and what a name proves; a name is checked like content.

    segments/<writer>-<epoch>-<first sequence>-<last sequence>-<first row>-<rows>-<digest>.parquet
    writers/<writer>-<epoch>-<sequence>-<row>-<check>.claim|closed|retained
    journal/<writer>-<epoch>-<number>-<stream>-<check>.wal

Knows no files: only their names. Numbers have a fixed width, so that names sort as what they count.
"""

import hashlib
import re
from dataclasses import dataclass
from typing import Literal, Self

SEGMENTS = "segments"
WRITERS = "writers"
JOURNAL = "journal"
IDENTITY = "stream.json"
TEMPORARY_PREFIX = ".tmp-"

WRITER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

_SEGMENT = re.compile(
    r"(?P<writer>[A-Za-z0-9][A-Za-z0-9._-]{0,63})-(?P<epoch>\d{6})-(?P<first>\d{8})-(?P<last>\d{8})"
    r"-(?P<row>\d{12})-(?P<rows>\d{8})-(?P<digest>[0-9a-f]{32})\.parquet"
)
_MARKER = re.compile(
    r"(?P<writer>[A-Za-z0-9][A-Za-z0-9._-]{0,63})-(?P<epoch>\d{6})-(?P<sequence>\d{8})-(?P<row>\d{12})"
    r"-(?P<check>[0-9a-f]{16})\.(?P<kind>claim|closed|retained)"
)
_JOURNAL = re.compile(
    r"(?P<writer>[A-Za-z0-9][A-Za-z0-9._-]{0,63})-(?P<epoch>\d{6})-(?P<number>\d{8})(-(?P<stream>[0-9a-f]{16}))?"
    r"-(?P<check>[0-9a-f]{16})\.wal"
)

MarkerKind = Literal["claim", "closed", "retained"]


@dataclass(frozen=True, order=True)
class Lane:
    """One writer in one epoch of its life: a gap-free sequence of rows that nobody else extends."""

    writer: str
    epoch: int

    def __str__(self) -> str:
        return f"{self.writer}-{self.epoch:06d}"


@dataclass(frozen=True)
class SegmentName:
    """Where the rows of a segment lie in their lane, and the digest that its bytes must have.

    A written segment has one sequence number; a compacted one covers all numbers from first to last and stands for
    every segment within.
    """

    lane: Lane
    first_sequence: int
    last_sequence: int
    first_row: int
    num_rows: int
    digest: str

    @property
    def stop_row(self) -> int:
        """The row after the last."""
        return self.first_row + self.num_rows

    @property
    def stem(self) -> str:
        """The name up to its digest, which covers it."""
        return (
            f"{self.lane}-{self.first_sequence:08d}-{self.last_sequence:08d}-{self.first_row:012d}-{self.num_rows:08d}"
        )

    @property
    def path(self) -> str:
        """Where the segment lies in its stream."""
        return f"{SEGMENTS}/{self.stem}-{self.digest}.parquet"

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """The segment of a file name; None where the name is of another kind."""
        found = _SEGMENT.fullmatch(name)
        if found is None or int(found["last"]) < int(found["first"]) or int(found["rows"]) == 0:
            return None
        lane = Lane(found["writer"], int(found["epoch"]))
        first, last, row, rows = (int(found[group]) for group in ("first", "last", "row", "rows"))
        return cls(lane, first, last, row, rows, found["digest"])


@dataclass(frozen=True)
class Marker:
    """A fact about a lane that is all in its file's name: claimed, closed at, or removed below a position."""

    kind: MarkerKind
    lane: Lane
    sequence: int = 0
    row: int = 0

    @property
    def path(self) -> str:
        """Where the marker lies in its stream."""
        stem = f"{self.lane}-{self.sequence:08d}-{self.row:012d}"
        return f"{WRITERS}/{stem}-{_check(stem, self.kind)}.{self.kind}"

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """The marker of a file name; None where the name is of another kind or not what was written."""
        found = _MARKER.fullmatch(name)
        if found is None:
            return None
        kind: MarkerKind = found["kind"]  # type: ignore[assignment]
        marker = cls(kind, Lane(found["writer"], int(found["epoch"])), int(found["sequence"]), int(found["row"]))
        return marker if marker.path == f"{WRITERS}/{name}" else None


@dataclass(frozen=True)
class JournalName:
    """One write-ahead file of a lane.

    Streams may share a journal's folder, and their lanes may have equal names, so the name tells the stream too. A name
    without one is of a folder that was not shared.
    """

    lane: Lane
    number: int
    stream: str = ""

    @property
    def filename(self) -> str:
        """The file's name in the journal's folder."""
        stem = f"{self.lane}-{self.number:08d}{'-' * bool(self.stream)}{self.stream}"
        return f"{stem}-{_check(stem, 'wal')}.wal"

    def is_of(self, stream: str) -> bool:
        """Whether the records may be carried on in a stream."""
        return self.stream in ("", stream)

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """The journal file of a name; None where the name is of another kind or not what was written."""
        found = _JOURNAL.fullmatch(name)
        if found is None:
            return None
        journal = cls(Lane(found["writer"], int(found["epoch"])), int(found["number"]), found["stream"] or "")
        return journal if journal.filename == name else None


def _check(stem: str, kind: str) -> str:
    return hashlib.sha256(f"{stem}.{kind}".encode()).hexdigest()[:16]
