"""Bad days of the disk: a hard exit at every numbered operation, loss of power, short writes, no space, errors."""

import errno
import itertools
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cong.config.stream import ReadSettings, WriteSettings
from cong.errors import StreamError
from cong.lab.disk import Crashed, SimulatedDisk
from cong.stream import Cursor, Lane, StreamReader, StreamWriter, compact, list_stream, open_store, retain, verify
from cong.stream.filesystem import LocalFileSystem
from cong.stream.journal import Frame, Journal, decode_frames, encode_frame
from cong.stream.names import JOURNAL
from cong.stream.recovery import Orphan, find_orphans
from tests.stream.streams import SMALL, disk_store, keys, read_keys, records

JOURNALLED = SMALL.model_copy(update={"has_journal": True})
NUM_RECORDS = 12


def scenario(disk: SimulatedDisk, settings: WriteSettings, acknowledged: list[str]) -> None:
    """A writer's whole life; keys are noted when they are acknowledged as local."""
    with StreamWriter(disk_store(disk), settings, "w") as writer:
        for number, record in enumerate(records(range(NUM_RECORDS))):
            level = "none" if number % 3 else "local"
            ack = writer.append(record, level)  # type: ignore[arg-type]
            assert ack.is_duplicate or ack.level == level
            if level == "local":
                acknowledged.append(record.key)
        writer.flush()
        acknowledged[:] = keys(range(NUM_RECORDS))


def num_operations(settings: WriteSettings) -> int:
    disk = SimulatedDisk()
    scenario(disk, settings, [])
    return len(disk.operations)


def crash_at(number: int) -> Callable[[int, str], None]:
    def fault(at: int, name: str) -> None:
        if at == number:
            raise Crashed(name)

    return fault


def fail_at(number: int, code: int) -> Callable[[int, str], None]:
    def fault(at: int, name: str) -> None:
        if at == number:
            raise OSError(code, os.strerror(code))

    return fault


@pytest.mark.parametrize("is_power_lost", [False, True], ids=["killed", "power"])
@pytest.mark.parametrize("settings", [SMALL, JOURNALLED], ids=["segments", "journal"])
def test_after_a_crash_at_any_operation_acknowledged_records_are_there(
    settings: WriteSettings, is_power_lost: bool
) -> None:
    for number in itertools.count():
        acknowledged: list[str] = []
        threads = {*threading.enumerate()}
        disk = SimulatedDisk(crash_at(number), shortest=7000)
        try:
            scenario(disk, settings, acknowledged)
        except (Crashed, StreamError):
            for thread in {*threading.enumerate()} - threads:
                # Nothing of a dead process may be at work when the machine is up again; an idle thread stays so.
                thread.join(0.05)
        else:
            # How many there are is the threads' affair: records that come close together are committed together.
            assert len(disk.operations) <= number
            break
        disk.restart(is_power_lost)
        store = disk_store(disk)
        successor = StreamWriter(store, settings, "w")
        assert successor.lane.epoch <= 2
        stored = read_keys(store)
        successor.close()
        # Every acknowledged record is there once; the others are whole or absent; nothing is damaged.
        assert set(acknowledged) <= set(stored), number
        assert len(stored) == len(set(stored)), number
        assert set(stored) <= set(keys(range(NUM_RECORDS))), number
        assert verify(store, (disk, f"{store.root}/{JOURNAL}")).problems == [], number
        # Whatever is made again is added once.
        scenario(disk, settings, [])
        assert sorted(read_keys(store)) == sorted(keys(range(NUM_RECORDS))), number
    assert number > 30


def test_a_record_that_is_acknowledged_as_a_duplicate_survives_too() -> None:
    # Its first writer may have died between the rename and the fsync of the folder.
    for number in range(num_operations(SMALL)):
        disk = SimulatedDisk(crash_at(number))
        with pytest.raises((Crashed, StreamError)):
            scenario(disk, SMALL, [])
        disk.restart(is_power_lost=False)
        store = disk_store(disk)
        writer = StreamWriter(store, SMALL, "other")
        seen = [record for record in records(range(NUM_RECORDS)) if record.key in set(read_keys(store))]
        acks = writer.append_many(seen, "local")
        assert all(ack.is_duplicate for ack in acks)
        writer.abandon()
        disk.crash()
        disk.restart(is_power_lost=True)
        assert {record.key for record in seen} <= set(read_keys(store)), number


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("settings", [SMALL, JOURNALLED], ids=["segments", "journal"])
def test_a_failing_operation_is_told_and_does_no_lasting_harm(settings: WriteSettings, code: int) -> None:
    total = num_operations(settings)
    told: list[str] = []
    for number in range(total):
        disk = SimulatedDisk(fail_at(number, code))
        store = disk_store(disk)
        acknowledged: list[str] = []
        for _ in range(3):
            # A caller that is told of an error tries again with the same keys.
            try:
                scenario(disk, settings, acknowledged)
                break
            except StreamError as error:
                told.append(str(error))
        else:
            pytest.fail(f"operation {number} failed once and was told three times")
        assert sorted(set(read_keys(store))) == sorted(keys(range(NUM_RECORDS))), number
        assert verify(store, (disk, f"{store.root}/{JOURNAL}")).problems == [], number
    assert len(told) > total // 3
    assert all(os.strerror(code) in message for message in told)


