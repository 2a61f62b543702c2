"""What grows with what, toward a thousand samplers: the parts that grow are run, and the rest follows by arithmetic.

    python -m bench.scale --json docs/results/scale.json

Lists streams of many writers and segments by their names alone, searches key indexes, packs cursors, and asks a real
writer for a key before a sample is made, as a replica does. Then a model of a whole deployment says for each number of
samplers how long one listing takes, how much an index holds, and what is beyond its bound first.
"""

import argparse
import json
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from rich.console import Console

from bench.stream import build_large
from cong import __version__
from cong.config.jobs import SamplingJobConfig
from cong.config.stream import ReadSettings, WriteSettings
from cong.estimate.tables import hours_text
from cong.report import Cell, Column, Table, to_rich
from cong.stream import StreamReader, StreamWriter, open_store
from cong.stream.index import KeyIndex
from cong.stream.keys import KEY_BYTES
from cong.stream.listing import Listing, list_stream
from cong.stream.names import SEGMENTS, Lane, Marker, SegmentName
from cong.stream.store import LocalStore

INDEX_BYTES = 20
"""Of one key in the index: 8 and 4 of its digest, 8 of its place."""
NAMES_PER_REQUEST = 1000
"""That an object store gives at a time."""
REQUEST_S = 0.05
"""Taken for one request to an object store; not measured here."""
SAMPLERS = (1, 8, 64, 256, 1000)
SETTINGS = ((WriteSettings().acknowledge_s, WriteSettings().relist_s), (5.0, 60.0), (30.0, 3600.0))
"""`stream.write.acknowledge_s` and `relist_s`: the defaults, and two that give up some immediacy."""


class Names(LocalStore):
    """A stream of which only the names exist."""

    def __init__(self, writers: int, segments: int) -> None:
        self.root = "/names"
        self._segments = [name for lane in range(writers) for name in _names_of(lane, math.ceil(segments / writers))]
        self._markers = [
            Marker("claim", Lane(f"replica-{number:04d}", 1)).path.partition("/")[2] for number in range(writers)
        ]

    def names(self, folder: str) -> list[str]:
        """Of either folder."""
        return self._segments if folder == SEGMENTS else self._markers

    def settle(self) -> None:
        """Nothing lies anywhere."""


def _names_of(lane: int, segments: int) -> Iterator[str]:
    for number in range(segments):
        name = SegmentName(Lane(f"replica-{lane:04d}", 1), number, number, 8 * number, 8, "0" * 32)
        yield name.path.partition("/")[2]


@dataclass(frozen=True)
class Measured:
    """One measurement: median and all of its repeats."""

    what: str
    size: str
    unit: str
    values: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.values)


