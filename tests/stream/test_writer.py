"""Writers: what an acknowledgement means, one record per key, one owner per identity, and who is told what."""

import errno
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import pytest

from cong.config.stream import ReadSettings, WriteSettings
from cong.errors import StreamError, StreamFenced
from cong.lab.disk import SimulatedDisk
from cong.stream import Ack, Lane, StreamReader, StreamWriter, list_stream, require_place, retain, verify
from cong.stream.filesystem import LocalFileSystem
from cong.stream.identity import read_identity
from cong.stream.names import JOURNAL, SEGMENTS, WRITERS
from cong.stream.store import LocalStore, open_store
from tests.stream.streams import SMALL, cached_record, disk_store, folder_store, keys, read_keys, records, write

JOURNALLED = SMALL.model_copy(update={"has_journal": True})


@pytest.fixture
def disk() -> SimulatedDisk:
    return SimulatedDisk()


def test_a_reply_names_the_level_that_was_reached(disk: SimulatedDisk) -> None:
    first, second, third = records(range(3))
    with StreamWriter(disk_store(disk), SMALL, "w") as writer:
        lane = Lane("w", 1)
        assert writer.append(first) == Ack(first.key, "none", lane, 0, is_duplicate=False)
        assert list_stream(disk_store(disk)).num_rows == 0
        assert writer.append(second, "local") == Ack(second.key, "local", lane, 1, is_duplicate=False)
        assert list_stream(disk_store(disk)).num_rows == 2
        with pytest.raises(StreamError, match="not 'shared'; write to an object store, or set is_shared"):
            writer.append(third, "shared")
    with StreamWriter(LocalStore("/stream", disk, is_shared=True), SMALL, "w") as writer:
        assert writer.append(third, "shared").level == "shared"


def test_a_journal_acknowledges_before_the_segment(disk: SimulatedDisk) -> None:
    with StreamWriter(disk_store(disk), JOURNALLED, "w") as writer:
        assert writer.append(cached_record(0), "local").level == "local"
        assert list_stream(disk_store(disk)).num_rows == 0
        assert writer.append(cached_record(0), "local").is_duplicate
        writer.flush()
        assert list_stream(disk_store(disk)).num_rows == 1
    assert disk.names(f"/stream/{JOURNAL}") == []


@pytest.mark.parametrize("settings", [SMALL, JOURNALLED], ids=["segments", "journal"])
def test_the_same_key_twice_is_one_record(disk: SimulatedDisk, settings: WriteSettings) -> None:
    store = disk_store(disk)
    with StreamWriter(store, settings, "w") as writer:
        acks = writer.append_many([*records(range(7)), *records(range(7))], "local")
        assert [ack.is_duplicate for ack in acks] == [False] * 7 + [True] * 7
        assert [ack.row for ack in acks] == [*range(7), *range(7)]
        assert writer.num_duplicates == 7
    with StreamWriter(store, settings, "another") as writer:
        again = writer.append(cached_record(3), "local")
        assert again == Ack(keys([3])[0], "local", Lane("w", 1), 3, is_duplicate=True)
        assert writer.missing(keys(range(5, 9))) == keys([7, 8])
    assert read_keys(store, ReadSettings(is_deduplicated=False)) == keys(range(7))


def test_a_key_stored_by_another_process_meanwhile_is_found(disk: SimulatedDisk) -> None:
    store = disk_store(disk)
    with StreamWriter(store, SMALL, "first") as writer:
        assert writer.find(keys([1])[0]) is None
        write(store, range(3), "second")
        assert writer.find(keys([1])[0]) == (Lane("second", 1), 1)
        assert writer.append(cached_record(1), "local").is_duplicate


def test_segments_are_sealed_by_rows_by_bytes_by_age_and_on_shutdown(disk: SimulatedDisk) -> None:
    store = disk_store(disk)

    def sealed(settings: WriteSettings, num_records: int, *, one_by_one: bool = False) -> list[int]:
        twin = SimulatedDisk()
        with StreamWriter(disk_store(twin), settings, "w") as writer:
            for record in records(range(num_records)):
                writer.append(record)
                until_s = time.monotonic() + 60.0
                while one_by_one and writer.num_unsealed_rows:
                    assert time.monotonic() < until_s
                    time.sleep(0.001)
        return [segment.num_rows for segment in list_stream(disk_store(twin)).segments]

    assert sealed(SMALL, 12) == [5, 5, 2]
    assert sealed(SMALL.model_copy(update={"bytes_per_segment": 1}), 3) == [1, 1, 1]
    assert sealed(SMALL.model_copy(update={"max_age_s": 0.01}), 3, one_by_one=True) == [1, 1, 1]
    writer = StreamWriter(store, SMALL, "w")
    writer.append(cached_record(0))
    writer.abandon()
    assert list_stream(store).num_rows == 0


