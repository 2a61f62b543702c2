"""What the service says and hears over HTTP: typed, frozen, bounded, the same for the server and for the client.

Knows no torch, no HTTP library and no engine. A stream of events always ends with an `EndEvent`; one without
it was cut.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from cong.schemas import Identifier, Input, Prompt, Record, SampleRecord, SamplingParameters, Score, ScoreRequest

StoreLevel = Literal["none", "local", "shared"]
"""none: not kept. local: survives a crash of the replica's machine. shared: survives the loss of it."""
StreamForm = Literal["none", "samples", "tokens"]
"""none: one document. samples: an event per finished sample. tokens: an event per token too."""
ErrorType = Literal[
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "not_found_error",
    "conflict_error",
    "rate_limit_error",
    "deadline_error",
    "unavailable_error",
    "server_error",
]

MAX_PROMPTS = 1024
MAX_SCORES = 1024

REQUEST_ID_HEADER = "x-request-id"
"""Names a request in replies and logs; made up where the caller gives none."""
IDEMPOTENCY_HEADER = "idempotency-key"
"""The same key with the same body gets the same answer, made once; with another body it is a conflict."""
NDJSON = "application/x-ndjson"
"""Streaming answers come in this form, one event a line; an empty line only says that the server is alive."""
EVENT_STREAM = "text/event-stream"
"""Streaming answers come in this form to whoever accepts it."""


class SampleCall(Input):
    """Body of `POST /sample`."""

    prompts: tuple[Prompt, ...] = Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)
    """A single prompt may be given as `prompt`; a prompt may be given as a bare string."""
    num_samples: int = Field(default=1, ge=1, le=4096)
    """Of every prompt."""
    parameters: SamplingParameters | None = None
    """What is not given is the deployment's own."""
    method: Identifier | None = None
    """A preset by name; it sets the weights and what else the method prescribes, `parameters` sets the rest."""
    method_parameters: dict[str, float] = Field(default_factory=dict, max_length=16)
    store: StoreLevel = "none"
    """How durable every sample is before it is answered."""
    stream: StreamForm = "none"
    deadline_s: float | None = Field(default=None, gt=0.0, le=86_400.0)
    """What is unfinished then is returned as it is; never later than the deployment allows."""

    @model_validator(mode="before")
    @classmethod
    def _accept_one_prompt(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "prompt" not in data:
            return data
        if "prompts" in data:
            raise ValueError("give prompt or prompts, not both")
        if isinstance(data["prompt"], list | tuple):
            raise ValueError(
                "prompt is a list; give a text, an object with messages or token_ids, or several as prompts"
            )
        rest = {name: value for name, value in data.items() if name != "prompt"}
        return {**rest, "prompts": (data["prompt"],)}

    @field_validator("prompts", mode="before")
    @classmethod
    def _accept_strings(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return value
        if len(value) > MAX_PROMPTS:
            raise ValueError(f"holds {len(value)} prompts; one request may have {MAX_PROMPTS}")
        return tuple({"text": item} if isinstance(item, str) else item for item in value)

    @model_validator(mode="after")
    def _method_parameters_have_a_method(self) -> Self:
        if self.method_parameters and self.method is None:
            raise ValueError("method_parameters are given without a method; name one")
        return self


class ErrorBody(Record):
    """What went wrong, in the form that OpenAI's clients read, with what a program needs to react."""

    message: str
    type: ErrorType
    param: str | None = None
    """The field that is wrong."""
    code: str | None = None
    retry_after_s: float | None = None
    request_id: str = ""


class ErrorReply(Record):
    """Body of every reply that is not a success."""

    error: ErrorBody


class Usage(Record):
    """Tokens read and written."""

    prompt_tokens: int = Field(default=0, ge=0)
    completion_tokens: int = Field(default=0, ge=0)


class StoredSample(Record):
    """A sample with what is promised about it."""

    record: SampleRecord
    stored: StoreLevel = "none"
    """The level reached when this was said: at least the one asked for, but `none` for a sample that was cut short
    (finish reason `deadline`, `cancelled` or `error`), which is never stored."""
    is_duplicate: bool = False
    """It was in the stream already and has not been made again."""


class SampleReply(Record):
    """Reply of `POST /sample` as one document; samples in order of prompts, then of sample index."""

    request_id: str
    samples: tuple[StoredSample, ...]
    usage: Usage


class TokenEvent(Record):
    """One token of a streaming answer."""

    event: Literal["token"] = "token"
    prompt_index: int = Field(ge=0)
    sample_index: int = Field(ge=0)
    text: str
    """What became certain with it; may be empty where a character is not complete."""
    token_id: int = Field(ge=0)
    mixture_logprob: float


class SampleEvent(Record):
    """One sample of a streaming answer is finished, and stored as asked."""

    event: Literal["sample"] = "sample"
    prompt_index: int = Field(ge=0)
    sample: StoredSample


class EndEvent(Record):
    """The last line of every streaming answer; what ends without it was cut off."""

    event: Literal["end"] = "end"
    request_id: str
    num_samples: int = Field(ge=0)
    usage: Usage
    error: ErrorBody | None = None
    """Why it ended early; None: everything asked for has been sent."""


StreamEvent = Annotated[TokenEvent | SampleEvent | EndEvent, Field(discriminator="event")]


class ScoreCall(Input):
    """Body of `POST /score`."""

    items: tuple[ScoreRequest, ...] = Field(min_length=1, max_length=MAX_SCORES, fail_fast=True)
    deadline_s: float | None = Field(default=None, gt=0.0, le=86_400.0)


class ScoredText(Record):
    """One text's log-probs, and its implicit reward where the deployment holds a pair."""

    score: Score
    implicit_reward_sum: float | None = None
    implicit_reward_mean: float | None = None


class ScoreReply(Record):
    """Reply of `POST /score`, in the order of the items."""

    request_id: str
    items: tuple[ScoredText, ...]
    usage: Usage


class Limits(Record):
    """What one request may ask of a deployment, as `/info` tells."""

    max_total_tokens: int
    """Prompt and completion of one sample together."""
    max_new_tokens: int
    max_samples: int
    """Of one request, over all its prompts."""
    max_body_bytes: int
    max_deadline_s: float
    max_concurrent_per_key: int


class NetworkInfo(Record):
    """One network of the deployment."""

    role: str
    name: str
    fingerprint: str
    num_parameters: int
    architecture: str


class InfoReply(Record):
    """Reply of `GET /info`."""

    deployment: str
    backend: str
    networks: tuple[NetworkInfo, ...]
    tokenizer_fingerprint: str
    defaults: SamplingParameters
    limits: Limits
    store_levels: tuple[StoreLevel, ...]
    """What `store` may ask for here."""
    stream_location: str | None
    methods: tuple[str, ...]
    software: dict[str, str]


class HealthReply(Record):
    """Reply of `GET /health`; anything but `ok` comes with status 503."""

    status: Literal["ok", "starting", "draining", "stuck", "broken"]
    reason: str = ""
    """Why it is not ok, for people."""
    num_running: int = 0
    num_waiting: int = 0
    num_steps: int = 0
    """Grows while there is work: the engine's thread advances."""
    uptime_s: float = 0.0
