"""Small streams for the tests: on a real folder or on a disk that fails on command."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from cong.config.stream import ReadSettings, WriteSettings
from cong.lab.disk import SimulatedDisk
from cong.lab.records import synthetic_record
from cong.schemas import SampleRecord
from cong.stream import Cursor, StreamReader, StreamWriter
from cong.stream.filesystem import LocalFileSystem
from cong.stream.store import LocalStore, Store

SMALL = WriteSettings(rows_per_segment=5, rows_per_group=2, max_age_s=600.0, acknowledge_s=0.0, timeout_s=20.0)
"""Segments of five rows in groups of two, sealed by rows and on shutdown only."""

cached_record = lru_cache(maxsize=None)(synthetic_record)


def records(numbers: Iterable[int]) -> list[SampleRecord]:
    return [cached_record(number) for number in numbers]


def keys(numbers: Iterable[int]) -> list[str]:
    return [cached_record(number).key for number in numbers]


def folder_store(path: Path) -> LocalStore:
    return LocalStore(str(path / "stream"), LocalFileSystem())


def disk_store(disk: SimulatedDisk) -> LocalStore:
    return LocalStore("/stream", disk)


def write(
    store: Store, numbers: Iterable[int], writer_id: str = "w", settings: WriteSettings = SMALL, is_closed: bool = True
) -> None:
    writer = StreamWriter(store, settings, writer_id)
    for record in records(numbers):
        writer.append(record)
    writer.flush()
    if is_closed:
        writer.close()
    else:
        writer.abandon()


def read_keys(
    store: Store, settings: ReadSettings | None = None, cursor: Cursor | None = None, batch: int = 3
) -> list[str]:
    reader = StreamReader(store, settings, cursor)
    return [key for table, _ in reader.tables(batch, ["key"]) for key in table.column("key").to_pylist()]


def flat(parts: Iterable[Sequence[str]]) -> list[str]:
    return [key for part in parts for key in part]
