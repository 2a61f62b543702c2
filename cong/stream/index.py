"""Where each key lies: sorted key digests of every segment, read from footers alone and cached in one file.

The cache is only a cache: it checks itself, and whatever is wrong with it is mended by reading footers again. Two
keys are taken for equal when 96 bits of their digests are.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cong.errors import StreamCorrupt, StreamError
from cong.stream.filesystem import LocalFileSystem
from cong.stream.keys import KEY_BYTES, KeyDigests, key_digest
from cong.stream.listing import LaneListing, Listing, Span, list_stream
from cong.stream.names import Lane, SegmentName
from cong.stream.segment import open_segment
from cong.stream.store import LocalStore, Store

log = logging.getLogger(__name__)

_MAGIC = b"congkeys1\n"
_ROW_BITS = 40
_MIN_SAVED_SEGMENTS = 32

U64 = npt.NDArray[np.uint64]
U32 = npt.NDArray[np.uint32]


def index_cache(store: Store, cache_dir: str) -> Path | None:
    """Where a stream's key index is cached; None = in memory only."""
    if cache_dir:
        return Path(cache_dir) / "keys.index"
    is_folder = isinstance(store, LocalStore) and isinstance(store.files, LocalFileSystem)
    return Path(store.location) / ".cache" / "keys.index" if is_folder else None


class Place(NamedTuple):
    """A row of a lane."""

    lane: Lane
    row: int


@dataclass(frozen=True)
class _Run:
    """Key digests in ascending order of their high part, each with the number of its lane and its row."""

    high: U64
    low: U32
    place: U64

    def __len__(self) -> int:
        return len(self.high)


def _split(digests: KeyDigests) -> tuple[U64, U32]:
    content = np.ascontiguousarray(digests)
    high = content[:, :8].copy().view(">u8").reshape(-1).astype(np.uint64)
    low = content[:, 8:KEY_BYTES].copy().view(">u4").reshape(-1).astype(np.uint32)
    return high, low


def _sorted_run(high: U64, low: U32, place: U64) -> _Run:
    order = np.argsort(high, kind="stable")
    return _Run(high[order], low[order], place[order])


def _merged(runs: Sequence[_Run]) -> _Run:
    return _sorted_run(
        np.concatenate([run.high for run in runs]),
        np.concatenate([run.low for run in runs]),
        np.concatenate([run.place for run in runs]),
    )