def timed(work: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each of several runs."""
    found = []
    for _ in range(repeats):
        started_s = time.perf_counter()
        work()
        found.append(time.perf_counter() - started_s)
    return found


def measure_listing(writers: int, segments: int, repeats: int) -> Measured:
    """Names of a stream to what is there, the store's own time left out."""
    store = Names(writers, segments)
    listing: list[Listing] = []
    seconds = timed(lambda: listing.append(list_stream(store)), repeats)
    assert sum(len(lane.segments) for lane in listing[0].lanes.values()) >= segments
    return Measured("listing", f"{writers:,} writers, {segments:,} segments", "s", seconds)


def measure_cursor(writers: int) -> Measured:
    """Bytes of a following reader's cursor, one open span of every writer included."""
    reader_at = [[f"replica-{number:04d}", 1, 4096] for number in range(writers)]
    content = {"admitted": reader_at, "pending": [[*one, 8192] for one in reader_at]}
    return Measured("cursor", f"{writers:,} writers", "bytes", [float(len(json.dumps(content)))])


def measure_index(num_keys: int, repeats: int) -> list[Measured]:
    """Taking keys in, and finding one that is not there, as before every new sample."""
    digests = np.random.default_rng(0).integers(0, 256, (num_keys, KEY_BYTES), dtype=np.uint8)
    made: list[KeyIndex] = []

    def take() -> None:
        index = KeyIndex(Names(1, 1), "stream", None)
        for first in range(0, num_keys, 4096):
            index.add(Lane("replica", 1), first, digests[first : first + 4096])
        made.append(index)

    took = timed(take, 1)
    keys = [f"s-{number}" for number in range(2000)]
    index = made[0]
    looked = [seconds / len(keys) for seconds in timed(lambda: [index.find(key) for key in keys], repeats)]
    size = f"{num_keys:,} keys"
    return [
        Measured("index, taking in a key", size, "us", [1e6 * seconds / num_keys for seconds in took]),
        Measured("index, finding a key", size, "us", [1e6 * seconds for seconds in looked]),
    ]


def measure_asking(folder: Path, segments: int, repeats: int) -> list[Measured]:
    """What a replica does before it makes a sample that is to be kept, and a reader's look for news; a real folder."""
    build_large(folder, segments, 8)
    store = open_store(str(folder))
    size = f"{segments:,} segments of 8"
    reader = timed(lambda: StreamReader(store, ReadSettings(is_deduplicated=False)), repeats)
    with StreamWriter(store, WriteSettings(), "replica") as writer:
        writer.missing(["s-none"])
        asked = timed(lambda: writer.missing(["s-none"]), repeats)
    return [
        Measured("asking a writer for one key", size, "ms", [1e3 * seconds for seconds in asked]),
        Measured("opening a reader", size, "ms", [1e3 * seconds for seconds in reader]),
    ]


@dataclass(frozen=True)
class Deployment:
    """So many samplers that keep what they draw, for so long."""

    samplers: int
    tokens_per_s: float = 4400.0
    """Of one sampler; an L40S with a 3 B pair, by `cong estimate`."""
    tokens_per_sample: float = 400.0
    hours: float = 24.0
    acknowledge_s: float = WriteSettings().acknowledge_s
    relist_s: float = WriteSettings().relist_s
    seats: int = 256
    """Samples that one sampler computes at a time."""

    @property
    def samples_per_s(self) -> float:
        """Of one sampler."""
        return self.tokens_per_s / self.tokens_per_sample

    @property
    def segments_per_s(self) -> float:
        """Of one sampler: a sample that somebody waits for is sealed at once with those that came meanwhile."""
        return min(self.samples_per_s, 1.0 / self.acknowledge_s)

    @property
    def rows(self) -> float:
        """Of all samplers at the end."""
        return self.samplers * self.samples_per_s * 3600 * self.hours

    @property
    def segments(self) -> float:
        """Of all samplers at the end, none merged."""
        return self.samplers * self.segments_per_s * 3600 * self.hours

    def listing_s(self, name_s: float) -> float:
        """One listing on an object store: its requests one after another, and our work on each name."""
        return math.ceil(self.segments / NAMES_PER_REQUEST) * REQUEST_S + self.segments * name_s

    def listing_share(self, name_s: float) -> float:
        """Of a sampler's time that listings take; above 1 requests wait for them. Each request lists at most once."""
        often = self.samples_per_s if self.relist_s == 0 else min(self.samples_per_s, 1.0 / self.relist_s)
        return often * self.listing_s(name_s)

    @property
    def index_bytes(self) -> float:
        """Of the keys of all samplers, which each of them holds."""
        return INDEX_BYTES * self.rows

    @property
    def num_jobs(self) -> int:
        """Sampling jobs that keep every seat busy with one sample a prompt."""
        most: int = next(
            each.le for each in SamplingJobConfig.model_fields["in_flight"].metadata if hasattr(each, "le")
        )
        return math.ceil(self.samplers * self.seats / most)


@dataclass(frozen=True)
class Verdict:
    """What a deployment comes to."""

    samplers: int
    acknowledge_s: float
    relist_s: float
    samples_per_s: float
    segments_per_day: float
    listing_s: float
    listing_share: float
    index_gb: float
    num_jobs: int
    cursor_kb: float
    hours_until_listing_share_is_1: float


def judge(deployment: Deployment, name_s: float, cursor_bytes_per_writer: float) -> Verdict:
    """The numbers of one deployment."""
    share = deployment.listing_share(name_s)
    return Verdict(
        deployment.samplers,
        deployment.acknowledge_s,
        deployment.relist_s,
        deployment.samplers * deployment.samples_per_s,
        deployment.segments,
        deployment.listing_s(name_s),
        share,
        deployment.index_bytes / 1e9,
        deployment.num_jobs,
        deployment.samplers * cursor_bytes_per_writer / 1e3,
        deployment.hours / share,
    )


@dataclass
class Report:
    """Everything that was found."""

    measured: list[Measured] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)