@pytest.mark.parametrize("settings", [SMALL, JOURNALLED], ids=["segments", "journal"])
def test_a_writer_recovers_when_a_full_disk_has_room_again(settings: WriteSettings) -> None:
    disk = SimulatedDisk()
    store = disk_store(disk)
    writer = StreamWriter(store, settings, "w")
    writer.append(records([0])[0], "local")
    disk.capacity = disk.num_bytes + 300
    for record in records(range(1, 4)):
        with pytest.raises(StreamError, match="No space left"):
            writer.append(record, "local")
    disk.capacity = None
    again = [writer.append(record, "local") for record in records(range(1, 6))]
    assert [ack.level for ack in again] == ["local"] * 5
    writer.close()
    assert sorted(read_keys(store)) == sorted(keys(range(6)))


def test_a_full_buffer_refuses_more_instead_of_growing() -> None:
    disk = SimulatedDisk()
    writer = StreamWriter(disk_store(disk), SMALL, "w")
    disk.capacity = disk.num_bytes
    refused: list[str] = []
    for record in records(range(20)):
        try:
            writer.append(record, timeout_s=0.01)
        except StreamError as error:
            refused.append(str(error))
    assert (writer.num_unsealed_rows, len(refused)) == (10, 10)
    assert all("wait to be stored" in message for message in refused)
    disk.capacity = None
    writer.close()
    assert sorted(read_keys(disk_store(disk))) == sorted(keys(range(10)))


def lose_power(disk: SimulatedDisk, writer: StreamWriter) -> None:
    disk.crash()
    with pytest.raises(Crashed):
        writer.abandon()
    disk.restart(is_power_lost=True)


def test_records_that_only_the_journal_holds_survive_their_process() -> None:
    disk = SimulatedDisk()
    store = disk_store(disk)
    writer = StreamWriter(store, JOURNALLED, "first")
    for record in records(range(4)):
        writer.append(record, "local")
    lose_power(disk, writer)
    assert list_stream(store).num_rows == 0
    with StreamWriter(store, JOURNALLED, "second"):
        assert read_keys(store) == keys(range(4))
    assert list_stream(store).is_ended()
    assert disk.names(f"{store.root}/{JOURNAL}") == []


def test_a_damaged_record_of_a_journal_is_named_and_the_others_are_kept() -> None:
    disk = SimulatedDisk()
    store = disk_store(disk)
    writer = StreamWriter(store, JOURNALLED, "first")
    for record in records(range(4)):
        writer.append(record, "local")
    (path,) = [path for path in disk.paths() if path.endswith(".wal")]
    lose_power(disk, writer)
    disk.flip(path, disk.read(path, 0, disk.size(path)).index(keys([2])[0].encode()))
    report = verify(store, (disk, f"{store.root}/{JOURNAL}"))
    assert ["of row 2 at byte" in problem.what for problem in report.problems] == [True]
    StreamWriter(store, JOURNALLED, "second").close()
    assert read_keys(store) == keys([0, 1, 3])
    assert [problem.path for problem in verify(store, (disk, f"{store.root}/{JOURNAL}")).problems] == [
        f"{path}.damaged"
    ]


def test_a_record_of_a_later_version_stays_in_its_journal_for_one_that_reads_it() -> None:
    disk = SimulatedDisk()
    store = disk_store(disk)
    writer = StreamWriter(store, JOURNALLED, "first")
    for record in records(range(3)):
        writer.append(record, "local")
    (path,) = [path for path in disk.paths() if path.endswith(".wal")]
    lose_power(disk, writer)
    frames = decode_frames(disk.read(path, 0, disk.size(path))).frames
    later = frames[1].payload.replace(b'"schema_version":1,', b'"schema_version":2,')
    disk.unlink(path)
    handle = disk.create(path)
    for frame in (frames[0], Frame(1, later), frames[2]):
        disk.write(handle, encode_frame(frame))
    disk.close(handle)
    StreamWriter(store, JOURNALLED, "second").close()
    assert read_keys(store) == keys([0, 2])
    assert later in disk.read(path, 0, disk.size(path))
    # Going back and forth between versions stores nothing twice, and in the end everything.
    handle = disk.create(f"{path}.new")
    for frame in frames:
        disk.write(handle, encode_frame(frame))
    disk.close(handle)
    disk.rename(f"{path}.new", path)
    StreamWriter(store, JOURNALLED, "third").close()
    assert read_keys(store, ReadSettings(is_deduplicated=False)) == keys([0, 2, 1])
    assert disk.names(f"{store.root}/{JOURNAL}") == []


