"""Settings of the sample stream: where it lies, how it is written, what a reader takes from it and in which order."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from cong.config.base import Count, PositiveFloat, Settings
from cong.schemas import FinishReason, SampleKind


class WriteSettings(Settings):
    """How records become durable: a segment is sealed by rows, by bytes, by age and on shutdown."""

    rows_per_segment: int = Field(default=5000, ge=1, le=1_000_000)
    bytes_per_segment: int = Field(default=64 << 20, ge=1, le=1 << 30)
    """Estimated from the records; a segment is what reader and writer hold in memory."""
    rows_per_group: int = Field(default=512, ge=1, le=100_000)
    """Smallest part of a segment that is read and checked alone."""
    max_age_s: PositiveFloat = 5.0
    """A record waits no longer to be sealed."""
    acknowledge_s: float = Field(default=0.02, ge=0.0)
    """So long a record that somebody waits for may wait for company in its segment."""
    relist_s: float = Field(default=0.0, ge=0.0)
    """So old may the list of what other writers have stored be when a key is looked for; what they stored since may be
    stored twice, and readers take it once. 0 = listed anew each time, at a cost that grows with the stream's segments.
    """
    max_buffered_segments: Count = 2
    """So many segments' rows or bytes may wait to be stored; beyond it appending waits, and fails after `timeout_s`."""
    timeout_s: PositiveFloat = 60.0
    """No call of the writer waits longer."""
    has_journal: bool = False
    """A write-ahead file makes each record durable on this machine before its segment is sealed."""
    journal_dir: str = ""
    """Folder of the write-ahead files; empty = `journal` in the stream's folder. An object store needs one."""


class SampleFilter(Settings):
    """Which records a reader takes; part of its cursor's identity."""

    kinds: tuple[SampleKind, ...] = ()
    """Empty = all."""
    finish_reasons: tuple[FinishReason, ...] = ()
    """Empty = all."""
    min_tokens: int = Field(default=0, ge=0)
    max_tokens: int = Field(default=0, ge=0)
    """0 = no limit."""
    min_reward_mean: float | None = None
    """Lowest implicit reward per token; records without a pair do not pass. None = no limit."""
    max_reward_mean: float | None = None
    """Highest implicit reward per token; records without a pair do not pass. None = no limit."""

    @model_validator(mode="after")
    def _lets_something_pass(self) -> Self:
        for name, low, high in (
            ("tokens", self.min_tokens, self.max_tokens or None),
            ("reward_mean", self.min_reward_mean, self.max_reward_mean),
        ):
            if low is not None and high is not None and low > high:
                raise ValueError(f"min_{name} is {low} and max_{name} {high}; nothing passes, so raise the latter")
        return self


class FollowSettings(Settings):
    """When to stop waiting for a stream that still grows; it also ends when every writer has closed."""

    poll_s: PositiveFloat = 0.5
    idle_timeout_s: PositiveFloat = 600.0
    """Without a new row for so long, the stream counts as ended."""


class ReadSettings(Settings):
    """What a reader takes, and in which order; whatever changes the order is part of its cursor's identity."""

    filter: SampleFilter = SampleFilter()
    shuffle_rows: int = Field(default=0, ge=0, le=10_000_000)
    """Rows of the window within which the order is random; 0 = the stated order."""
    shuffle_seed: int = Field(default=0, ge=0, lt=2**63)
    is_deduplicated: bool = True
    """Of records with the same key only the first is taken."""
    on_damage: Literal["error", "skip"] = "error"
    """skip: rows that cannot be trusted are left out, named in the log and kept in the cursor."""
    max_records: int = Field(default=0, ge=0)
    """Stop after so many; 0 = no limit."""
    follow: FollowSettings | None = None
    """None: read what is there at the start, then stop."""


class StreamConfig(Settings):
    """The stream that sampling writes and training reads."""

    location: str = ""
    """A folder, or a URL that fsspec knows, such as s3://bucket/prefix; empty = `stream` in the output folder."""
    storage_options: dict[str, Any] = Field(default_factory=dict)
    """Handed to the fsspec back end."""
    is_shared: bool = False
    """Says of a folder that it outlives this machine, such as a network file system: acknowledges as `shared`."""
    cache_dir: str = ""
    """Where the key index is cached; empty = `.cache` in the stream's folder, and memory for an object store."""
    write: WriteSettings = WriteSettings()
    read: ReadSettings = ReadSettings()
