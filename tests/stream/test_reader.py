"""Cursors: exact, stated order, any world size, shuffled or filtered, while the stream grows or after it ended."""

import itertools
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cong.config.stream import FollowSettings, ReadSettings, SampleFilter
from cong.errors import StreamCorrupt, StreamError
from cong.lab.disk import SimulatedDisk
from cong.schemas import SampleRecord
from cong.stream import Cursor, Draw, Lane, StreamReader, StreamWriter, compact, retain, verify
from cong.stream.cursor import split_spans, window_order
from cong.stream.filesystem import Entry
from cong.stream.listing import Span
from cong.stream.store import LocalStore
from tests.stream.streams import SMALL, cached_record, disk_store, flat, folder_store, keys, read_keys, records, write

SHUFFLED = ReadSettings(shuffle_rows=7, shuffle_seed=5)
FILTERED = ReadSettings(shuffle_rows=4, filter=SampleFilter(finish_reasons=("stop",)))
WHOLE = SMALL.model_copy(update={"rows_per_segment": 100})
ORDERS = [ReadSettings(), SHUFFLED, FILTERED]


def three_writers(disk: SimulatedDisk) -> None:
    store = disk_store(disk)
    write(store, range(20, 33), "b")
    write(store, range(13), "a")
    # Rows 5 to 12 of writer a come again: another process made them too.
    twin = SimulatedDisk()
    write(disk_store(twin), [*range(5, 13), 40], "c")
    for path in twin.paths():
        if "/c-" in path:
            handle = disk.create(path)
            disk.write(handle, twin.read(path, 0, twin.size(path)))


@pytest.fixture(scope="module")
def disk() -> SimulatedDisk:
    made = SimulatedDisk()
    three_writers(made)
    return made


def test_a_finished_stream_is_read_by_writer_epoch_and_row_and_each_key_once(disk: SimulatedDisk) -> None:
    assert read_keys(disk_store(disk)) == keys([*range(13), *range(20, 33), 40])


def test_duplicates_are_kept_when_asked_for(disk: SimulatedDisk) -> None:
    everything = ReadSettings(is_deduplicated=False)
    assert read_keys(disk_store(disk), everything) == keys([*range(13), *range(20, 33), *range(5, 13), 40])


def test_shuffling_permutes_within_windows_only_and_is_repeatable(disk: SimulatedDisk) -> None:
    store = disk_store(disk)
    plain = read_keys(store, ReadSettings(is_deduplicated=False))
    shuffled = read_keys(store, ReadSettings(is_deduplicated=False, shuffle_rows=7, shuffle_seed=5))
    assert shuffled != plain
    for start in range(0, len(plain), 7):
        assert sorted(shuffled[start : start + 7]) == sorted(plain[start : start + 7])
    assert shuffled != read_keys(store, ReadSettings(is_deduplicated=False, shuffle_rows=7, shuffle_seed=6))
    assert read_keys(store, SHUFFLED, batch=4) == read_keys(store, SHUFFLED, batch=9)


@pytest.mark.parametrize("order", ORDERS)
def test_a_reader_stopped_after_any_batch_goes_on_as_if_it_had_not(disk: SimulatedDisk, order: ReadSettings) -> None:
    store = disk_store(disk)
    unbroken = read_keys(store, order)
    cursor: Cursor | None = None
    broken: list[str] = []
    for size in itertools.cycle([1, 4, 2]):
        reader = StreamReader(store, order, cursor)
        drawn = reader.draw(size)
        if drawn is None:
            break
        broken += reader.fetch(drawn, ["key"]).column("key").to_pylist()
        cursor = Cursor.from_json(drawn.cursor.to_json())
        assert cursor == drawn.cursor
        assert cursor.num_records == len(broken)
    assert broken == unbroken


@settings(max_examples=12, deadline=None)
@given(
    worlds=st.lists(st.integers(1, 5), min_size=1, max_size=6), size=st.integers(1, 9), order=st.sampled_from(ORDERS)
)
def test_any_sequence_of_world_sizes_reads_each_record_once_in_the_same_order(
    disk: SimulatedDisk, worlds: list[int], size: int, order: ReadSettings
) -> None:
    store = disk_store(disk)
    cursor: Cursor | None = None
    read: list[str] = []
    for world_size in itertools.cycle(worlds):
        ranks = [StreamReader(store, order, cursor) for _ in range(world_size)]
        draws = [reader.draw(size) for reader in ranks]
        if draws[0] is None:
            assert draws == [None] * world_size
            break
        shares: list[list[str]] = []
        for rank, (reader, drawn) in enumerate(zip(ranks, draws, strict=True)):
            assert drawn is not None
            assert drawn.cursor == draws[0].cursor
            share = drawn.share(rank, world_size)
            shares.append(reader.fetch(share, ["key"]).column("key").to_pylist() if len(share) else [])
        read += [key for row in itertools.zip_longest(*shares) for key in row if key is not None]
        cursor = draws[0].cursor
    assert read == read_keys(store, order)


