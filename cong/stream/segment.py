"""One immutable Parquet file of a lane's rows, whose name proves its bytes.

    name  = where the rows lie, and a digest of (that place, the footer)
    footer = digest of every row group's bytes, digest of every row's key, first and last key, schema version

So each byte is covered exactly once; a reader can check one row group, or only the keys, without reading the rest.
Any Parquet reader can read the file; only this one checks it.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cong.errors import StreamCorrupt, StreamError
from cong.stream.columns import FLOAT_LISTS, INT_LISTS, SCHEMA, VERSION_KEY, upgraded
from cong.stream.keys import KEY_BYTES, KeyDigests, key_digests
from cong.stream.names import Lane, SegmentName
from cong.stream.store import Store

_TAIL_BYTES = 1 << 17
_MAGIC = b"PAR1"
_DIGEST_LENGTH = 32

DICTIONARIES = [
    *("schema_version", "kind", "finish_reason", "sample_index", "parameters", "networks", "software"),
    *("tokenizer_fingerprint", "writer", "created_at", "head_sizes.list.element"),
]
"""Columns with few distinct values; looking for repeats in the others costs time and finds none."""

COMPRESSION = {
    # Numbers hardly shrink, and lz4 gives them back twice as fast as zstd; text shrinks well.
    **dict.fromkeys(SCHEMA.names, "zstd"),
    **{f"{name}.list.element": "lz4" for name in FLOAT_LISTS + INT_LISTS},
    **{f"prompt_messages.list.element.{name}": "zstd" for name in ("role", "content")},
}


def _digest(*parts: bytes | memoryview) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()[:_DIGEST_LENGTH]


@dataclass(frozen=True)
class Group:
    """A row group: bytes [start, stop) of the file hold rows [first_row, stop_row) of the segment."""

    start: int
    stop: int
    first_row: int
    stop_row: int
    digest: str


@dataclass(frozen=True)
class Placement:
    """Where a new segment goes."""

    lane: Lane
    first_sequence: int
    last_sequence: int
    first_row: int


def encode(
    table: pa.Table, place: Placement, rows_per_group: int, digests: KeyDigests | None = None
) -> tuple[SegmentName, bytes]:
    """A table of SCHEMA as a named segment; `digests` are those of its keys, where they are known."""
    size = table.nbytes + 512 * table.num_rows + (1 << 20)
    for room in (size, 4 * size):
        memory = pa.allocate_buffer(room)
        try:
            start, stop = _write(table, memory, rows_per_group, digests)
        except OSError:
            # Written into memory of a fixed size, which is too small only for data that grows when it is encoded.
            continue
        break
    else:
        raise StreamError(f"a segment of {table.num_rows} rows does not fit into {room} bytes; write smaller segments")
    name = SegmentName(
        place.lane, place.first_sequence, place.last_sequence, place.first_row, table.num_rows, digest=""
    )
    content = memoryview(memory)
    return _named(name, content[start:stop]), bytes(content[:stop])


def _write(table: pa.Table, memory: pa.Buffer, rows_per_group: int, digests: KeyDigests | None) -> tuple[int, int]:
    """Fill memory with a segment; returns where its footer starts and stops."""
    sink = pa.FixedSizeBufferWriter(memory)
    content = memoryview(memory)
    writer = pq.ParquetWriter(
        sink,
        table.schema,
        compression=COMPRESSION,
        use_dictionary=DICTIONARIES,
        use_byte_stream_split=[f"{name}.list.element" for name in FLOAT_LISTS],
        write_statistics=["num_tokens", "implicit_reward_mean", "finish_reason", "kind"],
        store_schema=False,
    )
    groups = []
    start = 0
    for first in range(0, table.num_rows, rows_per_group):
        part = table.slice(first, rows_per_group)
        writer.write_table(part, row_group_size=rows_per_group)
        stop = sink.tell()
        groups.append([start, stop, first, first + part.num_rows, _digest(content[start:stop])])
        start = stop
    keys = table.column("key")
    if digests is None:
        digests = key_digests(keys.to_pylist())
    writer.add_key_value_metadata(
        {
            VERSION_KEY.decode(): table.schema.metadata[VERSION_KEY].decode(),
            "cong.groups": json.dumps(groups, separators=(",", ":")),
            "cong.first_key": keys[0].as_py(),
            "cong.last_key": keys[-1].as_py(),
            "cong.key_digests": base64.b64encode(digests.tobytes()).decode(),
        }
    )
    writer.close()
    return start, sink.tell()


def _named(name: SegmentName, footer: bytes | memoryview) -> SegmentName:
    digest = _digest(name.stem.encode(), footer)
    return SegmentName(name.lane, name.first_sequence, name.last_sequence, name.first_row, name.num_rows, digest=digest)


class _Ranges:
    """A read-only file of which only verified ranges are in memory; Parquet decoding asks for no others."""

    closed = False

    def __init__(self, size: int, footer: bytes) -> None:
        self._size = size
        self.footer = (size - len(footer), footer)
        self.group: tuple[int, bytes] = self.footer
        self._position = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = (0, self._position, self._size)[whence] + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def size(self) -> int:
        return self._size

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    def read(self, count: int = -1) -> bytes:
        start = self._position
        stop = self._size if count < 0 else min(self._size, start + count)
        self._position = stop
        for first, data in (self.group, self.footer):
            if first <= start and stop <= first + len(data):
                return data[start - first : stop - first]
        # Parquet looks at the footer with a guess of its length. What lies before it is not verified, and not shown.
        first, data = self.footer
        return bytes(max(0, min(stop, first) - start)) + data[max(0, start - first) : max(0, stop - first)]


class SegmentFile:
    """A segment being read: its footer is verified once, each row group when its bytes arrive."""

    def __init__(self, store: Store, name: SegmentName) -> None:
        self.name = name
        self._store = store
        self._size = store.size(name.path)
        tail_start = max(0, self._size - _TAIL_BYTES)
        tail = store.read(name.path, tail_start, self._size)
        length = int.from_bytes(tail[-8:-4], "little") + 8
        if len(tail) < 12 or tail[-4:] != _MAGIC or length > self._size:
            raise self._damage("its end is not that of a Parquet file")
        if length > len(tail):
            tail = store.read(name.path, self._size - length, self._size)
        footer = tail[-length:]
        if _named(name, footer).digest != name.digest:
            raise self._damage("name and footer do not belong together")
        # From here on the bytes are those that a writer made; another fault is a fault of that writer.
        self._ranges = _Ranges(self._size, footer)
        # Everything is decoded by the thread that asks. One of Arrow's own may still hold bytes of Python's when the
        # table is there; where the process ends then, it waits for an interpreter that is gone, and aborts.
        self._parquet = pq.ParquetFile(pa.PythonFile(self._ranges, mode="r"), pre_buffer=False)
        facts = self._parquet.metadata.metadata
        self.schema_version = int(facts[VERSION_KEY])
        self.groups = [Group(*fields) for fields in json.loads(facts[b"cong.groups"])]
        digests = np.frombuffer(base64.b64decode(facts[b"cong.key_digests"]), dtype=np.uint8)
        self.key_digests: KeyDigests = digests.reshape(-1, KEY_BYTES)
        self.first_key, self.last_key = facts[b"cong.first_key"].decode(), facts[b"cong.last_key"].decode()
        self._ahead: dict[int, bytes] = {}

    @property
    def num_bytes(self) -> int:
        """Size of the file."""
        return self._size

    def group_of(self, row: int) -> int:
        """The number of the group that holds a row of the segment."""
        return next(number for number, group in enumerate(self.groups) if group.first_row <= row < group.stop_row)

    def load(self, number: int, columns: Sequence[str] | None = None) -> pa.Table:
        """One verified row group."""
        self._ranges.group = (self.groups[number].start, self._verified(number))
        wanted = list(columns) if columns is not None else None
        table = self._parquet.read_row_group(number, columns=wanted, use_threads=False)
        self._ranges.group = self._ranges.footer
        return upgraded(table.replace_schema_metadata(SCHEMA.metadata), self.schema_version)

    def check(self, number: int) -> None:
        """Verify one row group's bytes without decoding them."""
        self._verified(number)

    def _verified(self, number: int) -> bytes:
        """A group's bytes; groups after it are read along where a request is dear, and kept until asked for."""
        data = self._ahead.pop(number, None)
        if data is None:
            self._ahead.clear()
            first, last = self.groups[number], number
            while (
                last + 1 < len(self.groups) and self.groups[last + 1].stop - first.start <= self._store.read_ahead_bytes
            ):
                last += 1
            content = self._store.read(self.name.path, first.start, self.groups[last].stop)
            for ahead in range(number, last + 1):
                group = self.groups[ahead]
                self._ahead[ahead] = content[group.start - first.start : group.stop - first.start]
            data = self._ahead.pop(number)
        group = self.groups[number]
        if _digest(data) != group.digest:
            raise self._damage(
                f"bytes {group.start} to {group.stop} are not those written", group.first_row, group.stop_row
            )
        return data

    def _damage(self, problem: str, first_row: int = 0, stop_row: int | None = None) -> StreamCorrupt:
        first = self.name.first_row + first_row
        stop = self.name.first_row + (self.name.num_rows if stop_row is None else stop_row)
        return StreamCorrupt(
            f"{self._store.location}/{self.name.path}: {problem}; rows {first} to {stop - 1} of {self.name.lane} "
            "cannot be trusted. Restore the file from a copy, or read with on_damage=skip to go on without them"
        )


def open_segment(store: Store, name: SegmentName) -> SegmentFile:
    """A segment ready to be read; whatever else its decoding trips over is reported as a stream's trouble."""
    try:
        return SegmentFile(store, name)
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise StreamError(f"{store.location}/{name.path} was not written by cong: {error}") from error
