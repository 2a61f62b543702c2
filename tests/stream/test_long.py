"""Memory stays bounded by a few segments, however long the stream is: the peak as the kernel counts it."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PROGRAM = textwrap.dedent(
    """
    # Writes a stream of so many rows, or reads it; prints by how many bytes the process grew at most.
    import sys
    from pathlib import Path
    from cong.config.stream import WriteSettings
    from cong.lab.records import synthetic_record
    from cong.stream import StreamReader, StreamWriter, open_store

    def kept(name):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))

    what, location, num_rows = sys.argv[1], sys.argv[2], int(sys.argv[3])
    settings = WriteSettings(rows_per_segment=500, rows_per_group=100)
    templates = [synthetic_record(number, 128) for number in range(500)]
    before = kept("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    if what == "write":
        with StreamWriter(open_store(location), settings) as writer:
            for number in range(num_rows):
                record = templates[number % len(templates)]
                writer.append(record.model_copy(update={"key": f"s-{number:040x}"}))
    else:
        reader = StreamReader(open_store(location))
        assert sum(table.num_rows for table, _ in reader.tables(200)) == num_rows
    print(kept("VmHWM") - before)
    """
)


def growth(what: str, path: Path, num_rows: int) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, what, str(path), str(num_rows)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="no /proc to measure the peak with")
def test_ten_times_the_stream_takes_no_more_memory(tmp_path: Path) -> None:
    short, long = 2_000, 20_000
    added = {
        (what, num_rows): growth(what, tmp_path / str(num_rows), num_rows)
        for num_rows in (short, long)
        for what in ("write", "read")
    }
    num_bytes = sum(path.stat().st_size for path in (tmp_path / str(long) / "segments").iterdir())
    # 128 tokens with four floats and three integers each, uncompressed.
    assert num_bytes > 20_000 * 128 * 8
    for what in ("write", "read"):
        assert added[what, long] - added[what, short] < 2 * num_bytes // 3, (what, added, num_bytes)
