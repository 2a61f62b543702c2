"""OpenAI's completions and chat completions as requests for samples: which fields mean what, and which are refused.

Pure functions and models; knows no HTTP and no engine. A field that changes nothing here is ignored, one that would
change the answer and is not supported is refused by name, and a field that nobody knows is refused too.
"""

import secrets
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, WithJsonSchema, model_validator

from cong.errors import InvalidRequest, NotFound
from cong.schemas import Identifier, Input, Message, Prompt, SamplingParameters, ScoreRequest, StopString, Text, TokenId
from cong.wire import MAX_PROMPTS, SampleCall, ScoreCall, StoreLevel
from cong.wording import first_cause

DEFAULT_COMPLETION_TOKENS = 16
"""What OpenAI's completions give to whoever names no length. Chats get the deployment's own length."""
MAX_CHOICES = 128
MAX_TOP_LOGPROBS = 20


def _only(*allowed: Any) -> Any:
    """A field that may be given as long as it asks for nothing."""

    def check(value: Any) -> Any:
        if not any(type(value) is type(one) and value == one for one in allowed):
            raise ValueError("asks for something that is not supported here; leave it out")
        return value

    shown: list[Any] = [None, *(one for one in allowed if one is not None)]
    return Annotated[
        Any, BeforeValidator(lambda value: None if value is None else check(value)), WithJsonSchema({"enum": shown})
    ]


Ignored = Annotated[Any, BeforeValidator(lambda _: None), WithJsonSchema({"description": "taken and ignored"})]
"""Whatever it is, it is dropped: it makes no other request of one that is sent again, and need not be text."""
Unsupported = _only(None)


class _Request(Input):
    """A part of what is asked."""


class StreamOptions(_Request):
    """What a streaming answer holds beside the text."""

    include_usage: bool | None = None
    """A last chunk with token counts, before `[DONE]`."""
    include_obfuscation: Ignored = None


class _Common(_Request):
    """What completions and chats share."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    """The deployment's name, as `/v1/models` gives it."""
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    temperature: Annotated[float, Field(ge=0.0, le=100.0)] | None = None
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    stop: StopString | Annotated[tuple[StopString, ...], Field(max_length=16, fail_fast=True)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    """None = another one for each request; the same seed gives the same samples."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    alpha: Annotated[float, Field(ge=0.0, le=100.0)] | None = None
    """Contrast strength; 1 = none."""
    head_lambda: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    method: Identifier | None = None
    """A decoding method by name, instead of alpha and head_lambda."""
    method_parameters: dict[str, float] = Field(default_factory=dict, max_length=16)
    top_k: Annotated[int, Field(ge=-1)] | None = None
    """0 and -1 = disabled."""
    repetition_penalty: Annotated[float, Field(gt=0.0, le=100.0)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    ignore_eos: bool | None = None
    stop_token_ids: Annotated[tuple[TokenId, ...], Field(max_length=64, fail_fast=True)] | None = None
    deadline_s: Annotated[float, Field(gt=0.0, le=86_400.0)] | None = None
    store: bool | None = None
    """True: samples are kept in the stream, as durably as the deployment can."""

    presence_penalty: _only(0, 0.0) = None  # type: ignore[valid-type]
    frequency_penalty: _only(0, 0.0) = None  # type: ignore[valid-type]
    logit_bias: _only({}) = None  # type: ignore[valid-type]
    user: Ignored = None
    metadata: Ignored = None
    safety_identifier: Ignored = None
    service_tier: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_retention: Ignored = None

    @property
    def num_choices(self) -> int:
        """Samples of each prompt."""
        return self.n or 1

    @property
    def wants_usage(self) -> bool:
        """Whether a streaming answer ends with token counts."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


def _as_prompts(value: Any) -> Any:
    """A text, several texts, token ids, or several lists of token ids."""
    if isinstance(value, str):
        return ({"text": value},)
    if not isinstance(value, list | tuple) or not value:
        raise ValueError("must be a text, a list of texts, a list of token ids, or a list of such lists; none is empty")
    if isinstance(value[0], int):
        return ({"token_ids": value},)
    if len(value) > MAX_PROMPTS:
        raise ValueError(f"holds {len(value)} prompts; one request may have {MAX_PROMPTS}")
    if isinstance(value[0], str):
        return tuple({"text": text} for text in value)
    return tuple({"token_ids": token_ids} for token_ids in value)


_TOKEN_IDS = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}
_PROMPT_FORMS = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "minItems": 1, "items": {"type": "string"}},
        _TOKEN_IDS,
        {"type": "array", "minItems": 1, "items": _TOKEN_IDS},
    ]
}


class CompletionRequest(_Common):
    """Body of `POST /v1/completions`."""

    prompt: Annotated[
        tuple[Prompt, ...], Field(fail_fast=True), BeforeValidator(_as_prompts), WithJsonSchema(_PROMPT_FORMS)
    ]
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    """None = 16. 0 takes `echo`: the prompt is scored and nothing is drawn."""
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    """Only the value of `n`."""
    echo: bool | None = None
    """The prompt stands in front of the text, and its log-probs in front of the others."""
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    """From 1 on `top_logprobs` is given too, with the one token that stands there."""
    suffix: _only("") = None  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.best_of is not None and self.best_of != self.num_choices:
            raise ValueError(f"best_of is {self.best_of} and n is {self.num_choices}; only equal values are supported")
        if self.echo and self.stream:
            raise ValueError("echo cannot be streamed; leave one of them out")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens is 0, which takes echo; ask for at least 1 token")
        return self

    @property
    def num_new_tokens(self) -> int:
        """The length that is asked for."""
        return DEFAULT_COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens


