"""Samples that are kept: looked up by key before they are made, stored before they are answered.

A thin asynchronous face of the stream. All of its work is done in threads of its own, because looking at a stream and
handing a record in may wait for a disk. Knows no engine and no HTTP.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from cong.config.stream import ReadSettings, StreamConfig
from cong.errors import StreamError
from cong.schemas import SampleRecord
from cong.stream import (
    Ack,
    Draw,
    Level,
    Place,
    Store,
    StreamReader,
    StreamWriter,
    open_store,
    require_place,
    to_records,
)
from cong.wire import StoredSample, StoreLevel

_NUM_THREADS = 4

T = TypeVar("T")

_READ_BY_PLACE = ReadSettings(is_deduplicated=False, on_damage="skip")


@dataclass(frozen=True)
class Kept:
    """What storing a sample came to."""

    sample: StoredSample
    seconds: float
    """From handing in to the acknowledgement."""


class Archive:
    """A stream that samples are written to and found in again."""

    def __init__(self, store: Store, writer: StreamWriter, timeout_s: float = 30.0) -> None:
        self._store = store
        self._writer = writer
        self._timeout_s = timeout_s
        self._threads = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="archive")
        self.location = store.location

    @staticmethod
    def require_place(location: str, config: StreamConfig, writer_id: str) -> None:
        """Refuse a location where `open` would fail; costs a look at it, and leaves nothing open."""
        store = open_store(location, config.storage_options, is_shared=config.is_shared)
        require_place(store, config.write, writer_id)

    @classmethod
    def open(cls, location: str, config: StreamConfig, writer_id: str, timeout_s: float = 30.0) -> "Archive":
        """The stream at a location, written to under an id that no other process uses now."""
        store = open_store(location, config.storage_options, is_shared=config.is_shared)
        return cls(store, StreamWriter(store, config.write, writer_id, config.cache_dir), timeout_s)

    @property
    def levels(self) -> tuple[StoreLevel, ...]:
        """What may be asked for here, weakest first."""
        return ("none", "local", "shared") if self._store.level == "shared" else ("none", "local")

    @property
    def failure(self) -> BaseException | None:
        """What has ended the writer for good, after which nothing can be kept here."""
        return self._writer.failure

    async def find(self, keys: Sequence[str]) -> dict[str, StoredSample]:
        """Samples of these keys that are there already, whoever made them."""
        return await self._in_thread(lambda: self._find(keys))

    async def keep(self, record: SampleRecord, level: Level) -> Kept:
        """Store a sample and wait until it is as durable as asked; a known key gives what the stream holds."""
        started_s = time.monotonic()
        future = await self._in_thread(lambda: self._writer.submit(record, level))
        try:
            ack: Ack = await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(future)), self._timeout_s)
        except TimeoutError as error:
            raise StreamError(
                f"a sample was not acknowledged within {self._timeout_s:g} s; it may or may not be stored. Try again"
            ) from error
        if ack.is_duplicate:
            # Whoever stored it first decides: the same key has the same answer for ever.
            found = await self.find([record.key])
            if record.key in found:
                return Kept(found[record.key], time.monotonic() - started_s)
        sample = StoredSample(record=record, stored=ack.level, is_duplicate=ack.is_duplicate)
        return Kept(sample, time.monotonic() - started_s)

    async def close(self, timeout_s: float) -> None:
        """Publish everything that was handed in, and stop."""
        try:
            await self._in_thread(lambda: self._writer.close(timeout_s))
        finally:
            self._threads.shutdown(wait=False)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _find(self, keys: Sequence[str]) -> dict[str, StoredSample]:
        missing = set(self._writer.missing(keys))
        known = [key for key in dict.fromkeys(keys) if key not in missing]
        if not known:
            return {}
        places = {key: self._writer.find(key) for key in known}
        if any(place is None for place in places.values()):
            # On its way: once it is in a segment, it can be read like any other.
            self._writer.flush(self._timeout_s)
            places = {key: self._writer.find(key) for key in known}
        return self._read({key: place for key, place in places.items() if place is not None})

    def _read(self, places: dict[str, Place]) -> dict[str, StoredSample]:
        lanes = tuple(dict.fromkeys(place.lane for place in places.values()))
        reader = StreamReader(self._store, _READ_BY_PLACE)
        draw = Draw(
            lanes,
            np.array([lanes.index(place.lane) for place in places.values()], dtype=np.int64),
            np.array([place.row for place in places.values()], dtype=np.int64),
            reader.cursor,
        )
        return {
            record.key: StoredSample(record=record, stored=self._store.level, is_duplicate=True)
            for record in to_records(reader.fetch(draw))
        }
