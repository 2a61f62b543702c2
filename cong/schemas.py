"""Every record that crosses a process or reaches disk: typed, frozen, versioned, and refusing unknown fields.

Knows pydantic only: no torch, no file formats, no HTTP. Numbers keep their meaning here once and for all:
log-probabilities are natural logarithms, and a sample's score is sum_k weights[k] * log p_k on the head set of the
first network.
"""

import hashlib
import json
import math
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

SCHEMA_VERSION = 1
"""Version of every record written today; readers accept this one and all before it."""

MAX_NETWORKS = 3
MAX_TEXT_CHARS = 4_000_000
MAX_TOKEN_IDS = 1_000_000
SMALLEST_TEMPERATURE = 1e-3
SMALLEST_TOP_P = 1e-6
SMALLEST_PENALTY = 1e-3
"""Networks compute in single precision or less, where smaller factors become 0 and break what divides by them."""

Role = Literal["aligned", "base", "strong"]
FinishReason = Literal["stop", "length", "cancelled", "deadline", "error"]
SampleKind = Literal["contrastive", "plain"]
PenaltyRule = Literal["additive", "multiplicative", "reference"]

TokenId = Annotated[int, Field(ge=0, lt=2**31, strict=True)]
Text = Annotated[str, Field(max_length=MAX_TEXT_CHARS)]
Identifier = Annotated[str, Field(min_length=1, max_length=256)]


def _greedy_or_warm(temperature: float) -> float:
    if 0.0 < temperature < SMALLEST_TEMPERATURE:
        raise ValueError(f"is {temperature:g}; it must be 0, which is greedy, or at least {SMALLEST_TEMPERATURE:g}")
    return temperature


Temperature = Annotated[float, Field(ge=0.0, le=100.0), AfterValidator(_greedy_or_warm)]
NetworkTemperature = Annotated[float, Field(ge=SMALLEST_TEMPERATURE, le=100.0)]
StopString = Annotated[str, Field(min_length=1, max_length=256)]


class Record(BaseModel):
    """A frozen value that refuses fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _is_number(annotation: Any) -> bool:
    """Whether a field takes a number, or a number or nothing."""
    return annotation in (int, float) or any(_is_number(inner) for inner in get_args(annotation)[:1])


class Input(Record):
    """A record that people and programs write by hand: yes and no do not pass for 1 and 0.

    YAML reads yes, no, on and off as truth values, and JSON's true is one letter more than a mistake.
    """

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and _is_number(cls.model_fields[info.field_name or ""].annotation):
            raise ValueError("is yes or no, and a number is needed")
        return value


def canonical_json(value: Any) -> str:
    """The one JSON spelling of a value: sorted keys, no spaces, ASCII only."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def content_key(value: Any) -> str:
    """Hex digest (160 bits) of the canonical JSON of a value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:40]


class Message(Record):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: Text


def _content_prompt_id(fields: dict[str, Any]) -> str:
    messages = [message.model_dump() for message in fields.get("messages") or ()]
    return "p-" + content_key([fields.get("text"), messages, fields.get("token_ids")])[:24]


class Prompt(Record):
    """What is asked, in exactly one of three forms, under an id that stays with it for ever."""

    text: Text | None = None
    messages: tuple[Message, ...] = Field(default=(), max_length=10_000, fail_fast=True)
    token_ids: tuple[TokenId, ...] = Field(default=(), max_length=MAX_TOKEN_IDS, fail_fast=True)
    prompt_id: Identifier = Field(default_factory=_content_prompt_id)
    """Pairs and judgements are joined by it; a hash of the content unless given."""

    @model_validator(mode="after")
    def _exactly_one_form(self) -> Self:
        num_forms = (self.text is not None) + bool(self.messages) + bool(self.token_ids)
        if num_forms != 1:
            raise ValueError(f"give exactly one of text, messages and token_ids; {num_forms} are given")
        return self

    @property
    def shown(self) -> str:
        """For people: the text, the conversation line by line, or the ids."""
        said = "\n".join(f"{message.role}: {message.content}" for message in self.messages)
        return self.text or said or f"token ids {list(self.token_ids)}"


def alpha_weights(alpha: float) -> tuple[float, float]:
    """Weights of (aligned, base) for ConG's contrast strength: alpha 1 is the plain aligned model."""
    return (1.0, alpha - 1.0)


