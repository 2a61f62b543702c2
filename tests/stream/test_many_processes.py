"""Processes: killed two hundred times under a polling reader, or eight writing while three read."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from cong.config.stream import FollowSettings, ReadSettings
from cong.stream import StreamReader, StreamWriter, list_stream, verify
from cong.stream.filesystem import LocalFileSystem
from cong.stream.names import JOURNAL
from tests.stream.streams import SMALL, folder_store, read_keys

NURSERY = textwrap.dedent(
    """
    # Forks writers from a process that has imported everything and started no thread, and kills them.
    import json, os, random, signal, sys, time
    from cong.config.stream import WriteSettings
    from cong.lab.records import synthetic_record
    from cong.stream import StreamWriter, open_store

    location, num_kills, has_journal = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "journal"
    settings = WriteSettings(rows_per_segment=4, rows_per_group=2, acknowledge_s=0.0, has_journal=has_journal)
    clock = random.Random(0)
    acknowledged = set()
    for life in range(num_kills):
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            writer = StreamWriter(open_store(location), settings, f"w{life % 3}")
            number = life * 1000
            while True:
                record = synthetic_record(number, 4)
                ack = writer.append(record, "local" if number % 2 else "none")
                if ack.level == "local":
                    os.write(write_end, record.key.encode() + b"\\n")
                number += 1
        os.close(write_end)
        num_told, told = clock.randrange(1, 4), b""
        while told.count(b"\\n") < num_told:
            byte = os.read(read_end, 1)
            assert byte, "it has ended by itself"
            told += byte
        # From here on it may die anywhere.
        time.sleep(clock.random() * 0.02)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        told += b"".join(iter(lambda: os.read(read_end, 65536), b""))
        os.close(read_end)
        acknowledged |= {line for line in told.decode().split("\\n") if len(line) == 42}
    print(json.dumps(sorted(acknowledged)))
    """
)


def kill_writers(path: Path, num_kills: int, mode: str) -> None:
    store = folder_store(path)
    told = path / "acknowledged.json"
    with told.open("w") as output:
        nursery = subprocess.Popen(
            [sys.executable, "-c", NURSERY, store.root, str(num_kills), mode],
            stdout=output,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    # The reader polls while writers die; any half-written thing it saw would raise.
    reader = StreamReader(store, ReadSettings(follow=FollowSettings(poll_s=0.05, idle_timeout_s=120.0)))
    quick = ReadSettings(follow=FollowSettings(poll_s=0.02, idle_timeout_s=0.2))
    followed: list[str] = []
    cursor = reader.cursor
    is_last = False
    while not is_last:
        is_last = nursery.poll() is not None
        reader = StreamReader(store, quick, cursor)
        for table, after in reader.tables(64, ["key"]):
            followed += table.column("key").to_pylist()
            cursor = after
    assert nursery.returncode == 0
    acknowledged = set(json.loads(told.read_text()))
    assert len(acknowledged) > num_kills
    before = list_stream(store)
    assert before.gaps == []
    assert before.unrecognised == []
    assert len(followed) == len(set(followed))
    assert sorted(followed) == sorted(read_keys(store, batch=500))
    if mode == "journal":
        StreamWriter(store, SMALL.model_copy(update={"has_journal": True}), "heir").close()
    assert acknowledged <= set(read_keys(store, batch=500))
    report = verify(store, (LocalFileSystem(), f"{store.root}/{JOURNAL}"))
    assert report.problems == []


@pytest.mark.parametrize("mode", ["segments", "journal"])
def test_killed_writers_leave_a_sound_stream(tmp_path: Path, mode: str) -> None:
    kill_writers(tmp_path, 15, mode)


@pytest.mark.slow
def test_two_hundred_killed_writers_leave_a_sound_stream(tmp_path: Path) -> None:
    kill_writers(tmp_path, 200, "journal")


WRITER = textwrap.dedent(
    """
    import sys
    from cong.config.stream import WriteSettings
    from cong.lab.records import synthetic_record
    from cong.stream import StreamWriter, open_store

    location, number = sys.argv[1], int(sys.argv[2])
    with StreamWriter(open_store(location), WriteSettings(rows_per_segment=40), f"w{number}") as writer:
        # Neighbours make half of each other's records too.
        for start in range(number * 100, number * 100 + 200):
            writer.append(synthetic_record(start, 4))
    """
)


def test_eight_writers_and_three_readers_at_once(tmp_path: Path) -> None:
    store = folder_store(tmp_path)
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, store.root, str(number)], env={**os.environ})
        for number in range(8)
    ]
    wanted = ReadSettings(follow=FollowSettings(poll_s=0.01, idle_timeout_s=60.0))
    readers = [StreamReader(store, wanted.model_copy(update={"shuffle_rows": rows})) for rows in (0, 1, 64)]
    read: list[list[str]] = [[], [], []]
    try:
        # A reader may end early, when all writers that have come so far are done; it goes on from its cursor.
        while any(writer.poll() is None for writer in writers) or any(len(keys) < 900 for keys in read):
            for number, reader in enumerate(readers):
                for table, _ in reader.tables(50, ["key"]):
                    read[number] += table.column("key").to_pylist()
    finally:
        for writer in writers:
            writer.wait(60)
    assert [len(keys) for keys in read] == [900] * 3
    assert len({tuple(sorted(keys)) for keys in read}) == 1
    assert len(set(read[0])) == 900