def test_a_draw_can_be_sent_to_ranks_that_do_not_decide(disk: SimulatedDisk) -> None:
    decider, follower = (StreamReader(disk_store(disk), SHUFFLED) for _ in range(2))
    drawn = decider.draw(11)
    assert drawn is not None
    sent = Draw.from_json(drawn.to_json())
    assert follower.fetch(sent).equals(decider.fetch(drawn))
    assert sent.cursor == drawn.cursor


def test_filters_are_kept_and_a_changed_one_is_refused(disk: SimulatedDisk) -> None:
    store = disk_store(disk)
    assert read_keys(store, ReadSettings(filter=FILTERED.filter)) == [
        key for key in read_keys(store) if key not in keys(range(3, 43, 4))
    ]
    drawn = StreamReader(store, FILTERED).draw(2)
    assert drawn is not None
    with pytest.raises(StreamError, match=r"another order or filter: filter was .*'stop'"):
        StreamReader(store, SHUFFLED, drawn.cursor)


def rewards(record: SampleRecord) -> float:
    assert record.implicit_reward_mean is not None
    return record.implicit_reward_mean


@pytest.mark.parametrize(
    ("wanted", "passes"),
    [
        (SampleFilter(min_reward_mean=0.0), lambda record: rewards(record) >= 0.0),
        (SampleFilter(max_reward_mean=-0.1), lambda record: rewards(record) <= -0.1),
        (SampleFilter(kinds=("plain",)), lambda record: False),
        (SampleFilter(min_tokens=9), lambda record: False),
        (SampleFilter(min_tokens=8, max_tokens=8), lambda record: True),
    ],
)
def test_each_filter_agrees_with_a_look_at_whole_records(disk: SimulatedDisk, wanted: SampleFilter, passes) -> None:  # type: ignore[no-untyped-def]
    everything = StreamReader(disk_store(disk)).records()
    expected = [record.key for record in everything if passes(record)]
    assert read_keys(disk_store(disk), ReadSettings(filter=wanted)) == expected


def test_a_cursor_of_another_stream_is_refused(disk: SimulatedDisk, tmp_path: Path) -> None:
    drawn = StreamReader(disk_store(disk)).draw(1)
    assert drawn is not None
    write(folder_store(tmp_path), range(3))
    with pytest.raises(StreamError, match="belongs to stream"):
        StreamReader(folder_store(tmp_path), None, drawn.cursor)
    with pytest.raises(StreamError, match="holds no stream"):
        StreamReader(disk_store(SimulatedDisk()))


@pytest.mark.parametrize("text", ["", "{}", '{"version": 2}', "[1]", pytest.param("[" * 100_000, id="deep")])
def test_what_is_no_cursor_is_refused(text: str) -> None:
    with pytest.raises(StreamError, match="not a stream cursor"):
        Cursor.from_json(text)


def test_a_cursor_stays_true_when_the_stream_is_compacted_meanwhile() -> None:
    disk = SimulatedDisk()
    three_writers(disk)
    store = disk_store(disk)
    expected = read_keys(store, SHUFFLED)
    reader = StreamReader(store, SHUFFLED)
    first = reader.draw(10)
    assert first is not None
    read = reader.fetch(first, ["key"]).column("key").to_pylist()
    compact(store, WHOLE)
    read += flat(table.column("key").to_pylist() for table, _ in reader.tables(4, ["key"]))
    assert read == expected
    assert read_keys(store, SHUFFLED, first.cursor) == expected[10:]


@pytest.mark.parametrize("on_damage", ["error", "skip"])
def test_a_reader_goes_on_when_files_that_it_has_not_opened_yet_are_compacted_away(on_damage: str) -> None:
    store = disk_store(SimulatedDisk())
    write(store, range(100))  # more segments than a reader holds open
    order = SHUFFLED.model_copy(update={"on_damage": on_damage})
    expected = read_keys(store, order)
    reader = StreamReader(store, order)
    first = reader.draw(10)
    assert first is not None
    read = reader.fetch(first, ["key"]).column("key").to_pylist()
    compact(store, WHOLE)
    read += flat(table.column("key").to_pylist() for table, _ in reader.tables(4, ["key"]))
    assert read == expected
    assert reader.cursor.skipped == ()


class _Overtaken(LocalStore):
    """A stream that another compaction goes through while the first one publishes."""

    def publish(self, path: str, data: bytes) -> None:
        compact(LocalStore(self.root, self.files), WHOLE)
        super().publish(path, data)


