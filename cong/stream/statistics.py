"""What is in a stream, in numbers: per writer from names and sizes alone, per sample from its columns.

Memory stays bounded: counts and means are exact, distributions keep an even subsample of what was seen.
"""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from cong.stream.columns import ragged
from cong.stream.cursor import mixed
from cong.stream.listing import Listing, list_stream
from cong.stream.names import SEGMENTS, Lane
from cong.stream.reader import StreamReader
from cong.stream.store import Store

COLUMNS = (
    *("kind", "finish_reason", "num_tokens", "implicit_reward_mean", "head_sizes", "networks", "parameters"),
    "tokenizer_fingerprint",
)
_MAX_KEPT = 200_000
_ROWS_AT_ONCE = 2048


@dataclass(frozen=True)
class LaneFacts:
    """One writer in one epoch."""

    lane: Lane
    state: str
    """open, closed, or superseded by a later epoch of the same writer."""
    num_segments: int
    num_rows: int
    num_bytes: int
    first_published_s: float
    last_published_s: float
    """By the clock of whoever stored the files: for people."""
    num_missing_rows: int
    num_gaps: int

    @property
    def rows_per_s(self) -> float | None:
        """Rows per second between the first and the last segment; None for fewer than two."""
        elapsed_s = self.last_published_s - self.first_published_s
        return self.num_rows / elapsed_s if self.num_segments > 1 and elapsed_s > 0 else None


def lane_facts(store: Store) -> tuple[Listing, list[LaneFacts]]:
    """Every lane of a stream, from its listing."""
    listing = list_stream(store)
    entries = {f"{SEGMENTS}/{entry.name}": entry for entry in store.entries(SEGMENTS)}
    facts = []
    for lane in listing.lanes.values():
        found = [entries[segment.path] for segment in lane.segments if segment.path in entries]
        is_latest = listing.latest_epoch(lane.lane.writer) == lane.lane.epoch
        facts.append(
            LaneFacts(
                lane.lane,
                "closed" if lane.closed else "open" if is_latest else "superseded",
                len(lane.segments),
                lane.num_rows,
                sum(entry.num_bytes for entry in found),
                min((entry.modified_s for entry in found), default=0.0),
                max((entry.modified_s for entry in found), default=0.0),
                sum(gap.num_rows for gap in lane.gaps),
                len(lane.gaps),
            )
        )
    return listing, facts


@dataclass
class Subsample:
    """One in so many of the values seen, by a hash of their numbers, and the mean of all.

    The stride doubles whenever the room is used up. Without the hash it would fall in step with a stream in which the
    samples of a prompt, or two kinds, take turns, and show one part of them for all.
    """

    values: list[float] = field(default_factory=list)
    stride: int = 1
    num_seen: int = 0
    total: float = 0.0
    _marks: list[int] = field(default_factory=list)

    @property
    def mean(self) -> float | None:
        """Of every value seen; None where there was none."""
        return self.total / self.num_seen if self.num_seen else None

    def add(self, values: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> None:
        """Take in values in order."""
        marks = mixed(np.arange(self.num_seen, self.num_seen + len(values)).astype(np.uint64))
        kept = marks % np.uint64(self.stride) == 0
        self.values += values[kept].tolist()
        self._marks += marks[kept].tolist()
        self.num_seen += len(values)
        self.total += float(values.sum())
        while len(self.values) > _MAX_KEPT:
            self.stride *= 2
            both = [
                (value, mark) for value, mark in zip(self.values, self._marks, strict=True) if mark % self.stride == 0
            ]
            self.values, self._marks = [value for value, _ in both], [mark for _, mark in both]


@dataclass
class SampleFacts:
    """Counts and distributions over samples."""

    num_records: int = 0
    num_tokens: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    finish_reasons: Counter[str] = field(default_factory=Counter)
    networks: Counter[str] = field(default_factory=Counter)
    parameters: Counter[str] = field(default_factory=Counter)
    tokenizers: Counter[str] = field(default_factory=Counter)
    lengths: Subsample = field(default_factory=Subsample)
    rewards: Subsample = field(default_factory=Subsample)
    """Implicit reward per token, of samples from a pair."""
    head_sizes: Counter[int] = field(default_factory=Counter)

    def add(self, table: pa.Table) -> None:
        """Take in rows with COLUMNS."""
        lengths = table.column("num_tokens").to_numpy().astype(np.float64)
        self.num_records += table.num_rows
        self.num_tokens += int(lengths.sum())
        self.lengths.add(lengths)
        self.rewards.add(table.column("implicit_reward_mean").drop_null().to_numpy())
        sizes, counts = np.unique(ragged(table, "head_sizes").values, return_counts=True)
        self.head_sizes.update(dict(zip(sizes.tolist(), counts.tolist(), strict=True)))
        for counter, name in (
            (self.kinds, "kind"),
            (self.finish_reasons, "finish_reason"),
            (self.networks, "networks"),
            (self.parameters, "parameters"),
            (self.tokenizers, "tokenizer_fingerprint"),
        ):
            for item in table.column(name).value_counts().to_pylist():
                counter[item["values"]] += item["counts"]


def sample_facts(reader: StreamReader) -> SampleFacts:
    """Everything that a reader hands out, summed up."""
    facts = SampleFacts()
    for table, _ in reader.tables(_ROWS_AT_ONCE, COLUMNS):
        facts.add(table)
    return facts
