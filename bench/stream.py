"""How fast the stream is on this machine, beside deltalake, lance and datasets on the same rows in the same run.

    python -m bench.stream --output runs/bench/stream.json

Repeats everything, shows medians, and writes them with the conditions. Needs the extra `bench` for the peers; one that
is not installed is left out.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from cong.config.stream import ReadSettings, WriteSettings
from cong.lab.records import synthetic_record
from cong.report import Column, Table, to_rich
from cong.schemas import SampleRecord
from cong.stream import SCHEMA, Cursor, Draw, Lane, StreamReader, StreamWriter, list_stream, open_store
from cong.stream.columns import pack, table_of
from cong.stream.identity import ensure_identity
from cong.stream.index import KeyIndex, index_cache
from cong.stream.listing import Span
from cong.stream.names import Marker
from cong.stream.reader import order_identity
from cong.stream.segment import Placement, encode

NUM_TOKENS = 256
ROWS_PER_SEGMENT = 5000
TRAINING_COLUMNS = ("prompt_token_ids", "completion_token_ids", "logprobs_aligned", "logprobs_base")
WORKER_THREADS = 8

Result = dict[str, Any]


def timed(work: Callable[[], object]) -> float:
    """Seconds that the work took."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def rate(name: str, num_rows: int, seconds: Sequence[float], goal: float | None = None) -> Result:
    """Rows per second at the median of the repeats."""
    median = num_rows / statistics.median(seconds)
    spread = {"lowest": num_rows / max(seconds), "highest": num_rows / min(seconds)}
    return {"what": name, "value": median, **spread, "unit": "rows/s", "goal": goal, "is_met": goal and median >= goal}


def latency(name: str, seconds: Sequence[float], goal_ms: float | None = None) -> Result:
    """Milliseconds at the median, with the 99th percentile."""
    median, p99 = 1e3 * statistics.median(seconds), 1e3 * float(np.quantile(seconds, 0.99))
    met = goal_ms and median <= goal_ms
    return {"what": name, "value": median, "p99": p99, "unit": "ms", "goal": goal_ms, "is_met": met}


def append_all(folder: Path, records: Sequence[SampleRecord]) -> None:
    """Every record durable in segments."""
    with StreamWriter(open_store(str(folder)), WriteSettings(rows_per_segment=ROWS_PER_SEGMENT)) as writer:
        for record in records:
            writer.append(record)


def publish_tables(folder: Path, tables: Sequence[pa.Table]) -> None:
    """Ready tables as durable segments: what the peers are asked to do."""
    store = open_store(str(folder))
    ensure_identity(store)
    row = 0
    for sequence, table in enumerate(tables):
        name, data = encode(table, Placement(Lane("w", 1), sequence, sequence, row), 512)
        store.publish(name.path, data)
        row += table.num_rows


def read_all(folder: Path, columns: Sequence[str] | None) -> None:
    """Every row, verified."""
    for _ in StreamReader(open_store(str(folder))).tables(1024, columns):
        pass


