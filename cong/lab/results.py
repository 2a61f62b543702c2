"""What one seed of the experiment measured, as records that are written to disk and read back.

Rewards are gold rewards in 0..1; intervals are 95 %. Knows nothing of how anything was measured.
"""

from pydantic import Field

from cong.schemas import SCHEMA_VERSION, Record
from cong.statistics import Interval


class SetResult(Record):
    """One set of answers; shares are of answers."""

    reward: Interval
    """Interval over prompts."""
    good_opening_share: float
    exact_body_share: float
    good_ending_share: float
    mean_num_tokens: float
    empty_share: float
    """Answers that end at once: a preference loss may leak probability there, because no pair contains it."""
    truncated_share: float
    stray_share: float
    """Answers that begin with neither opening: where probability goes that a preference loss pushed off both."""


class ModelResult(Record):
    """A strong model, or one it is compared with, under each of the evaluation's temperatures."""

    by_temperature: dict[str, SetResult]
    performance_gap_recovered: float | None
    """At the first temperature; None where the ceiling is not above the weak model."""
    num_examples: int
    """Examples of its last stage, after those that teach nothing were left out; 0 = it was not trained."""
    num_left_out: int


class CorrelationResult(Record):
    """How the implicit reward of a set of answers goes with their gold reward."""

    pearson: Interval
    """Of the implicit reward per token; interval by bootstrap."""
    spearman: float
    pearson_of_sum: float
    """Of the implicit reward summed over tokens."""
    reward_by_quartile: tuple[float, ...]
    """Mean gold reward in each quartile of implicit reward per token."""


class HealthResult(Record):
    """Whether contrast had anything to act on, over the steps of a set of contrastive answers."""

    mean_head_size: float
    single_head_share: float
    """Steps whose head set is one token: contrast cannot act there."""
    changed_pick_share: float
    """Tokens drawn that are not the aligned model's best."""
    num_floored: int


class PairsResult(Record):
    """The preference pairs of stage 2; ratios are log p_aligned - log p_base per token of the weak pair."""

    chosen_ratio: float
    rejected_ratio: float
    chosen_num_tokens: float
    rejected_num_tokens: float


class SeedResult(Record):
    """Everything that is measured for one seed."""

    schema_version: int = Field(default=SCHEMA_VERSION, ge=1, le=SCHEMA_VERSION)
    seed: int
    weak: dict[str, SetResult]
    """Decodings of the weak models on the test prompts."""
    labels: dict[str, SetResult]
    """What the strong models were taught, on the training prompts."""
    models: dict[str, ModelResult]
    correlations: dict[str, CorrelationResult]
    health: dict[str, HealthResult]
    pairs: PairsResult
    alignments: dict[str, dict[str, float]]
    """Beta of the weak alignment -> decoding -> gold reward."""
    stray_shares: dict[str, float]
    """Beta of the weak alignment -> share of the aligned model's answers that begin with neither opening."""
    differences: dict[str, Interval]
    """`A - B` -> difference of gold reward on the same prompts."""
    facts: dict[str, str | int | float]


class ExperimentResult(Record):
    """All seeds, and what they were made from."""

    schema_version: int = Field(default=SCHEMA_VERSION, ge=1, le=SCHEMA_VERSION)
    settings: dict[str, object]
    software: dict[str, str]
    seeds: tuple[SeedResult, ...]
