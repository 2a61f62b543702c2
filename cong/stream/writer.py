"""Appending records to a stream: one writer, one epoch, one lane, one background thread that makes things durable.

A record is acknowledged at the level it has reached. What cannot be stored is told to whoever waits for it, stays
buffered, and is tried again; a full buffer refuses more. Knows no service and no engine.
"""

import atexit
import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Self

from cong.config.stream import WriteSettings
from cong.errors import StreamError, StreamFenced
from cong.schemas import SampleRecord
from cong.stream.agenda import Agenda
from cong.stream.buffer import STRENGTH, Ack, Buffer, Level, Pending, Waiter
from cong.stream.columns import PackedRow, pack, table_of
from cong.stream.filesystem import FileSystem
from cong.stream.identity import ensure_identity
from cong.stream.index import Place
from cong.stream.journal import Frame, Journal
from cong.stream.keys import joined_digests
from cong.stream.names import Marker, SegmentName
from cong.stream.ownership import claim, require_unfenced, require_writer_id
from cong.stream.recovery import Orphan, close_lanes, dispose, journal_place, open_journal, unsealed_records
from cong.stream.segment import Placement, encode
from cong.stream.sight import Sight
from cong.stream.store import Store
from cong.wording import with_remedy

log = logging.getLogger(__name__)

_RETRY_S = 1.0


def _tell(futures: "list[Future[Ack]]", error: StreamError) -> None:
    """Tell those who wait that what they wait for has failed."""
    for future in futures:
        future.set_exception(error)