def test_compaction_looks_at_sizes_once_for_all_writers(monkeypatch: pytest.MonkeyPatch) -> None:
    store = disk_store(SimulatedDisk())
    for name in "abcd":
        write(store, range(12), name)
    looked: list[str] = []
    entries = LocalStore.entries

    def noted(self: LocalStore, folder: str) -> list[Entry]:
        looked.append(folder)
        return entries(self, folder)

    monkeypatch.setattr(LocalStore, "entries", noted)
    compact(store)
    assert looked == ["segments"]


def test_a_compaction_that_another_one_overtakes_says_so_and_loses_nothing() -> None:
    disk = SimulatedDisk()
    three_writers(disk)
    expected = read_keys(disk_store(disk))
    with pytest.raises(StreamError, match=r"is gone: another compaction .* run this one again"):
        compact(_Overtaken("/stream", disk), WHOLE)
    assert read_keys(disk_store(disk)) == expected


def test_a_retention_that_overtakes_a_compaction_leaves_a_sound_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = SimulatedDisk()
    store = disk_store(disk)
    write(store, range(40))
    reader = StreamReader(store)
    reader.draw(12)
    publish = LocalStore.publish

    def overtaken(self: LocalStore, path: str, data: bytes) -> None:
        if path.endswith(".parquet"):
            # What is to be merged has been read.
            assert retain(disk_store(disk), [reader.cursor]).num_rows == 10
        publish(self, path, data)

    monkeypatch.setattr(LocalStore, "publish", overtaken)
    compact(store)
    monkeypatch.undo()
    assert verify(store).is_sound
    assert read_keys(store, None, reader.cursor) == keys(range(12, 40))
    assert read_keys(store)[-30:] == keys(range(10, 40))
    passed = StreamReader(store)
    passed.draw(40)
    retain(store, [passed.cursor])
    assert verify(store).is_sound
    assert read_keys(store, None, passed.cursor) == []


def test_late_rows_of_any_writer_are_read_after_what_was_admitted() -> None:
    disk = SimulatedDisk()
    store = disk_store(disk)
    writer = StreamWriter(store, SMALL, "z")
    writer.append_many(records(range(5)), "local")
    drawn = StreamReader(store).draw(2)
    assert drawn is not None
    write(store, range(10, 14), "a")
    writer.append_many(records(range(5, 8)), "local")
    # The rest of the round comes first, in its own order; then the next round: writer a before writer z.
    assert read_keys(store, cursor=drawn.cursor) == keys([2, 3, 4, 10, 11, 12, 13, 5, 6, 7])
    writer.close()


def test_following_ends_when_every_writer_has_closed(tmp_path: Path) -> None:
    store = folder_store(tmp_path)
    read: list[str] = []

    def follow() -> None:
        wanted = ReadSettings(follow=FollowSettings(poll_s=0.01, idle_timeout_s=30.0))
        read.extend(read_keys(folder_store(tmp_path), wanted))

    reader = threading.Thread(target=follow)
    reader.start()
    with StreamWriter(store, SMALL, "w") as writer:
        for record in records(range(23)):
            writer.append(record)
            time.sleep(0.002)
    reader.join(30)
    assert not reader.is_alive()
    assert read == keys(range(23))


def test_following_ends_without_news_and_after_enough_records() -> None:
    disk = SimulatedDisk()
    write(disk_store(disk), range(12), is_closed=False)
    quick = FollowSettings(poll_s=0.01, idle_timeout_s=0.05)
    assert read_keys(disk_store(disk), ReadSettings(follow=quick)) == keys(range(12))
    assert read_keys(disk_store(disk), ReadSettings(follow=quick, shuffle_rows=100)) != keys(range(12))
    endless = FollowSettings(idle_timeout_s=1e6)
    assert read_keys(disk_store(disk), ReadSettings(follow=endless, max_records=7), batch=5) == keys(range(7))


def damaged_disk() -> SimulatedDisk:
    """Three segments of writer w; the middle one has a flipped bit in its first group, rows 5 and 6."""
    disk = SimulatedDisk()
    write(disk_store(disk), range(15))
    path = next(path for path in disk.paths() if "-00000001-00000001-" in path)
    disk.flip(path, 50)
    return disk


@pytest.mark.parametrize("order", [ReadSettings(), SHUFFLED], ids=["ordered", "shuffled"])
def test_damage_stops_a_reader_and_can_be_passed_only_loudly(
    order: ReadSettings, caplog: pytest.LogCaptureFixture
) -> None:
    store = disk_store(damaged_disk())
    with pytest.raises(StreamCorrupt, match=r"rows 5 to 6 of w-000001.*on_damage=skip"):
        read_keys(store, order)
    reader = StreamReader(store, order.model_copy(update={"on_damage": "skip"}))
    read = flat(table.column("key").to_pylist() for table, _ in reader.tables(4))
    assert sorted(read) == sorted(keys([*range(5), *range(7, 15)]))
    assert reader.cursor.skipped == (Span(Lane("w", 1), 5, 7),)
    assert "rows 5 to 6 of w-000001" in caplog.text