def test_threads_share_a_writer_and_its_fsyncs(disk: SimulatedDisk) -> None:
    writer = StreamWriter(disk_store(disk), JOURNALLED.model_copy(update={"rows_per_segment": 200}), "w")
    before = disk.operations.count("fsync")
    acks: list[Ack] = []
    disk.fault = lambda number, name: time.sleep(0.002) if name == "fsync" else None
    threads = [
        threading.Thread(target=lambda part=part: acks.extend(writer.append_many(records(part), "local")))
        for part in (range(start, start + 20) for start in range(0, 160, 20))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(ack.row for ack in acks) == list(range(160))
    assert disk.operations.count("fsync") - before < 100
    writer.close()
    assert sorted(read_keys(disk_store(disk))) == sorted(keys(range(160)))


def test_submitting_does_not_wait_and_the_future_brings_the_acknowledgement(disk: SimulatedDisk) -> None:
    with StreamWriter(disk_store(disk), JOURNALLED, "w") as writer:
        futures = [writer.submit(record) for record in records([0, 1, 1])]
        assert not futures[0].cancel()
        assert [future.result(10).is_duplicate for future in futures] == [False, False, True]
        assert writer.submit(cached_record(2), "none").result(0).level == "none"


@pytest.mark.parametrize("settings", [SMALL, JOURNALLED], ids=["segments", "journal"])
def test_of_two_processes_with_one_identity_the_older_is_fenced_loudly(
    disk: SimulatedDisk, settings: WriteSettings
) -> None:
    store = disk_store(disk)
    older = StreamWriter(store, settings, "w")
    older.append_many(records(range(3)), "local")
    newer = StreamWriter(store, settings, "w")
    assert (older.lane.epoch, newer.lane.epoch) == (1, 2)
    waiting: Future[Ack] = older.submit(cached_record(3), "local")
    with pytest.raises(StreamFenced, match="was claimed by another process, which has epoch 2"):
        older.flush()
    older._thread.join(10.0)
    assert not older._thread.is_alive(), "nothing of it goes on"
    if settings.has_journal:
        assert waiting.result(10).level == "local"
    else:
        with pytest.raises(StreamFenced):
            waiting.result(10)
    with pytest.raises(StreamFenced):
        older.append(cached_record(4))
    with pytest.raises(StreamFenced):
        older.close()
    older.abandon()
    newer.append(cached_record(5), "local")
    newer.close()
    # What the fenced one had acknowledged is carried on by the next to open.
    StreamWriter(store, settings, "w").close()
    numbers = [0, 1, 2, 3, 5] if settings.has_journal else [0, 1, 2, 5]
    assert sorted(read_keys(store)) == sorted(keys(numbers))


def test_epochs_of_one_identity_are_claimed_once_even_at_the_same_moment(tmp_path: Path) -> None:
    epochs: list[int] = []

    def open_and_leave() -> None:
        writer = StreamWriter(folder_store(tmp_path), SMALL, "w")
        epochs.append(writer.lane.epoch)
        writer.abandon()

    threads = [threading.Thread(target=open_and_leave) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(epochs) == list(range(1, 9))


def test_wall_clocks_have_no_influence(disk: SimulatedDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    store = disk_store(disk)
    clock = iter(range(10**9, 0, -(10**6)))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    for epoch in range(3):
        write(store, range(epoch * 4, epoch * 4 + 4))
    assert read_keys(store) == keys(range(12))


@pytest.mark.parametrize("writer_id", ["", "-a", "a/b", "a b", "x" * 65, "ä"])
def test_an_identity_that_is_no_file_name_is_refused(disk: SimulatedDisk, writer_id: str) -> None:
    if writer_id:
        with pytest.raises(StreamError, match="must match"):
            StreamWriter(disk_store(disk), SMALL, writer_id)
    else:
        one, other = (StreamWriter(disk_store(disk), SMALL) for _ in range(2))
        assert one.lane.writer != other.lane.writer


def test_a_place_that_takes_no_file_is_told_by_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(tmp_path / "stream"))

    def refuse(*_: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(LocalFileSystem, "create", refuse)
    with pytest.raises(
        StreamError, match=rf"^cannot write into {tmp_path}/stream: Read-only file system; give a place"
    ):
        require_place(store, WriteSettings(), "w")


@pytest.mark.parametrize("location", ["{}/stream", "memory://place"])
def test_a_place_is_tried_without_a_claim_and_without_a_trace(tmp_path: Path, location: str) -> None:
    store = open_store(location.format(tmp_path))
    settings = WriteSettings(has_journal=True, journal_dir=str(tmp_path / "journal"))
    for _ in range(2):
        require_place(store, settings, "w")
        assert not [*store.names(WRITERS), *store.names(SEGMENTS), *(tmp_path / "journal").iterdir()]
        assert read_identity(store) is None
    with StreamWriter(store, settings, "w") as writer:
        require_place(store, settings, "w")
        writer.append(records([1])[0], "local")
    assert verify(store).is_sound


def test_a_closed_writer_takes_nothing(disk: SimulatedDisk) -> None:
    writer = StreamWriter(disk_store(disk), SMALL, "w")
    writer.close()
    writer.close()
    with pytest.raises(StreamError, match="is closed; open a new one"):
        writer.append(cached_record(0))


def test_what_comes_while_a_writer_closes_is_refused_and_leaves_no_gap(disk: SimulatedDisk) -> None:
    store = disk_store(disk)
    writer = StreamWriter(store, SMALL, "w")
    writer.append(cached_record(0))
    refused: list[str] = []

    def late(folder: str) -> list[str]:
        # The last look at the claims, when everything is stored and the marker is not.
        if folder == WRITERS and not writer.num_unsealed_rows and not refused:
            with pytest.raises(StreamError) as told:
                writer.append(cached_record(1))
            refused.append(str(told.value))
        return LocalStore.names(store, folder)

    store.names = late  # type: ignore[method-assign]
    writer.close()
    assert refused == ["the writer w-000001 is closed; open a new one"]
    assert verify(disk_store(disk)).is_sound
    assert read_keys(disk_store(disk)) == keys([0])


@pytest.mark.parametrize("protocol", ["file", "local"])
def test_a_url_of_a_folder_is_that_folder(tmp_path: Path, protocol: str) -> None:
    store = open_store(f"{protocol}://{tmp_path}/a stream")
    assert store.level == "local"
    write(store, range(5))
    assert read_keys(open_store(f"{tmp_path}/a stream")) == keys(range(5))


def test_a_vanished_folder_is_told(tmp_path: Path) -> None:
    store = folder_store(tmp_path)
    writer = StreamWriter(store, SMALL, "w")
    (tmp_path / "stream" / "segments").rmdir()
    with pytest.raises(StreamError, match="No such file"):
        writer.append(cached_record(0), "local")
    writer.abandon()


def test_retention_removes_only_what_every_checkpoint_has_passed(disk: SimulatedDisk) -> None:
    store = disk_store(disk)
    write(store, range(23))
    reader = StreamReader(store)
    first, second = reader.draw(7), reader.draw(9)
    assert first is not None
    assert second is not None
    with pytest.raises(StreamError, match="at least one committed checkpoint"):
        retain(store, [])
    fresh = StreamReader(store).cursor
    assert retain(store, [second.cursor, fresh]).segments == ()
    would = retain(store, [first.cursor, second.cursor], is_dry_run=True)
    assert list_stream(store).num_rows == 23
    done = retain(store, [first.cursor, second.cursor])
    assert done == would
    assert done.num_rows == 5
    assert read_keys(store, cursor=first.cursor) == keys(range(7, 23))
    assert read_keys(store, cursor=second.cursor) == keys(range(16, 23))


def test_a_cursor_older_than_what_was_removed_is_refused_by_name(disk: SimulatedDisk) -> None:
    store = disk_store(disk)
    write(store, range(12), is_closed=False)
    reader = StreamReader(store)
    early = reader.draw(3)
    assert early is not None
    late = reader.draw(9)
    assert late is not None
    assert retain(store, [late.cursor]).num_rows == 12
    assert list_stream(store).gaps == []
    with pytest.raises(StreamError, match="row 3 of w-000001 was removed by retention"):
        StreamReader(store, None, early.cursor).draw(1)
    # The key is forgotten with its row, and a writer's numbers go on.
    with StreamWriter(store, SMALL, "w") as writer:
        assert not writer.append(cached_record(0), "local").is_duplicate
    assert read_keys(store, cursor=late.cursor) == keys([0])


def test_a_process_that_ends_without_closing_stores_what_it_was_handed(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from cong.lab.records import synthetic_record\n"
        "from cong.stream import StreamWriter, open_store\n"
        "writer = StreamWriter(open_store(sys.argv[1]), writer_id='w')\n"
        "writer.append(synthetic_record(0))\n"
    )
    store = folder_store(tmp_path)
    subprocess.run([sys.executable, "-c", program, store.root], check=True, timeout=120)
    assert read_keys(store) == keys([0])
    assert list_stream(store).is_ended()


def test_looking_for_keys_forces_to_disk_only_what_others_have_published_since(disk: SimulatedDisk) -> None:
    def num_forced_by_a_look(missing: range) -> int:
        before = disk.operations.count("fsync_directory")
        assert writer.missing(keys(range(9))) == keys(missing)
        return disk.operations.count("fsync_directory") - before

    with StreamWriter(disk_store(disk), SMALL, "w") as writer:
        writer.append_many(records(range(5)), "local")
        assert num_forced_by_a_look(range(5, 9)) == 0
        write(disk_store(disk), range(5, 7), "other")
        assert num_forced_by_a_look(range(7, 9)) > 0
        assert num_forced_by_a_look(range(7, 9)) == 0


class _Failing(LocalStore):
    """A folder into which no segment can be put for a while."""

    is_down = False

    def publish(self, path: str, data: bytes) -> None:
        if self.is_down:
            raise StreamError("the store is down")
        super().publish(path, data)


def test_a_store_that_fails_is_told_to_those_who_wait_for_segments_alone(
    disk: SimulatedDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cong.stream.writer._RETRY_S", 3600.0)
    store = _Failing("/stream", disk, is_shared=True)
    with StreamWriter(store, JOURNALLED, "w") as writer:
        store.is_down = True
        shared = writer.submit(records([0])[0], "shared")
        # A segment is full with the fifth; none of them waits until the store is tried again.
        assert [writer.append(record, "local").level for record in records(range(1, 9))] == ["local"] * 8
        with pytest.raises(StreamError, match="the store is down"):
            shared.result(60.0)
        with pytest.raises(StreamError, match="the store is down"):
            writer.flush()
        store.is_down = False
    assert read_keys(store) == keys(range(9))


def test_a_journal_that_fails_is_told_to_those_who_wait_for_it_alone(
    disk: SimulatedDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cong.stream.writer._RETRY_S", 3600.0)
    journals = SimulatedDisk()
    writer = StreamWriter(disk_store(disk), JOURNALLED, "w", journal_files=journals)

    def fail(number: int, name: str) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    journals.fault = fail
    with pytest.raises(StreamError, match="nothing was acknowledged"):
        writer.append(records([0])[0], "local")
    writer.append(records([1])[0])
    writer.flush()
    journals.fault = lambda number, name: None
    writer.close()
    assert read_keys(disk_store(disk)) == keys(range(2))


class _Counting(LocalStore):
    """A folder that counts how often its segments are listed."""

    num_listings = 0

    def names(self, folder: str) -> list[str]:
        self.num_listings += folder == SEGMENTS
        return super().names(folder)


def test_a_segment_that_is_lost_for_good_is_waited_for_once(disk: SimulatedDisk) -> None:
    write(disk_store(disk), range(15), "other")
    disk.unlink(next(path for path in disk.paths() if "-00000001-00000001-" in path))
    store = _Counting("/stream", disk)
    with StreamWriter(store, SMALL, "w") as writer:
        store.num_listings = 0
        assert writer.missing(keys(range(15))) == keys(range(5, 10))
        assert store.num_listings == 1


def test_what_others_store_is_listed_again_only_after_its_time_and_never_taken_twice(disk: SimulatedDisk) -> None:
    patient = SMALL.model_copy(update={"relist_s": 3600.0})
    with (
        StreamWriter(disk_store(disk), patient, "patient") as writer,
        StreamWriter(disk_store(disk), SMALL, "w") as at_once,
    ):
        write(disk_store(disk), range(3), "other")
        assert at_once.missing(keys(range(5))) == keys(range(3, 5))
        listed = len([name for name in disk.operations if name.startswith("fsync_directory")])
        assert writer.missing(keys(range(5))) == keys(range(5)), "the list of an hour ago"
        assert len([name for name in disk.operations if name.startswith("fsync_directory")]) == listed
        writer.append_many(records(range(2, 5)), "local")
        assert writer.missing(keys(range(5))) == keys(range(2)), "its own it knows"
    assert sorted(read_keys(disk_store(disk))) == sorted(keys(range(5))), "a reader takes each once"
