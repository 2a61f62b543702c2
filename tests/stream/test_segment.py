"""One segment: every byte of it and of its name is covered by a digest."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cong.errors import StreamCorrupt
from cong.stream.columns import pack, table_of
from cong.stream.keys import key_digest
from cong.stream.names import JournalName, Lane, Marker, SegmentName
from cong.stream.segment import Placement, encode, open_segment
from cong.stream.store import LocalStore
from tests.stream.streams import folder_store, keys, records

PLACE = Placement(Lane("w", 3), 7, 7, 100)


def stored(path: Path, num_rows: int = 7) -> tuple[LocalStore, SegmentName, bytes]:
    store = folder_store(path)
    store.prepare()
    name, data = encode(table_of([pack(record) for record in records(range(num_rows))]), PLACE, rows_per_group=3)
    store.publish(name.path, data)
    return store, name, data


def load_all(store: LocalStore, name: SegmentName) -> None:
    file = open_segment(store, name)
    for number in range(len(file.groups)):
        file.load(number)


def test_a_segment_returns_its_rows_group_by_group(tmp_path: Path) -> None:
    store, name, _ = stored(tmp_path)
    file = open_segment(store, name)
    assert [file.load(number, ["key"]).column("key").to_pylist() for number in range(3)] == [
        keys(range(3)),
        keys(range(3, 6)),
        keys([6]),
    ]
    assert [digest.tobytes() for digest in file.key_digests] == [key_digest(key) for key in keys(range(7))]
    assert (file.first_key, file.last_key, file.schema_version) == (keys([0])[0], keys([6])[0], 1)
    assert (name.first_row, name.stop_row, name.first_sequence) == (100, 107, 7)


def test_reading_leaves_no_thread_that_holds_bytes_of_python(tmp_path: Path) -> None:
    # One that outlives the interpreter aborts the process, whatever its exit code was to be.
    code = (
        "import sys, psutil\n"
        "from cong.stream.listing import list_stream\n"
        "from cong.stream.segment import open_segment\n"
        "from cong.stream.store import open_store\n"
        "store = open_store(sys.argv[1])\n"
        "(lane,) = list_stream(store).lanes.values()\n"
        "file = open_segment(store, lane.segments[0])\n"
        "before = psutil.Process().num_threads()\n"
        "print(sum(file.load(number).num_rows for number in range(len(file.groups))))\n"
        "print(psutil.Process().num_threads() - before)\n"
    )
    store, _, _ = stored(tmp_path)
    environment = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system", "OMP_NUM_THREADS": "4"}
    done = subprocess.run(
        [sys.executable, "-c", code, store.root], capture_output=True, text=True, timeout=120, env=environment
    )
    assert (done.returncode, done.stdout.split()) == (0, ["7", "0"]), done.stderr


def test_any_parquet_reader_can_read_it(tmp_path: Path) -> None:
    _, _, data = stored(tmp_path)
    assert pq.read_table(io.BytesIO(data)).column("key").to_pylist() == keys(range(7))


def test_a_flipped_bit_anywhere_is_noticed_and_its_rows_are_named(tmp_path: Path) -> None:
    store, name, data = stored(tmp_path)
    path = Path(store.root) / name.path
    groups = open_segment(store, name).groups
    # Every byte of the ends and of the borders between regions, and a sample of the rest.
    borders = {0, len(data), *(edge for group in groups for edge in (group.start, group.stop))}
    near = {edge + step for edge in borders for step in range(-6, 7)}
    for at in sorted(at for at in near | set(range(0, len(data), 97)) if 0 <= at < len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 1 << (at % 8)
        path.write_bytes(bytes(damaged))
        with pytest.raises(StreamCorrupt) as caught:
            load_all(store, name)
        hit = [group for group in groups if group.start <= at < group.stop]
        first, last = (hit[0].first_row, hit[0].stop_row - 1) if hit else (0, 6)
        assert f"rows {100 + first} to {100 + last} of w-000003" in str(caught.value), at


@pytest.mark.parametrize("length", [0, 4, 11, 100, -1])
def test_a_cut_file_is_noticed(tmp_path: Path, length: int) -> None:
    store, name, data = stored(tmp_path)
    (Path(store.root) / name.path).write_bytes(data[:length])
    with pytest.raises(StreamCorrupt, match="rows 100 to 106"):
        open_segment(store, name)


def test_a_grown_file_is_noticed(tmp_path: Path) -> None:
    store, name, data = stored(tmp_path)
    (Path(store.root) / name.path).write_bytes(data + b"PAR1")
    with pytest.raises(StreamCorrupt):
        open_segment(store, name)


def test_a_changed_character_of_a_name_is_noticed(tmp_path: Path) -> None:
    store, name, _ = stored(tmp_path)
    path = Path(store.root) / name.path
    for at, old in enumerate(path.name):
        new = "1" if old != "1" else "2"
        changed = path.with_name(path.name[:at] + new + path.name[at + 1 :])
        path.rename(changed)
        found = SegmentName.parse(changed.name)
        if found is not None:
            with pytest.raises(StreamCorrupt):
                open_segment(store, found)
        changed.rename(path)


@pytest.mark.parametrize(
    "name",
    [
        Marker("closed", Lane("a-b.c", 12), 4, 20).path.partition("/")[2],
        Marker("claim", Lane("w", 1)).path.partition("/")[2],
        JournalName(Lane("w", 1), 3).filename,
        JournalName(Lane("w", 1), 3, "0123456789abcdef").filename,
    ],
)
def test_names_without_content_check_themselves(name: str) -> None:
    parse = JournalName.parse if name.endswith("wal") else Marker.parse
    assert parse(name) is not None
    for at in range(len(name)):
        assert parse(name[:at] + ("0" if name[at] != "0" else "7") + name[at + 1 :]) is None


def test_a_segment_name_is_read_back() -> None:
    name = SegmentName(Lane("replica-1-000002", 1), 3, 9, 15, 35, "0123456789abcdef" * 2)
    assert SegmentName.parse(name.path.partition("/")[2]) == name