def test_a_missing_segment_stops_a_reader_and_is_named() -> None:
    disk = SimulatedDisk()
    write(disk_store(disk), range(15))
    disk.unlink(next(path for path in disk.paths() if "-00000001-00000001-" in path))
    with pytest.raises(StreamCorrupt, match="rows 5 to 9 of w-000001 should be there"):
        read_keys(disk_store(disk))
    skipping = ReadSettings(on_damage="skip")
    assert read_keys(disk_store(disk), skipping) == keys([*range(5), *range(10, 15)])


def test_a_missing_last_segment_of_a_closed_writer_is_noticed() -> None:
    disk = SimulatedDisk()
    write(disk_store(disk), range(15))
    disk.unlink(next(path for path in disk.paths() if "-00000002-00000002-" in path))
    with pytest.raises(StreamCorrupt, match="rows 10 to 14 of w-000001 should be there"):
        read_keys(disk_store(disk))
    reader = StreamReader(disk_store(disk), ReadSettings(on_damage="skip"))
    assert flat(table.column("key").to_pylist() for table, _ in reader.tables(4)) == keys(range(10))
    assert reader.cursor.skipped == (Span(Lane("w", 1), 10, 15),)


@pytest.mark.parametrize("is_retained", [False, True], ids=["lost", "retained"])
@pytest.mark.parametrize("order", [ReadSettings(), SHUFFLED], ids=["stated", "shuffled"])
def test_rows_that_go_after_they_were_admitted_are_skipped_without_their_neighbours(
    order: ReadSettings, is_retained: bool
) -> None:
    disk = SimulatedDisk()
    store = disk_store(disk)
    write(store, range(30))
    skipping = order.model_copy(update={"on_damage": "skip"})
    cursor = StreamReader(store, skipping).admit()
    if is_retained:
        passed = StreamReader(store)
        passed.draw(12)
        assert retain(store, [passed.cursor]).num_rows == 10
    else:
        disk.unlink(next(path for path in disk.paths() if "-00000002-00000002-" in path))
    left = range(10, 30) if is_retained else [*range(10), *range(15, 30)]
    assert sorted(read_keys(store, skipping, cursor)) == sorted(keys(left))


def test_lost_then_stored_again_elsewhere_is_read() -> None:
    disk = damaged_disk()
    store = disk_store(disk)
    twin = SimulatedDisk()
    write(disk_store(twin), range(4, 8), "x")
    for path in twin.paths():
        if "/x-" in path:
            handle = disk.create(path)
            disk.write(handle, twin.read(path, 0, twin.size(path)))
    read = read_keys(store, ReadSettings(on_damage="skip"))
    assert read == keys([*range(5), *range(7, 15), 5, 6])


def test_orders_of_windows_are_fixed_for_ever() -> None:
    # A change breaks every shuffled cursor in a checkpoint, so: known numbers, and the rule again in plain integers.
    assert window_order(8, 0, 1, is_shuffled=True).tolist() == [4, 5, 0, 6, 3, 1, 2, 7]
    start = splitmix(splitmix(12) ^ 34)
    by_hash = sorted(range(100), key=lambda place: splitmix((start + place) % 2**64))
    assert window_order(100, 12, 34, is_shuffled=True).tolist() == by_hash
    assert window_order(3, 9, 9, is_shuffled=False).tolist() == [0, 1, 2]
    assert sorted(window_order(1000, 3, 2, is_shuffled=True).tolist()) == list(range(1000))
    assert not np.array_equal(window_order(50, 3, 2, True), window_order(50, 3, 3, True))


def splitmix(value: int) -> int:
    """The finalizer of splitmix64 (Steele, Lea, Flood 2014)."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
    return value ^ (value >> 31)


@given(st.lists(st.integers(1, 5), max_size=5), st.integers(0, 20))
def test_splitting_spans_loses_no_row(lengths: list[int], num_rows: int) -> None:
    spans = [Span(Lane("w", epoch), 3, 3 + length) for epoch, length in enumerate(lengths)]
    head, tail = split_spans(spans, num_rows)
    rows = [(span.lane, row) for span in (*head, *tail) for row in range(span.start, span.stop)]
    assert rows == [(span.lane, row) for span in spans for row in range(span.start, span.stop)]
    assert sum(span.num_rows for span in head) == min(num_rows, sum(lengths))


def test_whole_records_come_back_as_they_were(disk: SimulatedDisk) -> None:
    assert list(StreamReader(disk_store(disk)).records())[:13] == [cached_record(number) for number in range(13)]
