"""Settings of an evaluation: who answers which prompts, who judges the answers, and what is compared."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from cong.config.base import Count, PositiveFloat, Settings
from cong.config.models import NetworkConfig
from cong.schemas import SamplingParameters

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._+=-]{0,63}$")]
"""Part of file names, so letters, digits, spaces and ._+=- only."""
FunctionPath = Annotated[str, Field(pattern=r"^[A-Za-z]\w*(\.[A-Za-z]\w*)*:[A-Za-z]\w*$")]
"""`module:function`; names that begin with an underscore are private and refused."""


class CandidateConfig(NetworkConfig):
    """Whoever answers: a network (`source`, with or without an adapter), or answers that exist already (`answers`)."""

    answers: Path | None = None
    """JSON lines: prompt_id (or prompt, messages), and the text as answer, completion, response or output."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.answers is None) == (not self.source):
            raise ValueError("give exactly one of source (a network that answers) and answers (a file of them)")
        return self


class ProgramJudge(Settings):
    """A function (prompt, answer) -> float that anyone can import; naming it runs the code of its module."""

    kind: Literal["program"]
    function: FunctionPath
    low: float = 0.0
    """Least reward that the function may give; less is an error."""
    high: float = 1.0
    """Largest reward that the function may give; more is an error."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low is {self.low} and high is {self.high}; low must be less")
        return self


class ImplicitJudge(Settings):
    """log p_aligned - log p_base of the answer under a pair that shares a tokenizer; without a DPO beta."""

    kind: Literal["implicit"]
    aligned: NetworkConfig = NetworkConfig()
    """Empty = `models.aligned`."""
    base: NetworkConfig = NetworkConfig()
    """Empty = `models.base`."""
    form: Literal["mean", "sum"] = "mean"
    """mean: per token. sum: grows with the length of the answer."""


class RewardModelJudge(Settings):
    """A decoder-only network with one output per sequence."""

    kind: Literal["reward_model"]
    network: NetworkConfig
    """Without an adapter."""
    rendering: Literal["auto", "chat", "plain"] = "auto"
    """chat: through the tokenizer's chat template, a text prompt as one user message. plain: the answer right after
    the prompt, and an end of sequence. auto: chat where the tokenizer has a template."""
    max_tokens: int = Field(default=0, ge=0)
    """Longer sequences lose their first tokens, which is counted and reported; 0 = what the network can read."""
    batch_size: Count = 8

    @model_validator(mode="after")
    def _a_whole_network(self) -> Self:
        if not self.network.source or self.network.adapter is not None:
            raise ValueError("network.source must be a whole reward model; merge an adapter into its base first")
        return self


_JUDGES: dict[str, type[Settings]] = {
    "program": ProgramJudge,
    "implicit": ImplicitJudge,
    "reward_model": RewardModelJudge,
}


def _by_kind(value: Any) -> Any:
    """The judge of the kind that is named. A discriminated union would put the kind into the names of wrong keys."""
    if isinstance(value, tuple(_JUDGES.values())):
        return value
    kind = value.get("kind") if isinstance(value, dict) else None
    if not isinstance(kind, str) or kind not in _JUDGES:
        raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(_JUDGES)}")
    return _JUDGES[kind].model_validate(value)


JudgeConfig = Annotated[ProgramJudge | ImplicitJudge | RewardModelJudge, BeforeValidator(_by_kind)]


class GapSettings(Settings):
    """Between which candidates the recovered gap is measured."""

    floor: Name
    """The weak model: what a student has to beat."""
    ceiling: Name
    """The strong model trained on the truth."""


class MisfitSettings(Settings):
    """Which two candidates' token distributions are compared; they must share a tokenizer."""

    student: Name
    weak: Name


def _plain(value: Any) -> Any:
    """Sampling settings of one network: an unmixed distribution unless they say otherwise."""
    return {"weights": (1.0,), "head_lambda": 0.0, **value} if isinstance(value, dict) else value


class EvaluationConfig(Settings):
    """A whole evaluation. Device, dtype and paths' root come from `models`, the engine's sizes from `engine`."""

    prompts: Path | None = None
    """Held-out prompts: JSON lines, or a text per line. Needed."""
    num_prompts: int = Field(default=0, ge=0)
    """Take the first so many; 0 = all."""
    num_samples: Count = 1
    """Answers to every prompt at temperatures above 0."""
    temperatures: tuple[Annotated[float, Field(ge=0.0, le=100.0)], ...] = Field(default=(1.0,), min_length=1)
    """Results are about the first; 0 = greedy."""
    sampling: SamplingParameters = SamplingParameters.plain()
    """Everything else about the draws: max_tokens, top_p, seed, stop."""
    answers_stream: str = ""
    """Folder or URL of the stream that takes sampled answers; empty = JSON lines in `answers` of the output folder."""
    candidates: dict[Name, CandidateConfig] = Field(default_factory=dict)
    """By name, in the order of the tables. Needed."""
    judges: dict[Name, JudgeConfig] = Field(default_factory=dict)
    """By name; results are about the first, the others are compared with it. Needed."""
    baseline: Name | Literal[""] = ""
    """Candidate against which the others are compared; empty = the first."""
    tie_margin: float = Field(default=0.0, ge=0.0)
    """Rewards that differ by no more than this are a tie."""
    win_rate_interval: Literal["wilson", "bootstrap"] = "wilson"
    num_resamples: int = Field(default=1000, ge=100, le=100_000)
    """Of every bootstrap."""
    bootstrap_seed: int = Field(default=0, ge=0)
    gap: GapSettings | None = None
    """None: no recovered gap is reported."""
    misfit: MisfitSettings | None = None
    """None: no misfit is measured."""
    num_shown_prompts: int = Field(default=8, ge=0)
    """Prompts whose answers stand side by side on the page."""
    full_colour_nats: PositiveFloat = 3.0
    """Log-ratio of a token that gets the full colour."""

    @field_validator("sampling", mode="before")
    @classmethod
    def _of_one_network(cls, value: Any) -> Any:
        return _plain(value)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.sampling.weights) != 1:
            raise ValueError(
                f"sampling.weights are {self.sampling.weights}; a candidate is one network, so leave them out"
            )
        if len(set(self.temperatures)) < len(self.temperatures):
            raise ValueError(f"temperatures are {self.temperatures}; give each once")
        named = {"baseline": self.baseline} if self.baseline else {}
        if self.gap is not None:
            named |= {"gap.floor": self.gap.floor, "gap.ceiling": self.gap.ceiling}
        if self.misfit is not None:
            named |= {"misfit.student": self.misfit.student, "misfit.weak": self.misfit.weak}
        for key, name in named.items():
            if name not in self.candidates:
                raise ValueError(f"{key} is {name!r}, and the candidates are {', '.join(self.candidates) or 'none'}")
        if self.misfit is not None:
            for name in (self.misfit.student, self.misfit.weak):
                if not self.candidates[name].source:
                    raise ValueError(f"misfit needs networks, and candidate {name!r} is a file of answers")
        return self