def run(grid: Sequence[tuple[int, int]], num_keys: Sequence[int], asked: Sequence[int], repeats: int) -> Report:
    """Measure, then reckon."""
    report = Report()
    report.measured = [measure_listing(writers, segments, repeats) for writers, segments in grid]
    largest = report.measured[-1]
    name_s = largest.median / grid[-1][1]
    cursors = [measure_cursor(writers) for writers in (8, 1000)]
    report.measured += cursors
    for number in num_keys:
        report.measured += measure_index(number, repeats)
    with tempfile.TemporaryDirectory() as folder:
        for number in asked:
            report.measured += measure_asking(Path(folder) / str(number), number, repeats)
    per_writer = cursors[-1].median / 1000
    for acknowledge_s, relist_s in SETTINGS:
        for samplers in SAMPLERS:
            deployment = Deployment(samplers, acknowledge_s=acknowledge_s, relist_s=relist_s)
            report.verdicts.append(judge(deployment, name_s, per_writer))
    return report


def show(report: Report) -> None:
    """Two tables."""
    columns = [Column("what", "left"), Column("size", "left"), Column("median", format=",.3g"), Column("unit", "left")]
    rows: list[list[Cell]] = [[each.what, each.size, each.median, each.unit] for each in report.measured]
    console = Console(width=150)
    console.print(to_rich(Table("Measured", columns, rows)))
    names = (
        "samplers",
        "acknowledged within",
        "listed every",
        "samples/s",
        "segments a day",
        "one listing",
        "share of time",
        "index",
    )
    columns = [*(Column(name, format=",.3g") for name in names), Column("jobs"), Column("cursor"), Column("holds for")]
    shown: list[list[Cell]] = [
        [
            each.samplers,
            f"{each.acknowledge_s:g} s",
            f"{each.relist_s:g} s" if each.relist_s else "request",
            each.samples_per_s,
            each.segments_per_day,
            f"{each.listing_s:,.1f} s",
            each.listing_share,
            f"{each.index_gb:,.1f} GB",
            each.num_jobs,
            f"{each.cursor_kb:,.1f} kB",
            hours_text(each.hours_until_listing_share_is_1),
        ]
        for each in report.verdicts
    ]
    console.print(to_rich(Table("A day of sampling, nothing merged", columns, shown)))


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="of every measurement (5)")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that it runs")
    arguments = parser.parse_args()
    if arguments.small:
        report = run([(8, 800), (100, 1000)], [10_000], [20], 2)
    else:
        grid = [(8, 1000), (8, 10_000), (1000, 10_000), (8, 100_000), (1000, 100_000), (1000, 400_000)]
        report = run(grid, [1_000_000, 10_000_000], [250, 1000, 4000], arguments.repeats)
    show(report)
    if arguments.json is not None:
        content = {
            "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "software": {"cong": __version__, "python": platform.python_version(), "numpy": np.__version__},
            "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
            "assumed": {"request_s": REQUEST_S, "names_per_request": NAMES_PER_REQUEST, **asdict(Deployment(1))},
            "measured": [{**asdict(each), "median": each.median} for each in report.measured],
            "verdicts": [asdict(each) for each in report.verdicts],
        }
        arguments.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
