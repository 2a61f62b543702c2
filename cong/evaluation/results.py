"""What an evaluation found, as one record that JSON holds; every list is in the order of the configuration."""

import math

from pydantic import Field

from cong.schemas import Record
from cong.statistics import Interval

RESULT_VERSION = 1


class Estimated(Record):
    """A number with the ends of its 95 % interval; None where the values bound nothing."""

    mean: float
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, interval: Interval) -> "Estimated":
        """An interval as a record."""
        is_bounded = math.isfinite(interval.low) and math.isfinite(interval.high)
        return cls(mean=interval.mean, low=interval.low, high=interval.high) if is_bounded else cls(mean=interval.mean)


class JudgeResult(Record):
    """Who judged."""

    name: str
    about: str
    fingerprint: str
    least: float | None = None
    """Reward that it may give; None where there is no end."""
    most: float | None = None

    @property
    def reward_ends(self) -> tuple[float, float]:
        """As a judge has them: infinite where there is none."""
        return -math.inf if self.least is None else self.least, math.inf if self.most is None else self.most


class RewardResult(Record):
    """What one judge says of one set; the unit is the prompt, whose samples are averaged first."""

    reward: Estimated
    total: Estimated | None = None
    """Sum over the answer's tokens, where the reward is a mean per token or a sum itself."""
    mean_num_tokens: float | None = None
    """Of an answer, as the judge read it."""
    num_cut_answers: int = 0
    """Answers of which the judge could not read everything."""


class SetResult(Record):
    """Answers of one candidate under one decoding."""

    candidate: str
    decoding: str
    num_prompts: int
    num_answers: int
    missing: tuple[str, ...]
    """Ids of prompts without an answer."""
    unknown: tuple[str, ...]
    """Prompt ids of answers to no held-out prompt; left out."""
    mean_chars: float
    empty_share: float
    truncated_share: float
    rewards: dict[str, RewardResult]
    """By judge."""

    @property
    def label(self) -> str:
        """How tables name it."""
        return f"{self.candidate}, {self.decoding}"


class ComparisonResult(Record):
    """One set against another under one judge, prompt by prompt."""

    judge: str
    left: str
    right: str
    num_prompts: int
    """That both sides answer; the rest is named below."""
    left_only: tuple[str, ...]
    right_only: tuple[str, ...]
    num_wins: int
    """Pairs of answers to the same prompt."""
    num_ties: int
    num_losses: int
    win_rate: Estimated
    """A tie is half a win."""
    length_controlled: Estimated
    """The win rate that the fit gives for answers of equal length."""
    length_slope: float
    """Of the fit: above 0, longer answers win more."""
    mean_length_difference: float
    """Characters, left - right."""
    difference: Estimated
    """Mean reward, left - right."""

    @property
    def name(self) -> str:
        """The left side; the right one too where its answers were drawn otherwise."""
        is_alike = self.left.rpartition(", ")[2] == self.right.rpartition(", ")[2]
        return self.left if is_alike else f"{self.left} / {self.right}"


class GapResult(Record):
    """How much of the way from the floor to the ceiling a candidate has gone, under one judge."""

    judge: str
    decoding: str
    student: str
    floor: str
    ceiling: str
    num_prompts: int
    gained: Estimated
    """Student - floor."""
    gap: Estimated
    """Ceiling - floor."""
    recovered: Estimated | None = None
    refusal: str = ""
    """Why there is no recovered share."""
    undefined_share: float = 0.0
    """Resamples in which the ceiling is not above the floor."""


class CorrelationResult(Record):
    """A judge against the first one, over the answers of a set."""

    judge: str
    reference: str
    set_label: str
    num_answers: int
    pearson: Estimated | None
    """None: a side does not vary."""
    spearman: float | None
    pearson_of_total: float | None
    """The same with the sum over tokens, where the judge has one."""
    reference_by_quantile: tuple[float, ...]
    """Mean of the reference in groups of equal size, by ascending reward of the judge."""


class AgreementResult(Record):
    """How often a judge prefers the side that the first judge prefers."""

    judge: str
    reference: str
    left: str
    right: str
    num_decided: int
    """Prompts on which neither judge sees a tie."""
    num_undecided: int
    share: Estimated | None
    """None: no prompt is decided."""


class MisfitResult(Record):
    """How far a student's next-token distributions are from its weak teacher's, over the tokens of a set."""

    student: str
    weak: str
    set_label: str
    num_points: int
    squared: float
    """Mean of ||p_student - p_weak||^2."""
    kl_student_weak: float
    """Mean KL(student || weak), nats: the reverse form."""
    kl_weak_student: float
    """Mean KL(weak || student), nats: the forward form, which soft-label training reduces."""
    agreement: float
    """Share of points with the same most likely token."""
    student_entropy: float
    weak_entropy: float


class EvaluationResult(Record):
    """Everything that was found."""

    version: int = Field(default=RESULT_VERSION, ge=1, le=RESULT_VERSION)
    prompts: str
    num_prompts: int
    judges: tuple[JudgeResult, ...]
    sets: tuple[SetResult, ...]
    comparisons: tuple[ComparisonResult, ...]
    gaps: tuple[GapResult, ...]
    correlations: tuple[CorrelationResult, ...]
    agreements: tuple[AgreementResult, ...]
    misfits: tuple[MisfitResult, ...]
    software: dict[str, str]