def measure_writing(root: Path, records: Sequence[SampleRecord], repeats: int) -> list[Result]:
    """Appending with the durability of segments, and of single records."""
    busy_s = time.process_time()
    seconds = [timed(lambda at=at: append_all(root / f"append-{at}", records)) for at in range(repeats)]  # type: ignore[misc]
    busy_us = 1e6 * (time.process_time() - busy_s) / (repeats * len(records))
    results = [rate("append, segments durable", len(records), seconds, 10_000)]
    # Both threads together; unlike a rate it hardly moves when others use the machine.
    results.append(
        {"what": "processor time of it per row", "value": busy_us, "unit": "µs", "goal": None, "is_met": None}
    )
    settings = WriteSettings(has_journal=True, rows_per_segment=ROWS_PER_SEGMENT)
    few = records[: min(1000, len(records) // 2)]
    with StreamWriter(open_store(str(root / "single")), settings) as writer:
        one_by_one = [timed(lambda record=record: writer.append(record, "local")) for record in few]  # type: ignore[misc]
    results.append(latency("append, each record durable", one_by_one, 2.0))
    with StreamWriter(open_store(str(root / "threads")), settings) as writer:
        waits: list[float] = []

        def work(part: Sequence[SampleRecord]) -> None:
            for record in part:
                waits.append(timed(lambda record=record: writer.append(record, "local")))  # type: ignore[misc]

        threads = [threading.Thread(target=work, args=(few[at::WORKER_THREADS],)) for at in range(WORKER_THREADS)]
        total = timed(lambda: [*map(threading.Thread.start, threads), *map(threading.Thread.join, threads)])
    results.append(latency(f"the same from {WORKER_THREADS} threads", waits))
    results.append(rate(f"the same from {WORKER_THREADS} threads, together", len(few), [total]))
    return results


def measure_reading(folder: Path, num_rows: int, repeats: int) -> list[Result]:
    """Reading with every byte verified, and the same files through readers that do not verify."""
    results = []
    for name, columns, goal in (
        ("read, verified, all columns", None, 50_000),
        ("read, verified, columns of training", TRAINING_COLUMNS, 50_000),
    ):
        seconds = [timed(lambda columns=columns: read_all(folder, columns)) for _ in range(repeats)]  # type: ignore[misc]
        results.append(rate(name, num_rows, seconds, goal))
    paths = sorted(map(str, (folder / "segments").glob("*.parquet")))
    plain = [timed(lambda: [pq.ParquetFile(path).read() for path in paths]) for _ in range(repeats)]
    results.append(rate("pyarrow reading our files, unverified", num_rows, plain))
    with contextlib.suppress(ImportError):
        import datasets

        def iterate() -> None:
            rows = datasets.load_dataset("parquet", data_files=paths, split="train", streaming=True)
            for _ in rows.with_format("arrow").iter(1024):
                pass

        results.append(rate("datasets streaming our files", num_rows, [timed(iterate) for _ in range(repeats)]))
    return results


def measure_peers(root: Path, tables: Sequence[pa.Table], repeats: int, label: str) -> list[Result]:
    """Appends of the same ready tables: ours, deltalake's, lance's; and their reads where segments are whole."""
    num_rows = sum(table.num_rows for table in tables)
    seconds = [timed(lambda at=at: publish_tables(root / f"ours-{label}-{at}", tables)) for at in range(repeats)]  # type: ignore[misc]
    results = [rate(f"ours, {label}, fsynced", num_rows, seconds)]
    with contextlib.suppress(ImportError):
        import deltalake

        def write_delta(at: int) -> None:
            for table in tables:
                deltalake.write_deltalake(str(root / f"delta-{label}-{at}"), table, mode="append")

        seconds = [timed(lambda at=at: write_delta(at)) for at in range(repeats)]  # type: ignore[misc]
        results.append(rate(f"deltalake, {label}, no fsync", num_rows, seconds))
        folder = str(root / f"delta-{label}-0")
        seconds = [timed(lambda: deltalake.DeltaTable(folder).to_pyarrow_table()) for _ in range(repeats)]
        results.append(rate(f"deltalake read, {label}", num_rows, seconds))
    with contextlib.suppress(ImportError):
        import lance

        def write_lance(at: int) -> None:
            for table in tables:
                lance.write_dataset(table, str(root / f"lance-{label}-{at}"), mode="append")

        seconds = [timed(lambda at=at: write_lance(at)) for at in range(repeats)]  # type: ignore[misc]
        results.append(rate(f"lance, {label}, no fsync", num_rows, seconds))
        folder = str(root / f"lance-{label}-0")
        seconds = [timed(lambda: lance.dataset(folder).to_table()) for _ in range(repeats)]
        results.append(rate(f"lance read, {label}", num_rows, seconds))
    return results


def build_large(folder: Path, num_segments: int, rows_per_segment: int) -> list[str]:
    """A stream of many short records, made without a writer; returns some of its keys."""
    store = open_store(str(folder))
    ensure_identity(store)
    lane = Lane("large", 1)
    store.create(Marker("claim", lane).path, b"")
    template = table_of([pack(synthetic_record(0, num_tokens=1))] * rows_per_segment)
    at = SCHEMA.get_field_index("key")
    some = []
    for sequence in range(num_segments):
        first = sequence * rows_per_segment
        keys = [f"s-{number:040x}" for number in range(first, first + rows_per_segment)]
        some.append(keys[sequence % rows_per_segment])
        table = template.set_column(at, SCHEMA.field(at), pa.array(keys))
        name, data = encode(table, Placement(lane, sequence, sequence, first), 512)
        # Durability is not what is measured here.
        (folder / name.path).write_bytes(data)
    return some


def measure_large(root: Path, num_segments: int, rows_per_segment: int, repeats: int) -> list[Result]:
    """Opening, seeking and looking up in a stream of ten million records."""
    folder = root / "large"
    keys = build_large(folder, num_segments, rows_per_segment)
    store = open_store(str(folder))
    stream = ensure_identity(store)
    num_rows = num_segments * rows_per_segment
    label = f"{num_rows:,} rows in {num_segments:,} segments"

    def index() -> KeyIndex:
        made = KeyIndex(store, stream, index_cache(store, ""))
        made.refresh(list_stream(store))
        return made

    first = timed(index)
    lane = Lane("large", 1)
    middle = num_rows // 2 + 17
    settings = ReadSettings()
    cursor = Cursor(
        stream, order_identity(settings), middle, ((lane, num_rows),), pending=(Span(lane, middle, num_rows),)
    )

    def seek() -> None:
        reader = StreamReader(store, settings, cursor)
        drawn = reader.draw(256)
        assert drawn is not None
        assert int(drawn.rows[0]) == middle
        reader.fetch(drawn)

    seconds = [timed(seek) for _ in range(max(3, repeats))]
    made = index()
    reader = StreamReader(store, ReadSettings(is_deduplicated=False))

    def look_up(key: str) -> None:
        place = made.find(key)
        assert place is not None
        row = np.array([place.row], dtype=np.int64)
        found = reader.fetch(Draw((place.lane,), np.zeros(1, dtype=np.int64), row, reader.cursor))
        assert found.column("key")[0].as_py() == key

    places = [timed(lambda key=key: made.find(key)) for key in keys]  # type: ignore[misc]
    chosen = np.random.default_rng(0).permutation(keys)[:300].tolist()
    rows = [timed(lambda key=key: look_up(key)) for key in chosen]  # type: ignore[misc]
    return [
        latency(f"open, seek, read 256 rows; {label}", seconds, 1000.0),
        latency("the same once, without a cached index", [first]),
        latency("where is this key", places, 5.0),
        latency("the record of this key", rows, 5.0),
    ]


def peak_growth_mib(work: Callable[[], object]) -> float:
    """By how much the memory of this process that lies in RAM grew at most."""

    def kept(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name))

    before = kept("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    work()
    return (kept("VmHWM") - before) / 1024


def append_many(folder: Path, num_rows: int) -> None:
    """A stream of any length from records that repeat under keys of their own."""
    templates = [synthetic_record(number, NUM_TOKENS) for number in range(min(num_rows, 1000))]
    with StreamWriter(open_store(str(folder)), WriteSettings(rows_per_segment=ROWS_PER_SEGMENT)) as writer:
        for number in range(num_rows):
            writer.append(templates[number % len(templates)].model_copy(update={"key": f"s-{number:040x}"}))


def measure_memory(root: Path, num_rows: int) -> list[Result]:
    """Peak memory that writing and reading add to a fresh process, for a stream and for one ten times as long."""
    results = []
    for work, doing in ((append_many, "writing"), (read_all, "reading")):
        for rows in (num_rows, 10 * num_rows):
            more = f"{rows}" if work is append_many else "None"
            program = (
                "from pathlib import Path\nfrom bench.stream import *\n"
                f"print(peak_growth_mib(lambda: {work.__name__}(Path({str(root / f'memory-{rows}')!r}), {more})))"
            )
            done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
            name = f"memory added by {doing} {rows:,} rows"
            results.append({"what": name, "value": float(done.stdout), "unit": "MiB", "goal": None, "is_met": None})
    return results


def conditions() -> Result:
    """Under what the numbers were taken."""
    packages = ("pyarrow", "numpy", "pydantic", "deltalake", "pylance", "datasets")
    versions = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "record": f"{NUM_TOKENS} tokens with log-probs of two networks, of the mixture, and head sizes",
        **versions,
    }


def show(results: Sequence[Result]) -> None:
    """The results as a table."""
    columns = [Column("what", "left"), Column("median"), Column("99 %"), Column("unit", "left"), Column("goal")]
    rows = [
        [
            result["what"],
            f"{result['value']:,.0f}" if result["value"] >= 100 else f"{result['value']:.3f}",
            f"{result['p99']:.3f}" if "p99" in result else None,
            result["unit"],
            f"{result['goal']:,.0f}" if result["goal"] else None,
            result["is_met"],
        ]
        for result in results
    ]
    Console(width=120).print(to_rich(Table("The stream", [*columns, Column("met")], rows)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--segments", type=int, default=2000, help="of the large stream; 0 = leave it out")
    parser.add_argument("--rows-per-segment", type=int, default=5000, help="of the large stream")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("runs/bench/stream.json"))
    arguments = parser.parse_args()
    before = conditions()
    root = Path(tempfile.mkdtemp(prefix="cong-bench-"))
    try:
        records = [synthetic_record(number, NUM_TOKENS) for number in range(arguments.records)]
        results = measure_writing(root, records, arguments.repeats)
        results += measure_reading(root / "append-0", arguments.records, arguments.repeats)
        packed = [pack(record) for record in records]
        whole = [table_of(packed[at : at + ROWS_PER_SEGMENT]) for at in range(0, len(packed), ROWS_PER_SEGMENT)]
        small = [table_of(packed[at : at + 100]) for at in range(0, min(5000, len(packed)), 100)]
        results += measure_peers(root, whole, arguments.repeats, f"{ROWS_PER_SEGMENT} rows at once")
        results += measure_peers(root, small, arguments.repeats, "100 rows at once")
        results += measure_memory(root, arguments.records // 2)
        del records, packed, whole, small
        if arguments.segments:
            results += measure_large(root, arguments.segments, arguments.rows_per_segment, arguments.repeats)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    show(results)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps({"conditions": before, "results": results}, indent=1) + "\n")
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
