"""The key index: every key is found where it lies, and a bad cache is only slower."""

import logging
from pathlib import Path

import pytest

from cong.lab.disk import SimulatedDisk
from cong.stream import Lane, compact, list_stream
from cong.stream import index as index_module
from cong.stream.identity import require_identity
from cong.stream.index import KeyIndex, Place
from tests.stream.streams import SMALL, disk_store, folder_store, keys, read_keys, write


@pytest.fixture
def disk() -> SimulatedDisk:
    made = SimulatedDisk()
    write(disk_store(made), range(23), "a")
    write(disk_store(made), range(30, 37), "b")
    return made


def fresh_index(disk: SimulatedDisk, cache: Path | None = None) -> KeyIndex:
    index = KeyIndex(disk_store(disk), require_identity(disk_store(disk)), cache)
    index.refresh(list_stream(disk_store(disk)))
    return index


def places(index: KeyIndex) -> list[Place | None]:
    return [index.find(key) for key in keys(range(40))]


EXPECTED = [
    *[Place(Lane("a", 1), row) for row in range(23)],
    *[None] * 7,
    *[Place(Lane("b", 1), row) for row in range(7)],
    *[None] * 3,
]


def test_every_key_is_found_where_it_lies_and_no_other(disk: SimulatedDisk) -> None:
    index = fresh_index(disk)
    assert places(index) == EXPECTED
    compact(disk_store(disk), SMALL.model_copy(update={"rows_per_segment": 100}))
    index.refresh(list_stream(disk_store(disk)))
    assert places(index) == EXPECTED


def test_keys_whose_segments_are_compacted_away_before_they_are_read_are_known(disk: SimulatedDisk) -> None:
    store = disk_store(disk)
    listing = list_stream(store)
    compact(store, SMALL.model_copy(update={"rows_per_segment": 10}))
    index = KeyIndex(store, require_identity(store), None)
    index.refresh(listing)
    assert places(index) == EXPECTED
    assert not index.unreadable


def test_keeping_up_in_small_steps_gives_the_same_index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(index_module, "_MIN_SAVED_SEGMENTS", 2)
    disk = SimulatedDisk()
    store = disk_store(disk)
    write(store, [], "a")
    index = fresh_index(disk, tmp_path / "keys.index")
    for number in range(12):
        write(store, [number], f"w{number % 3}")
        index.refresh(list_stream(store))
        assert [index.find(key) is not None for key in keys(range(12))] == [at <= number for at in range(12)]
        assert len(index) == number + 1


def test_a_cache_saves_reading_footers_again(
    disk: SimulatedDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "_MIN_SAVED_SEGMENTS", 1)
    cache = tmp_path / "keys.index"
    fresh_index(disk, cache)
    assert cache.exists()
    monkeypatch.setattr(index_module, "open_segment", lambda *_: pytest.fail("a footer was read"))
    assert places(fresh_index(disk, cache)) == EXPECTED


@pytest.mark.parametrize("share", [0.0, 0.05, 0.2, 0.5, 0.99])
def test_a_damaged_cache_is_noticed_and_made_anew(
    disk: SimulatedDisk,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    share: float,
) -> None:
    monkeypatch.setattr(index_module, "_MIN_SAVED_SEGMENTS", 1)
    cache = tmp_path / "keys.index"
    fresh_index(disk, cache)
    content = bytearray(cache.read_bytes())
    content[int(share * len(content))] ^= 4
    cache.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert places(fresh_index(disk, cache)) == EXPECTED
    assert places(fresh_index(disk, cache)) == EXPECTED


def test_a_cache_of_another_stream_is_not_used(
    disk: SimulatedDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "_MIN_SAVED_SEGMENTS", 1)
    fresh_index(disk, tmp_path / "keys.index")
    other = SimulatedDisk()
    write(disk_store(other), [3], "a")
    assert [number for number, place in enumerate(places(fresh_index(other, tmp_path / "keys.index"))) if place] == [3]


def test_keys_of_a_damaged_segment_are_said_to_be_unknown(disk: SimulatedDisk) -> None:
    path = next(path for path in disk.paths() if "/b-" in path and path.endswith("parquet"))
    disk.flip(path, disk.size(path) - 20)
    index = fresh_index(disk)
    assert [str(span) for span in index.unreadable] == ["rows 0 to 4 of b-000001"]
    assert index.find(keys([30])[0]) is None
    assert index.find(keys([36])[0]) is not None


def test_a_key_whose_row_vanished_is_not_found(disk: SimulatedDisk) -> None:
    index = fresh_index(disk)
    disk.unlink(next(path for path in disk.paths() if "/a-000001-00000004" in path))
    index.refresh(list_stream(disk_store(disk)))
    assert [number for number, place in enumerate(places(index)) if place is None and number < 23] == [20, 21, 22]


def test_keys_of_a_segment_that_comes_back_are_known(
    disk: SimulatedDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "_MIN_SAVED_SEGMENTS", 1)
    path = next(path for path in disk.paths() if "/a-000001-00000001" in path)
    content = disk.read(path, 0, disk.size(path))
    disk.unlink(path)
    index = fresh_index(disk, tmp_path / "keys.index")
    assert [number for number, place in enumerate(places(index)) if place is None and number < 23] == [*range(5, 10)]
    handle = disk.create(path)
    disk.write(handle, content)
    index.refresh(list_stream(disk_store(disk)))
    assert places(index) == EXPECTED
    # Nor does the cache remember that they were not there.
    assert places(fresh_index(disk, tmp_path / "keys.index")) == EXPECTED


def test_a_record_made_again_while_its_segment_was_away_is_read_once(tmp_path: Path) -> None:
    store = folder_store(tmp_path)
    settings = SMALL.model_copy(update={"rows_per_segment": 1})
    write(store, range(40), "a", settings)
    (tmp_path / "stream" / ".cache" / "keys.index").unlink()
    lost = sorted((tmp_path / "stream" / "segments").iterdir())[7]
    content = lost.read_bytes()
    lost.unlink()
    write(store, range(40), "b", settings)
    lost.write_bytes(content)
    assert list_stream(store).num_rows == 41
    assert read_keys(store) == keys(range(40))
