"""A real file system that is full: told to whoever waits, harmless to what was acknowledged, over with more room."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cong.config.stream import WriteSettings
from cong.errors import StreamError
from cong.stream import StreamReader, StreamWriter, verify
from cong.stream.filesystem import LocalFileSystem
from cong.stream.names import JOURNAL
from tests.stream.streams import SMALL, folder_store, keys, read_keys, records


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system in memory with room for one megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True, text=True, timeout=30
        )
    except FileNotFoundError:
        pytest.skip("there is no mount command here")
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True, timeout=30)


def fill(path: Path) -> None:
    """Take every byte that is left."""
    with path.open("wb", buffering=0) as file:
        size = 4096
        while size:
            try:
                file.write(b"x" * size)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                size //= 2


@pytest.mark.parametrize("has_journal", [False, True], ids=["segments", "journal"])
def test_a_writer_on_a_full_disk_says_so_and_goes_on_when_there_is_room(small_disk: Path, has_journal: bool) -> None:
    settings: WriteSettings = SMALL.model_copy(update={"has_journal": has_journal})
    store = folder_store(small_disk)
    acknowledged: list[str] = []
    with StreamWriter(store, settings, "w") as writer:
        for record in records(range(12)):
            acknowledged.append(writer.append(record, "local").key)
        fill(small_disk / "ballast")
        assert os.statvfs(small_disk).f_bavail == 0
        for record in records(range(12, 15)):
            with pytest.raises(StreamError, match="No space left on device"):
                writer.append(record, "local")
        # Readers are not hurt, and see what was acknowledged once it lies in a segment.
        seen = read_keys(store)
        assert set(seen) <= set(acknowledged)
        assert has_journal or seen == acknowledged
        (small_disk / "ballast").unlink()
        for record in records(range(12, 20)):
            acknowledged.append(writer.append(record, "local").key)
    assert sorted(read_keys(store)) == sorted(keys(range(20)))
    assert acknowledged == keys(range(20))
    assert verify(store, (LocalFileSystem(), f"{store.root}/{JOURNAL}")).problems == []


def test_a_stream_that_cannot_even_be_opened_is_told(small_disk: Path) -> None:
    fill(small_disk / "ballast")
    with pytest.raises(StreamError, match="No space left on device"):
        StreamWriter(folder_store(small_disk), SMALL, "w")
    (small_disk / "ballast").unlink()
    with StreamWriter(folder_store(small_disk), SMALL, "w") as writer:
        writer.append(records([0])[0], "local")
    assert [record.key for record in StreamReader(folder_store(small_disk)).records()] == keys([0])
