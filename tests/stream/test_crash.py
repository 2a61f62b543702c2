"""Bad days of the disk: a hard exit at every numbered operation, loss of power, short writes, no space, errors."""

import errno
import itertools
import os
from collections.abc import Callable

import pytest

from cong.config.stream import WriteSettings
from cong.errors import StreamError
from cong.lab.disk import Crashed, SimulatedDisk
from cong.stream import Cursor, StreamReader, StreamWriter, compact, list_stream, retain, verify
from cong.stream.names import JOURNAL
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
        disk = SimulatedDisk(crash_at(number), shortest=7000)
        try:
            scenario(disk, settings, acknowledged)
        except (Crashed, StreamError):
            pass
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
