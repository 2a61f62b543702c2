"""Samples and scores in the form of OpenAI's replies and chunks. Pure; knows no HTTP and no engine.

The log-prob of a drawn token is that of the mixture it was drawn from. The log-prob of a prompt's token is the aligned
network's (the first network's where none is aligned). `top_logprobs` holds the one token that stands there.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from cong.schemas import FinishReason, SampleRecord
from cong.service.vocabulary import Vocabulary
from cong.wire import ScoredText, TokenEvent, Usage

OpenAIFinish = Literal["stop", "length"]

_FINISH: dict[FinishReason, OpenAIFinish] = {
    "stop": "stop",
    "length": "length",
    "deadline": "length",
    "cancelled": "length",
    "error": "length",
}
"""Whatever cut a text short, for OpenAI it ran out of length."""


class _Reply(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class OpenAIUsage(_Reply):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionLogprobs(_Reply):
    """Log-probs of a completion, one entry for each token."""

    tokens: tuple[str, ...]
    token_logprobs: tuple[float | None, ...]
    """None for a prompt's first token, which follows nothing."""
    top_logprobs: tuple[dict[str, float] | None, ...] | None
    text_offset: tuple[int, ...]


class CompletionChoice(_Reply):
    """One sample of a completion."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: OpenAIFinish | None


class CompletionReply(_Reply):
    """Reply of `POST /v1/completions`."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: tuple[CompletionChoice, ...]
    usage: OpenAIUsage


class TopLogprob(_Reply):
    """A token with its log-prob."""

    token: str
    logprob: float
    bytes: tuple[int, ...] | None


class TokenLogprob(TopLogprob):
    """A token of a chat's answer."""

    top_logprobs: tuple[TopLogprob, ...]


class ChatLogprobs(_Reply):
    """Log-probs of a chat's answer."""

    content: tuple[TokenLogprob, ...]
    refusal: None = None


class AssistantMessage(_Reply):
    """The answer of a chat."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(_Reply):
    """One sample of a chat."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: OpenAIFinish


class ChatReply(_Reply):
    """Reply of `POST /v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: tuple[ChatChoice, ...]
    usage: OpenAIUsage


class ModelEntry(_Reply):
    """A model that may be asked for."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "cong"


class ModelsReply(_Reply):
    """Reply of `GET /v1/models`."""

    object: Literal["list"] = "list"
    data: tuple[ModelEntry, ...]


@dataclass(frozen=True)
class Head:
    """What every reply and chunk of an answer begins with."""

    id: str
    created: int
    model: str


@dataclass(frozen=True)
class Echo:
    """A prompt that is repeated in front of its completion."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float | None, ...]


def openai_usage(usage: Usage) -> OpenAIUsage:
    """Token counts with their sum."""
    return OpenAIUsage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
    )


def finish_of(record: SampleRecord) -> OpenAIFinish:
    """Why a sample ended, in OpenAI's words."""
    return _FINISH[record.finish_reason]


def echo_of(token_ids: tuple[int, ...], text: str | None, scored: ScoredText | None, vocabulary: Vocabulary) -> Echo:
    """A prompt with the log-probs of its tokens.

    What the tokenizer puts in front of a text is not part of it; the text's first token is then scored behind it.
    """
    known = scored.score.logprobs if scored is not None else {}
    values = known.get("aligned") or next(iter(known.values()), ())
    logprobs: tuple[float | None, ...] = (None, *values)
    num_hidden = 0
    if text is not None and token_ids[: len(vocabulary.prefix_ids)] == vocabulary.prefix_ids:
        num_hidden = len(vocabulary.prefix_ids)
    shown = vocabulary.decode(token_ids) if text is None else text
    return Echo(shown, token_ids[num_hidden:], logprobs[num_hidden:])


def completion_choice(
    index: int, record: SampleRecord | None, echo: Echo | None, num_logprobs: int | None, vocabulary: Vocabulary
) -> CompletionChoice:
    """A sample, or only the prompt, as a choice of a completion."""
    text = ("" if echo is None else echo.text) + ("" if record is None else record.completion_text)
    token_ids = (() if echo is None else echo.token_ids) + (() if record is None else record.completion_token_ids)
    values: tuple[float | None, ...] = () if echo is None else echo.logprobs
    values += () if record is None else record.mixture_logprobs
    logprobs = None if num_logprobs is None else completion_logprobs(token_ids, values, num_logprobs, vocabulary)
    return CompletionChoice(
        index=index,
        text=text,
        logprobs=logprobs,
        finish_reason="length" if record is None else finish_of(record),
    )


def completion_logprobs(
    token_ids: Sequence[int], values: Sequence[float | None], num_top: int, vocabulary: Vocabulary, start: int = 0
) -> CompletionLogprobs:
    """Log-probs of some tokens, the first of which stands at character `start` of the text."""
    tokens = tuple(vocabulary.show(token_id) for token_id in token_ids)
    offsets, at = [], start
    for token in tokens:
        offsets.append(at)
        at += len(token)
    top = tuple(None if value is None else {token: value} for token, value in zip(tokens, values, strict=True))
    return CompletionLogprobs(
        tokens=tokens, token_logprobs=tuple(values), top_logprobs=top if num_top else None, text_offset=tuple(offsets)
    )


def chat_choice(index: int, record: SampleRecord, num_top: int | None, vocabulary: Vocabulary) -> ChatChoice:
    """A sample as a choice of a chat; `num_top` None = without log-probs."""
    logprobs = None
    if num_top is not None:
        logprobs = chat_logprobs(
            zip(record.completion_token_ids, record.mixture_logprobs, strict=True), num_top, vocabulary
        )
    return ChatChoice(
        index=index,
        message=AssistantMessage(content=record.completion_text),
        logprobs=logprobs,
        finish_reason=finish_of(record),
    )


def chat_logprobs(tokens: Iterable[tuple[int, float]], num_top: int, vocabulary: Vocabulary) -> ChatLogprobs:
    """Log-probs of some tokens of a chat's answer."""
    content = []
    for token_id, logprob in tokens:
        token = vocabulary.show(token_id)
        # A token that is a part of a character has no text of its own, and its bytes are not known.
        spelled = None if "\ufffd" in token else tuple(token.encode())
        drawn = TopLogprob(token=token, logprob=logprob, bytes=spelled)
        content.append(
            TokenLogprob(token=token, logprob=logprob, bytes=spelled, top_logprobs=(drawn,) if num_top else ())
        )
    return ChatLogprobs(content=tuple(content))


def completion_chunk(
    index: int, event: TokenEvent, num_top: int | None, vocabulary: Vocabulary, start: int
) -> dict[str, Any]:
    """One token of a completion that is streamed; `start` is where its text begins."""
    logprobs = None
    if num_top is not None:
        found = completion_logprobs([event.token_id], [event.mixture_logprob], num_top, vocabulary, start)
        logprobs = found.model_dump()
    return {"index": index, "text": event.text, "logprobs": logprobs, "finish_reason": None}


def chat_chunk(index: int, event: TokenEvent, num_top: int | None, vocabulary: Vocabulary) -> dict[str, Any]:
    """One token of a chat that is streamed."""
    logprobs = None
    if num_top is not None:
        logprobs = chat_logprobs([(event.token_id, event.mixture_logprob)], num_top, vocabulary).model_dump()
    return {"index": index, "delta": {"content": event.text}, "logprobs": logprobs, "finish_reason": None}