def test_streams_may_share_the_folder_of_their_journals(tmp_path: Path) -> None:
    settings = JOURNALLED.model_copy(update={"journal_dir": str(tmp_path / "journal")})
    one, other = (open_store(str(tmp_path / name)) for name in ("one", "other"))
    writer = StreamWriter(one, settings, "w")
    for record in records(range(3)):
        writer.append(record, "local")
    writer.abandon()
    for name in ("w", "v"):
        with StreamWriter(other, settings, name):
            assert read_keys(other) == []
    journal = (LocalFileSystem(), settings.journal_dir)
    assert [verify(store, journal).num_journal_records for store in (one, other)] == [3, 0]
    assert verify(other, journal).is_sound
    StreamWriter(one, settings, "w").close()
    assert read_keys(one) == keys(range(3))


def test_a_journal_that_is_being_made_does_not_pass_for_a_dead_writers(tmp_path: Path) -> None:
    class Watched(LocalFileSystem):
        def create(self, path: str) -> int:
            handle = super().create(path)
            looked.append(find_orphans(LocalFileSystem(), os.path.dirname(path), ""))
            return handle

    looked: list[list[Orphan]] = []
    journal = Journal(Watched(), str(tmp_path), Lane("w", 1), "")
    journal.rotate()
    journal.close(is_clean=True)
    assert looked == [[], []]


def test_a_journal_that_cannot_be_made_leaves_no_file_and_no_handle(tmp_path: Path) -> None:
    class Failing(LocalFileSystem):
        is_failing = False

        def fsync_directory(self, path: str) -> None:
            if self.is_failing:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            super().fsync_directory(path)

    files = Failing()
    journal = Journal(files, str(tmp_path), Lane("w", 1), "")
    before = (sorted(os.listdir(tmp_path)), len(os.listdir("/proc/self/fd")))
    files.is_failing = True
    for _ in range(3):
        with pytest.raises(OSError, match="Input/output error"):
            journal.rotate()
    assert (sorted(os.listdir(tmp_path)), len(os.listdir("/proc/self/fd"))) == before
    files.is_failing = False
    journal.close(is_clean=True)
    assert os.listdir(tmp_path) == []


def grown() -> SimulatedDisk:
    disk = SimulatedDisk()
    with StreamWriter(disk_store(disk), SMALL, "w") as writer:
        for record in records(range(17)):
            writer.append(record)
            if record.key in keys([2, 3, 9]):
                writer.flush()
    return disk


@pytest.mark.parametrize("is_power_lost", [False, True], ids=["killed", "power"])
@pytest.mark.parametrize("job", ["compact", "retain"])
def test_stopping_compaction_or_retention_anywhere_changes_nothing_that_is_needed(
    job: str, is_power_lost: bool
) -> None:
    def work(disk: SimulatedDisk, cursor: Cursor) -> None:
        store = disk_store(disk)
        if job == "compact":
            compact(store, SMALL.model_copy(update={"rows_per_segment": 9}))
        else:
            retain(store, [cursor])

    def fresh() -> tuple[SimulatedDisk, Cursor]:
        disk = grown()
        drawn = StreamReader(disk_store(disk)).draw(8)
        assert drawn is not None
        return disk, drawn.cursor

    disk, cursor = fresh()
    before = len(disk.operations)
    work(disk, cursor)
    total = len(disk.operations) - before
    assert total >= 4
    for number in range(total):
        disk, cursor = fresh()
        store = disk_store(disk)
        disk.fault = crash_at(len(disk.operations) + number)
        with pytest.raises(Crashed):
            work(disk, cursor)
        disk.restart(is_power_lost)
        assert verify(store).problems == [], number
        assert read_keys(store, cursor=cursor) == keys(range(8, 17)), number
        work(disk, cursor)
        assert read_keys(store, cursor=cursor) == keys(range(8, 17)), number
        assert verify(store).num_leftovers == 0 or job == "retain", number