class SamplingParameters(Input):
    """How tokens are drawn: per request, and part of a sample's identity.

    The defaults contrast a pair at the method's strength and change nothing else. Input may say `alpha` instead of
    `weights`.
    """

    INPUT_KEYS: ClassVar[tuple[str, ...]] = ("alpha",)

    weights: tuple[float, ...] = Field(
        default=alpha_weights(0.4), min_length=1, max_length=MAX_NETWORKS, fail_fast=True
    )
    """Factor of each network's log-probability, in the order of the deployment's networks."""
    network_temperatures: tuple[NetworkTemperature, ...] = Field(default=(), max_length=MAX_NETWORKS, fail_fast=True)
    """Temperature of each network before it is weighted; empty = 1 for all."""
    head_lambda: float = Field(default=0.1, ge=0.0, le=1.0)
    """A token stays if the first network gives it at least this share of its best token's probability; 0 = all stay."""
    logprob_floor: float = Field(default=-30.0, le=0.0, ge=-1e4)
    """Log-probabilities of the other networks are raised to at least this before they are weighted."""
    exempt_token_ids: tuple[TokenId, ...] = Field(default=(), max_length=4096, fail_fast=True)
    """Tokens for which every network is taken to agree with the first: no contrast acts on them."""
    temperature: Temperature = 1.0
    """0 = greedy: the best score, lowest id on ties."""
    top_k: int = Field(default=0, ge=0)
    """0 = disabled."""
    top_p: float = Field(default=1.0, ge=SMALLEST_TOP_P, le=1.0)
    """1 = disabled."""
    repetition_penalty: float = Field(default=1.0, ge=SMALLEST_PENALTY, le=100.0)
    """1 = disabled; what it does is said by `penalty_rule`."""
    penalty_rule: PenaltyRule = "additive"
    """additive: a generated token's score loses ln(penalty). multiplicative: transformers' rule (positive scores
    divided, negative multiplied), prompt included. reference: the same on scores shifted as the published code
    shifts them."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Draws depend on it, on the prompt's tokens, on the sample's index and on the position, and on nothing else."""
    max_tokens: int = Field(default=256, ge=1, le=MAX_TOKEN_IDS)
    min_tokens: int = Field(default=0, ge=0, le=MAX_TOKEN_IDS)
    """Ends of sequence and stops do not act before so many tokens."""
    stop: tuple[StopString, ...] = Field(default=(), max_length=16, fail_fast=True)
    stop_token_ids: tuple[TokenId, ...] = Field(default=(), max_length=64, fail_fast=True)
    ignore_eos: bool = False

    @model_validator(mode="before")
    @classmethod
    def _accept_alpha(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "alpha" not in data:
            return data
        if "weights" in data:
            raise ValueError("give alpha or weights, not both")
        alpha = data["alpha"]
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0.0 <= alpha <= 100.0:
            raise ValueError(f"alpha is {alpha!r}; it must be a number from 0 to 100")
        rest = {name: value for name, value in data.items() if name != "alpha"}
        return {**rest, "weights": alpha_weights(float(alpha))}

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop_string(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not any(self.weights) or any(abs(weight) > 100.0 for weight in self.weights):
            raise ValueError(f"weights are {self.weights}; they must lie in -100..100 and not all be 0")
        if self.network_temperatures and len(self.network_temperatures) != len(self.weights):
            raise ValueError(
                f"network_temperatures has {len(self.network_temperatures)} entries and weights has "
                f"{len(self.weights)}; give one each, or none"
            )
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens is {self.min_tokens}, more than max_tokens, {self.max_tokens}")
        return self

    @classmethod
    def contrastive(cls, alpha: float, **others: Any) -> "SamplingParameters":
        """Parameters for a pair at contrast strength `alpha`."""
        return cls.model_validate({"alpha": alpha, **others})

    @classmethod
    def plain(cls, **others: Any) -> "SamplingParameters":
        """Parameters for ordinary sampling from one network, without a head set unless asked for."""
        return cls.model_validate({"weights": (1.0,), "head_lambda": 0.0, **others})

    @property
    def alpha(self) -> float | None:
        """ConG's contrast strength, where the weights are those of a pair at unit fluency."""
        return 1.0 + self.weights[1] if len(self.weights) == 2 and self.weights[0] == 1.0 else None

    @property
    def kind(self) -> SampleKind:
        """Contrastive where more than one network has a say."""
        return "contrastive" if sum(weight != 0.0 for weight in self.weights) > 1 else "plain"


class NetworkIdentity(Record):
    """Which network it was: the fingerprint decides, the name is for people."""

    role: Role
    name: Identifier
    fingerprint: Identifier


class SampleRequest(Input):
    """Samples wanted for one prompt."""

    prompt: Prompt
    parameters: SamplingParameters = SamplingParameters()
    num_samples: int = Field(default=1, ge=1, le=4096)


def sample_keys(
    networks: tuple[NetworkIdentity, ...],
    text_fingerprint: str,
    prompt_token_ids: tuple[int, ...],
    parameters: SamplingParameters,
    sample_indices: Iterable[int],
) -> tuple[str, ...]:
    """Identities of samples: the same question has the same key in every run, and is generated once.

    A key is the content key of the list of all five, the last of them one index; what comes before it is hashed once.
    `text_fingerprint` is the tokenizer's, and names ends of sequence beside its own.
    """
    question = canonical_json(
        [
            [[network.role, network.fingerprint] for network in networks],
            text_fingerprint,
            prompt_token_ids,
            parameters.model_dump(mode="json"),
        ]
    )
    opening = hashlib.sha256(f"{question[:-1]},".encode())

    def key(sample_index: int) -> str:
        whole = opening.copy()
        whole.update(f"{sample_index}]".encode())
        return f"s-{whole.hexdigest()[:40]}"

    return tuple(map(key, sample_indices))


class Timings(Record):
    """Where a sample's seconds went."""

    queued_s: float = Field(default=0.0, ge=0.0)
    first_token_s: float = Field(default=0.0, ge=0.0)
    """From admission to the first token."""
    total_s: float = Field(default=0.0, ge=0.0)


def log_ratio(aligned: Iterable[float], base: Iterable[float]) -> float:
    """The implicit reward of a completion, free of beta: log p_aligned - log p_base, summed over its tokens."""
    return math.fsum(aligned) - math.fsum(base)


class SampleRecord(Record):
    """Everything needed to train on a sample, to audit it, and never to make it twice."""

    schema_version: int = Field(default=SCHEMA_VERSION, ge=1, le=SCHEMA_VERSION)
    key: Identifier
    kind: SampleKind
    prompt: Prompt
    prompt_token_ids: tuple[TokenId, ...]
    completion_text: Text
    completion_token_ids: tuple[TokenId, ...]
    """Ends with the end-of-sequence token where one was drawn."""
    logprobs: dict[Role, tuple[float, ...]]
    """Log-probability of each completion token under each network at temperature 1."""
    mixture_logprobs: tuple[float, ...]
    """Log-probability of each completion token under the distribution it was drawn from."""
    head_sizes: tuple[int, ...]
    """Tokens in the head set at each step."""
    finish_reason: FinishReason
    parameters: SamplingParameters
    sample_index: int = Field(ge=0)
    networks: tuple[NetworkIdentity, ...]
    tokenizer_fingerprint: Identifier
    software: dict[str, str] = {}
    writer: str = ""
    timings: Timings = Timings()
    created_at: str = ""
    """UTC, ISO 8601; for people, never for ordering."""

    @model_validator(mode="after")
    def _one_entry_per_token(self) -> Self:
        num_tokens = len(self.completion_token_ids)
        lengths = {f"logprobs[{role}]": len(values) for role, values in self.logprobs.items()}
        lengths |= {"mixture_logprobs": len(self.mixture_logprobs), "head_sizes": len(self.head_sizes)}
        wrong = {name: length for name, length in lengths.items() if length != num_tokens}
        if wrong:
            raise ValueError(f"the completion has {num_tokens} tokens, but {wrong}")
        return self

    @property
    def implicit_reward_sum(self) -> float | None:
        """Sum over the completion of log p_aligned - log p_base; None without a pair."""
        if "aligned" not in self.logprobs or "base" not in self.logprobs:
            return None
        return log_ratio(self.logprobs["aligned"], self.logprobs["base"])

    @property
    def implicit_reward_mean(self) -> float | None:
        """Implicit reward per token; None without a pair or without tokens."""
        total = self.implicit_reward_sum
        return None if total is None or not self.completion_token_ids else total / len(self.completion_token_ids)


class Completion(Record):
    """One answer of a preference pair, with the key of the sample it came from where there is one."""

    text: Text
    token_ids: tuple[TokenId, ...] = ()
    """Empty = the text is tokenized by whoever trains on it."""
    key: str = ""


class PreferenceRecord(Record):
    """A prompt with a better and a worse answer; joined by prompt id and key, never by position."""

    schema_version: int = Field(default=SCHEMA_VERSION, ge=1, le=SCHEMA_VERSION)
    prompt: Prompt
    chosen: Completion
    rejected: Completion
    weight: float = Field(default=1.0, ge=0.0)
    """Factor of the pair's loss."""


class ScoreRequest(Input):
    """A text whose tokens are to be scored under every network of the deployment."""

    prompt: Prompt
    completion_text: Text | None = None
    completion_token_ids: tuple[TokenId, ...] = Field(default=(), max_length=MAX_TOKEN_IDS, fail_fast=True)

    @model_validator(mode="after")
    def _one_completion(self) -> Self:
        if (self.completion_text is None) == (not self.completion_token_ids):
            raise ValueError("give exactly one of completion_text and completion_token_ids")
        return self


class Score(Record):
    """Log-probabilities of a given completion under every network."""

    prompt_id: Identifier
    completion_token_ids: tuple[TokenId, ...]
    logprobs: dict[Role, tuple[float, ...]]