class StreamWriter:
    """An open lane of a stream; safe to share between threads."""

    def __init__(
        self,
        store: Store,
        settings: WriteSettings | None = None,
        writer_id: str | None = None,
        cache_dir: str = "",
        journal_files: FileSystem | None = None,
    ) -> None:
        self._store = store
        self._settings = settings or WriteSettings()
        name = writer_id or f"w{secrets.token_hex(6)}"
        require_writer_id(name)
        stream = ensure_identity(store)
        self.lane = claim(store, name)
        self._sight = Sight(store, stream, cache_dir, self._settings.relist_s)
        self._buffer = Buffer(self._settings)
        self._agenda = Agenda(self._settings, self._buffer)
        self._changed = threading.Condition()
        self._next_row = 0
        self._sequence = 0
        self._journalled_row = 0
        self._built: tuple[SegmentName, bytes] | None = None
        self._is_closing = self._is_stopping = self._is_closed = False
        self._fatal: BaseException | None = None
        self.num_duplicates = self.num_segments = 0
        self._journal_files, self._journal_dir = journal_place(store, self._settings, journal_files)
        self._journal: Journal | None = None
        orphans: list[Orphan] = []
        if self._settings.has_journal:
            self._journal, orphans = open_journal(self._journal_files, self._journal_dir, self.lane, stream)
        self._thread = threading.Thread(target=self._run, name=f"stream-{self.lane}", daemon=True)
        self._thread.start()
        atexit.register(self._close_at_exit)
        if orphans:
            self._carry_on(orphans)

    # What callers use.

    @property
    def num_unsealed_rows(self) -> int:
        """Records that are not in a published segment yet."""
        return len(self._buffer)

    @property
    def failure(self) -> BaseException | None:
        """What has ended this writer for good; None while it can still store, if need be after more tries."""
        return self._fatal

    def append(self, record: SampleRecord, level: Level = "none", timeout_s: float | None = None) -> Ack:
        """Hand in a record and wait until it is as durable as asked; an error means that it may not be stored."""
        patience_s = self._settings.timeout_s if timeout_s is None else timeout_s
        found = self._enter(record, level, patience_s)
        return self._wait(found, patience_s) if isinstance(found, Future) else found

    def append_many(self, records: Iterable[SampleRecord], level: Level = "none") -> list[Ack]:
        """Hand in many records, which become durable together."""
        patience_s = self._settings.timeout_s
        found = [self._enter(record, level, patience_s) for record in records]
        return [self._wait(item, patience_s) if isinstance(item, Future) else item for item in found]

    def submit(self, record: SampleRecord, level: Level = "local") -> "Future[Ack]":
        """Hand in a record without waiting, not even for room; the future ends with its acknowledgement."""
        found = self._enter(record, level, 0.0)
        if isinstance(found, Future):
            return found
        future: Future[Ack] = Future()
        future.set_result(found)
        return future

    def find(self, key: str) -> Place | None:
        """Where a key is stored, by this writer or by any other."""
        with self._changed:
            found = self._sight.find(key)
            if found is None and self._sight.look_if_old():
                found = self._sight.find(key)
            return found

    def missing(self, keys: Sequence[str]) -> list[str]:
        """Those of many keys that are neither stored nor on their way."""
        with self._changed:
            self._sight.look_if_old()
            return [key for key in keys if self._buffer.get(key) is None and self._sight.find(key) is None]

    def flush(self, timeout_s: float | None = None) -> None:
        """Publish everything handed in so far."""
        with self._changed:
            self._require_open()
            last = self._force()
        self._await(last, timeout_s)

    def close(self, timeout_s: float | None = None) -> None:
        """Publish everything, say that the lane is complete, and stop; after an error it may be called again."""
        if self._is_closed:
            return
        with self._changed:
            self._require_open()
            # What another thread would hand in from now on would lie behind the end that the marker tells.
            self._is_closing = True
            last = self._force()
        try:
            self._await(last, timeout_s)
            require_unfenced(self._store, self.lane)
            self._store.publish(Marker("closed", self.lane, self._sequence, self._next_row).path, b"")
        except BaseException:
            self._is_closing = False
            raise
        self._stop()
        if self._journal is not None:
            self._journal.close(is_clean=True)
        self._is_closed = True
        atexit.unregister(self._close_at_exit)

    def abandon(self) -> None:
        """Stop at once, as a crash would; what is in the journal waits for a successor."""
        self._stop()
        atexit.unregister(self._close_at_exit)
        if self._journal is not None and not self._is_closed:
            self._is_closed = True
            self._journal.close(is_clean=False)
        self._is_closed = True

    def _close_at_exit(self) -> None:
        try:
            self.close()
        except StreamError as error:
            if len(self._buffer):
                log.error("%d records were handed in and are not stored: %s", len(self._buffer), error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._fatal is None:
            self.close()
            return
        self.abandon()
        if error is None:
            raise StreamError(f"the writer {self.lane} has stopped: {self._fatal}") from self._fatal

    # Taking records in.

    def _enter(self, record: SampleRecord, level: Level, patience_s: float) -> "Future[Ack] | Ack":
        if STRENGTH[level] > STRENGTH[self._store.level]:
            raise StreamError(
                f"{self._store.location} is a folder of this machine, which gives level 'local', not {level!r}; write "
                "to an object store, or set is_shared if the folder outlives the machine"
            )
        packed = pack(record)
        payload = record.model_dump_json().encode() if self._journal is not None else None
        with self._changed:
            self._require_open()
            known = self._known(packed, level)
            if known is not None:
                return known
            if self._buffer.is_full():
                self._changed.wait_for(lambda: not self._buffer.is_full() or self._fatal is not None, patience_s)
                self._require_open()
                # While this thread waited for room, another may have handed in the same key.
                known = self._known(packed, level)
                if known is not None:
                    return known
            if self._buffer.is_full():
                raise StreamError(
                    f"{len(self._buffer)} records wait to be stored and may not be more; the disk is slow or full. "
                    "Try again later with the same key"
                )
            pending = Pending(packed, self._next_row, time.monotonic(), payload)
            self._next_row += 1
            self._buffer.add(pending)
            if level == "none":
                if payload is not None or len(self._buffer) == 1 or self._buffer.is_segment_full():
                    self._changed.notify_all()
                return Ack(packed.key, "none", self.lane, pending.row, is_duplicate=False)
            future = self._add_waiter(pending, level, is_duplicate=False)
            self._changed.notify_all()
            return future

    def _known(self, packed: PackedRow, level: Level) -> "Future[Ack] | Ack | None":
        key = packed.key
        pending = self._buffer.get(key)
        if pending is not None:
            self.num_duplicates += 1
            if level == "none":
                return Ack(key, "none", self.lane, pending.row, is_duplicate=True)
            future = self._add_waiter(pending, level, is_duplicate=True)
            self._changed.notify_all()
            return future
        place = self._sight.find(key, packed.digest)
        if place is None:
            return None
        self.num_duplicates += 1
        return Ack(key, self._store.level, place.lane, place.row, is_duplicate=True)

    def _add_waiter(
        self, pending: Pending, level: Level, is_duplicate: bool, needs_segment: bool = False
    ) -> "Future[Ack]":
        future: Future[Ack] = Future()
        # From now on it cannot be cancelled: the record is on its way, whoever still listens.
        future.set_running_or_notify_cancel()
        needs_segment |= self._journal is None or level == "shared"
        if not needs_segment and pending.row < self._journalled_row:
            future.set_result(Ack(pending.packed.key, "local", self.lane, pending.row, is_duplicate))
            return future
        pending.waiters.append(Waiter(level, future, is_duplicate, needs_segment))
        if needs_segment and self._buffer.waited_since_s is None:
            self._buffer.waited_since_s = time.monotonic()
        return future

    def _force(self) -> "Future[Ack] | None":
        """Have everything there is published; what ends when it is, None where there is nothing."""
        last = self._buffer.last()
        if last is None:
            return None
        self._agenda.is_forced = True
        self._changed.notify_all()
        return self._add_waiter(last, self._store.level, is_duplicate=False, needs_segment=True)

    def _await(self, last: "Future[Ack] | None", timeout_s: float | None) -> None:
        if last is not None:
            self._wait(last, self._settings.timeout_s if timeout_s is None else timeout_s)

    def _wait(self, future: "Future[Ack]", patience_s: float) -> Ack:
        try:
            return future.result(patience_s)
        except TimeoutError as error:
            raise StreamError(
                f"no acknowledgement within {patience_s:g} s; the record may or may not be stored. Try again with the "
                "same key"
            ) from error

    def _require_open(self) -> None:
        if isinstance(self._fatal, StreamError):
            raise type(self._fatal)(str(self._fatal)) from self._fatal
        if self._fatal is not None:
            raise StreamError(f"the writer {self.lane} has stopped: {self._fatal!r}; open a new one") from self._fatal
        if self._is_closing or self._is_closed or self._is_stopping:
            raise StreamError(f"the writer {self.lane} is closed; open a new one")

    # Making records durable: everything below runs in the background thread, or before it starts.

    def _run(self) -> None:
        try:
            while self._fatal is None:
                with self._changed:
                    while not self._is_due():
                        self._changed.wait(self._agenda.pause_s(time.monotonic(), is_behind=self._is_behind()))
                    if self._is_stopping:
                        return
                    is_seal_due = self._agenda.is_seal_due(time.monotonic())
                if self._journal is not None:
                    self._commit(self._journal)
                if is_seal_due:
                    self._seal()
        except BaseException as error:  # noqa: BLE001
            # Whatever it is: it is raised again in every caller, now and later.
            self._end(error)

    def _is_due(self) -> bool:
        now_s = time.monotonic()
        return (
            self._is_stopping
            or self._agenda.is_seal_due(now_s)
            or self._agenda.is_commit_due(now_s, is_behind=self._is_behind())
        )

    def _is_behind(self) -> bool:
        return self._journal is not None and self._journalled_row < self._next_row

    def _commit(self, journal: Journal) -> None:
        with self._changed:
            batch = self._buffer.from_row(self._journalled_row)
        if not batch:
            return
        try:
            journal.append([Frame(pending.row, pending.payload or b"") for pending in batch])
        except OSError as error:
            with self._changed:
                self._agenda.journal_retry_at_s = time.monotonic() + _RETRY_S
                futures = self._buffer.take_waiters(needs_segment=False)
            told = f"cannot write the journal in {self._journal_dir}: {with_remedy(error)}; nothing was acknowledged"
            _tell(futures, StreamError(told))
            return
        with self._changed:
            self._journalled_row = batch[-1].row + 1
            done = [item for pending in batch for item in pending.settled(self.lane, "local", is_published=False)]
        for future, ack in done:
            future.set_result(ack)

    def _seal(self) -> None:
        with self._changed:
            batch = self._buffer.take_segment()
        digests = joined_digests([pending.packed.digest for pending in batch])
        try:
            if self._built is None:
                # Once built, a segment is retried byte for byte: a try that failed may still have been stored.
                table = table_of([pending.packed for pending in batch])
                place = Placement(self.lane, self._sequence, self._sequence, batch[0].row)
                self._built = encode(table, place, self._settings.rows_per_group, digests)
            name, data = self._built
            require_unfenced(self._store, self.lane)
            self._store.publish(name.path, data)
        except StreamFenced as error:
            self._end(error)
            return
        except StreamError as error:
            # The records stay, for another try; whoever waits for the journal alone is not concerned.
            with self._changed:
                self._agenda.segment_retry_at_s = time.monotonic() + _RETRY_S
                self._agenda.is_forced = False
                futures = self._buffer.take_waiters(needs_segment=True)
            _tell(futures, error)
            return
        self._built = None
        self._sequence += 1
        self.num_segments += 1
        with self._changed:
            self._sight.add(name, digests)
            self._buffer.finish_segment()
            self._journalled_row = max(self._journalled_row, name.stop_row)
            self._agenda.is_forced = self._agenda.is_forced and len(self._buffer) > 0
            done = [
                item for pending in batch for item in pending.settled(self.lane, self._store.level, is_published=True)
            ]
            self._changed.notify_all()
        for future, ack in done:
            future.set_result(ack)
        if self._journal is not None:
            self._trim(self._journal, name.stop_row)

    def _trim(self, journal: Journal, row: int) -> None:
        try:
            journal.rotate()
            journal.remove_below(row)
        except OSError as error:
            # Its records are stored twice at worst; the next segment tries again.
            log.warning("cannot tidy the journal in %s: %s", self._journal_dir, error)

    def _end(self, error: BaseException) -> None:
        """Stop for good, and tell everybody who waits."""
        with self._changed:
            self._fatal = error
            futures = [*self._buffer.take_waiters(needs_segment=True), *self._buffer.take_waiters(needs_segment=False)]
            self._changed.notify_all()
        told = (
            error if isinstance(error, StreamError) else StreamError(f"the writer {self.lane} has stopped: {error!r}")
        )
        _tell(futures, told)

    def _stop(self) -> None:
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
        self._thread.join(self._settings.timeout_s)

    # What others left.

    def _carry_on(self, orphans: list[Orphan]) -> None:
        """Store what dead writers of this machine left behind, and close their lanes."""
        try:
            # Looked at again now that their locks are ours: no more can come from them.
            with self._changed:
                self._sight.look()
            for orphan in orphans:
                for record in unsealed_records(orphan, self._sight.listing):
                    self.append(record)
            self.flush()
            close_lanes(self._store, orphans, self._sight.listing)
            dispose(self._journal_files, self._journal_dir, orphans)
        except (StreamError, OSError) as error:
            with contextlib.suppress(OSError):
                self.abandon()
            raise StreamError(f"cannot carry on what dead writers left in {self._journal_dir}: {error}") from error