class KeyIndex:
    """Keys to places, kept up with a stream by `refresh`."""

    def __init__(self, store: Store, stream: str, cache: Path | None) -> None:
        self._store = store
        self._stream = stream
        self._cache = cache
        self._lanes: list[Lane] = []
        self._numbers: dict[Lane, int] = {}
        self._covered: dict[Lane, int] = {}
        """The row after the last of each lane whose key was taken in; those before it are known but for the missing."""
        self._missing: dict[Lane, list[Span]] = {}
        self._runs: list[_Run] = []
        self._num_saved = 0
        self._num_unsaved = 0
        self._listing = Listing({}, [], [])
        self._added: dict[Lane, Span] = {}
        self.unreadable: list[Span] = []
        """Rows whose keys are not known because their segment is damaged."""
        if cache is not None and cache.exists():
            self._load(cache)

    def __len__(self) -> int:
        return sum(map(len, self._runs))

    def refresh(self, listing: Listing) -> None:
        """Take in the keys of segments that are new in the listing."""
        self._listing = listing
        self._add([run for lane in listing.lanes.values() for run in self._keys_of(lane)])

    def add(self, lane: Lane, first_row: int, digests: KeyDigests) -> None:
        """Take in rows that were just published, without reading them back."""
        start = self._added[lane].start if lane in self._added else first_row
        self._added[lane] = Span(lane, start, first_row + len(digests))
        self._add([self._run(lane, first_row, digests)])

    def find(self, key: str, digest: bytes | None = None) -> Place | None:
        """The first known place of a key whose row is there; its digest saves making it again."""
        return min(self.find_digest(digest or key_digest(key)), default=None)

    def find_digest(self, digest: bytes) -> list[Place]:
        """Every place of a key's digest."""
        high, low = np.uint64(int.from_bytes(digest[:8], "big")), int.from_bytes(digest[8:KEY_BYTES], "big")
        places = []
        for run in self._runs:
            at = int(np.searchsorted(run.high, high))
            while at < len(run) and run.high[at] == high:
                if int(run.low[at]) == low:
                    places.append(self._place(int(run.place[at])))
                at += 1
        return [place for place in places if self._is_there(place)]

    def _is_there(self, place: Place) -> bool:
        """Rows go: by retention, and by a loss of power after they were seen and before they were durable."""
        added = self._added.get(place.lane)
        if added is not None and added.start <= place.row < added.stop:
            return True
        listed = self._listing.lanes.get(place.lane)
        return listed is not None and listed.segment_of(place.row) is not None

    def num_places(self, digests: KeyDigests) -> npt.NDArray[np.int64]:
        """An upper bound of the places of each key, for many keys at once: 64 bits are compared."""
        high, _ = _split(digests)
        counts = np.zeros(len(high), dtype=np.int64)
        for run in self._runs:
            counts += np.searchsorted(run.high, high, side="right") - np.searchsorted(run.high, high, side="left")
        return counts

    def _place(self, packed: int) -> Place:
        return Place(self._lanes[packed >> _ROW_BITS], packed & ((1 << _ROW_BITS) - 1))

    def _run(self, lane: Lane, first_row: int, digests: KeyDigests) -> _Run:
        if lane not in self._numbers:
            self._numbers[lane] = len(self._lanes)
            self._lanes.append(lane)
        rows = np.arange(first_row, first_row + len(digests), dtype=np.uint64)
        self._covered[lane] = max(self._covered.get(lane, 0), first_row + len(digests))
        high, low = _split(digests)
        return _sorted_run(high, low, rows | np.uint64(self._numbers[lane] << _ROW_BITS))

    def _keys_of(self, lane: LaneListing) -> list[_Run]:
        """Those of a lane's rows that are new."""
        runs: list[_Run] = []
        for segment in lane.segments:
            parts = self._new_parts(segment)
            if not parts:
                continue
            try:
                digests = open_segment(self._store, segment).key_digests
            except (StreamCorrupt, FileNotFoundError) as error:
                if isinstance(error, FileNotFoundError):
                    now = list_stream(self._store).lanes.get(lane.lane, LaneListing(lane.lane))
                    if segment not in now.segments:
                        # Compaction has put its rows into another segment since the lane was listed.
                        return [*runs, *self._keys_of(now)]
                log.warning("keys of %s are not known: %s", segment.path, error)
                self.unreadable += parts
                self._covered[lane.lane] = max(self._covered.get(lane.lane, 0), segment.stop_row)
                continue
            for part in parts:
                fresh = digests[part.start - segment.first_row : part.stop - segment.first_row]
                runs.append(self._run(lane.lane, part.start, fresh))
        # What is missing may come back, from a copy or out of a listing that lagged.
        covered = self._covered.get(lane.lane, 0)
        self._missing[lane.lane] = [gap for gap in lane.gaps if gap.stop <= covered]
        return runs

    def _new_parts(self, segment: SegmentName) -> list[Span]:
        """The rows of a segment that are not known yet."""
        rows = Span(segment.lane, self._covered.get(segment.lane, 0), segment.stop_row)
        bounds = (
            (max(part.start, segment.first_row), min(part.stop, segment.stop_row))
            for part in (*self._missing.get(segment.lane, ()), rows)
        )
        return [Span(segment.lane, start, stop) for start, stop in bounds if start < stop]

    def _add(self, fresh: list[_Run]) -> None:
        if not fresh:
            return
        self._runs.append(_merged(fresh) if len(fresh) > 1 else fresh[0])
        self._num_unsaved += len(fresh)
        is_worth_saving = self._num_unsaved >= max(_MIN_SAVED_SEGMENTS, self._num_saved // 4)
        is_whole = not self.unreadable and not any(self._missing.values())
        if self._cache is not None and is_whole and is_worth_saving:
            self._runs = [_merged(self._runs)]
            self._save(self._cache)
            return
        # Runs of geometric sizes: few to search, and each key is merged a logarithmic number of times.
        while len(self._runs) > 1 and 2 * len(self._runs[-1]) > len(self._runs[-2]):
            self._runs[-2:] = [_merged(self._runs[-2:])]

    def _save(self, cache: Path) -> None:
        (run,) = self._runs
        arrays = [part.tobytes() for part in (run.high, run.place, run.low)]
        facts = {
            "stream": self._stream,
            "lanes": [[lane.writer, lane.epoch, self._covered[lane]] for lane in self._lanes],
            "rows": len(run),
            "segments": self._num_saved + self._num_unsaved,
        }
        header = json.dumps(facts).encode()
        # The arrays start at a multiple of 64 bytes: searching an unaligned array would copy it.
        header += b" " * (-(len(_MAGIC) + 65 + len(header) + 1) % 64) + b"\n"
        digest = hashlib.sha256(header)
        for part in arrays:
            digest.update(part)
        try:
            cache.parent.mkdir(parents=True, exist_ok=True)
            content = _MAGIC + digest.hexdigest().encode() + b"\n" + header + b"".join(arrays)
            LocalStore(str(cache.parent), LocalFileSystem()).publish(cache.name, content)
        except (StreamError, OSError) as error:
            log.warning("the key index is kept in memory only: %s", error)
            self._cache = None
        self._num_saved, self._num_unsaved = self._num_saved + self._num_unsaved, 0

    def _load(self, cache: Path) -> None:
        try:
            with cache.open("rb") as file:
                magic, stated, header = file.readline(), file.readline().strip().decode(), file.readline()
                start = file.tell()
                facts = json.loads(header) if magic == _MAGIC else {}
            if facts.get("stream") != self._stream:
                return
            content = np.memmap(cache, dtype=np.uint8, mode="r")[start:]
            digest = hashlib.sha256(header)
            digest.update(content.data)
            if digest.hexdigest() != stated:
                raise ValueError("its checksum is wrong")
        except (OSError, ValueError) as error:
            log.warning("the key index %s is made anew: %s", cache, error)
            return
        rows = int(facts["rows"])
        self._lanes = [Lane(writer, epoch) for writer, epoch, _ in facts["lanes"]]
        self._numbers = {lane: number for number, lane in enumerate(self._lanes)}
        self._covered = {Lane(writer, epoch): row for writer, epoch, row in facts["lanes"]}
        high, place = content[: 8 * rows].view(np.uint64), content[8 * rows : 16 * rows].view(np.uint64)
        self._runs = [_Run(np.asarray(high), np.asarray(content[16 * rows :].view(np.uint32)), np.asarray(place))]
        self._num_saved = int(facts["segments"])