class TextPart(_Request):
    """A part of a message; only texts are understood."""

    type: Literal["text"]
    text: Text


class ChatMessage(_Request):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Annotated[tuple[TextPart, ...], Field(max_length=1000, fail_fast=True)]
    """Parts are joined with nothing between them."""
    name: Ignored = None
    tool_call_id: Ignored = None
    refusal: Unsupported = None  # type: ignore[valid-type]
    tool_calls: _only([]) = None  # type: ignore[valid-type]
    function_call: Unsupported = None  # type: ignore[valid-type]
    audio: Unsupported = None  # type: ignore[valid-type]

    @property
    def message(self) -> Message:
        """The same in our own words."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message(role="system" if self.role == "developer" else self.role, content=text)


class ChatRequest(_Common):
    """Body of `POST /v1/chat/completions`."""

    messages: Annotated[tuple[ChatMessage, ...], Field(min_length=1, max_length=10_000, fail_fast=True)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    """The newer name of `max_tokens`."""
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    """From 1 on each token lists the one token that was drawn; others are not known."""

    response_format: _only({"type": "text"}) = None  # type: ignore[valid-type]
    modalities: _only(["text"]) = None  # type: ignore[valid-type]
    tools: _only([]) = None  # type: ignore[valid-type]
    tool_choice: _only("none", "auto") = None  # type: ignore[valid-type]
    functions: _only([]) = None  # type: ignore[valid-type]
    function_call: _only("none", "auto") = None  # type: ignore[valid-type]
    parallel_tool_calls: Ignored = None
    audio: Unsupported = None  # type: ignore[valid-type]
    prediction: Unsupported = None  # type: ignore[valid-type]
    reasoning_effort: _only("none") = None  # type: ignore[valid-type]
    verbosity: _only("medium") = None  # type: ignore[valid-type]
    web_search_options: Unsupported = None  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise ValueError("max_tokens and max_completion_tokens differ; give one of them")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs takes logprobs: true")
        return self

    @property
    def num_new_tokens(self) -> int | None:
        """The length that is asked for; None = the deployment's own."""
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens


def completion_call(request: CompletionRequest, levels: tuple[StoreLevel, ...]) -> SampleCall | None:
    """The samples that a completion asks for; None where it asks for none, only for the prompt's log-probs."""
    if request.num_new_tokens == 0:
        return None
    return _call(request, request.prompt, request.num_new_tokens, levels)


def chat_call(request: ChatRequest, levels: tuple[StoreLevel, ...]) -> SampleCall:
    """The samples that a chat asks for."""
    prompt = Prompt(messages=tuple(message.message for message in request.messages))
    return _call(request, (prompt,), request.num_new_tokens, levels)


def echo_call(token_ids: tuple[tuple[int, ...], ...], deadline_s: float | None) -> ScoreCall | None:
    """What must be scored to know the log-probs of prompts: each but its first token, which follows nothing."""
    items = tuple(
        ScoreRequest(prompt=Prompt(token_ids=ids[:1]), completion_token_ids=ids[1:])
        for ids in token_ids
        if len(ids) > 1
    )
    return ScoreCall(items=items, deadline_s=deadline_s) if items else None


def require_model(asked: str, deployment: str) -> None:
    """Refuse a model that is not served here."""
    if asked != deployment:
        raise NotFound("model", f"{asked!r} is not served here; this deployment is {deployment!r}")


def in_openai_words(error: InvalidRequest, is_chat: bool) -> InvalidRequest:
    """The same error with the field as OpenAI calls it."""
    field = error.field.removeprefix("parameters.")
    if field.partition(".")[0] == "prompts":
        field = "messages" if is_chat else "prompt"
    names = {"num_samples": "n", "weights": "alpha"}
    return InvalidRequest(names.get(field, field), str(error).partition(": ")[2])


def _call(
    request: _Common, prompts: tuple[Prompt, ...], max_tokens: int | None, levels: tuple[StoreLevel, ...]
) -> SampleCall:
    given: dict[str, Any] = {
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": None if request.top_k is None else max(0, request.top_k),
        "repetition_penalty": request.repetition_penalty,
        "seed": secrets.randbits(63) if request.seed is None else request.seed % 2**63,
        "max_tokens": max_tokens,
        "min_tokens": request.min_tokens,
        "stop": request.stop,
        "stop_token_ids": request.stop_token_ids,
        "ignore_eos": request.ignore_eos,
        "alpha": request.alpha,
        "head_lambda": request.head_lambda,
    }
    try:
        parameters = SamplingParameters.model_validate(
            {name: value for name, value in given.items() if value is not None}
        )
    except ValidationError as error:
        raise InvalidRequest(*first_cause(error.errors(), "max_tokens")) from error
    if request.method_parameters and request.method is None:
        raise InvalidRequest("method_parameters", "are given without a method; name one")
    return SampleCall(
        prompts=prompts,
        num_samples=request.num_choices,
        parameters=parameters,
        method=request.method,
        method_parameters=request.method_parameters,
        # Where nothing is kept, the service says so.
        store="none" if not request.store else levels[-1] if len(levels) > 1 else "local",
        stream="tokens" if request.stream else "none",
        deadline_s=request.deadline_s,
    )
