"""`/v1/models`, `/v1/completions` and `/v1/chat/completions`: what OpenAI's clients speak."""

import time
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request
from fastapi.responses import Response

from cong.errors import InvalidRequest
from cong.schemas import SampleRecord
from cong.service import Answer, RetryKey, SampleService, openai
from cong.service import openai_replies as replies
from cong.service.openai import ChatRequest, CompletionRequest
from cong.wire import EVENT_STREAM, SampleCall, SampleReply, ScoredText, Usage
from serve.http.leaving import unless_gone
from serve.http.openai_streams import ChatEncoder, CompletionEncoder
from serve.http.provider import caller_of, request_id_of, service_of
from serve.http.replies import ERRORS, READ_ERRORS, SERVER_SENT, json_reply
from serve.http.sampling import IdempotencyKey, patience_of, retry_key
from serve.http.streaming import AnswerStream

router = APIRouter(prefix="/v1")

_STREAM: dict[str, Any] = {
    "description": "One document, or with `stream` server-sent events that end with `[DONE]`",
    "content": {EVENT_STREAM: SERVER_SENT},
}

COMPLETION_EXAMPLES: dict[str, Any] = {
    "one": {"summary": "One completion", "value": {"model": "cong", "prompt": "hello", "max_tokens": 8}},
    "score": {
        "summary": "Log-probs of a prompt, nothing drawn",
        "value": {"model": "cong", "prompt": "hello you", "max_tokens": 0, "echo": True, "logprobs": 1},
    },
}

CHAT_EXAMPLES: dict[str, Any] = {
    "one": {
        "summary": "One answer, stronger contrast",
        "value": {
            "model": "cong",
            "messages": [{"role": "user", "content": "hello"}],
            "max_tokens": 8,
            "alpha": 0.2,
        },
    }
}


@router.get("/models", response_model=replies.ModelsReply, responses=READ_ERRORS, summary="What may be asked for")
async def models(request: Request) -> Response:
    """The one model of this deployment."""
    return json_reply(request, replies.ModelsReply(data=(_entry(service_of(request)),)))


@router.get(
    "/models/{model:path}",
    response_model=replies.ModelEntry,
    responses={**READ_ERRORS, 404: ERRORS[404], 422: ERRORS[422]},
    summary="One model",
)
async def model(request: Request, model: str) -> Response:
    """The model, if it is this deployment's."""
    service = service_of(request)
    openai.require_model(model, service.config.deployment)
    return json_reply(request, _entry(service))


@router.post(
    "/completions",
    response_model=replies.CompletionReply,
    responses={**ERRORS, 200: _STREAM},
    summary="Complete a text",
)
async def completions(
    request: Request,
    body: Annotated[CompletionRequest, Body(openapi_examples=COMPLETION_EXAMPLES)],
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Completions in OpenAI's form.

    `logprobs` are those of the mixture that tokens were drawn from; with `echo` those of the prompt's tokens are the
    aligned network's.
    """
    service = service_of(request)
    openai.require_model(body.model, service.config.deployment)
    retry = retry_key(request, idempotency_key, body)
    call = openai.completion_call(body, service.store_levels)
    head = _head(request, service, "cmpl-")
    if body.stream and call is not None:
        encoder = CompletionEncoder(
            head, body.num_choices, body.wants_usage, body.logprobs, service.facts.vocabulary, request_id_of(request)
        )
        return AnswerStream(
            lambda: _open(service, call, caller_of(request), retry, is_chat=False), encoder, patience_of(service)
        )
    reply = await unless_gone(request.receive, _complete(request, service, body, call, retry, head))
    return json_reply(
        request,
        reply,
        Usage(prompt_tokens=reply.usage.prompt_tokens, completion_tokens=reply.usage.completion_tokens),
    )


@router.post(
    "/chat/completions",
    response_model=replies.ChatReply,
    responses={**ERRORS, 200: _STREAM},
    summary="Answer a conversation",
)
async def chat_completions(
    request: Request,
    body: Annotated[ChatRequest, Body(openapi_examples=CHAT_EXAMPLES)],
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Answers in OpenAI's form; messages are rendered by the deployment's chat template."""
    service = service_of(request)
    openai.require_model(body.model, service.config.deployment)
    retry = retry_key(request, idempotency_key, body)
    call = openai.chat_call(body, service.store_levels)
    head = _head(request, service, "chatcmpl-")
    num_top = (body.top_logprobs or 0) if body.logprobs else None
    vocabulary = service.facts.vocabulary
    if body.stream:
        encoder = ChatEncoder(head, body.num_choices, body.wants_usage, num_top, vocabulary, request_id_of(request))
        return AnswerStream(
            lambda: _open(service, call, caller_of(request), retry, is_chat=True), encoder, patience_of(service)
        )
    work = _sample(service, call, caller_of(request), retry, is_chat=True)
    found = await unless_gone(request.receive, work)
    reply = replies.ChatReply(
        id=head.id,
        created=head.created,
        model=head.model,
        choices=tuple(
            replies.chat_choice(index, sample.record, num_top, vocabulary) for index, sample in enumerate(found.samples)
        ),
        usage=replies.openai_usage(found.usage),
    )
    return json_reply(request, reply, found.usage)


async def _complete(
    request: Request,
    service: SampleService,
    body: CompletionRequest,
    call: SampleCall | None,
    retry: RetryKey | None,
    head: replies.Head,
) -> replies.CompletionReply:
    vocabulary, caller, n = service.facts.vocabulary, caller_of(request), body.num_choices
    found = None if call is None else await _sample(service, call, caller, retry, is_chat=False)
    echoes = await _echoes(service, body, caller) if body.echo else [None] * len(body.prompt)
    records: list[SampleRecord | None]
    if found is not None:
        records, usage = [sample.record for sample in found.samples], found.usage
    else:
        records = [None] * (len(body.prompt) * n)
        usage = Usage(prompt_tokens=sum(len(echo.token_ids) for echo in echoes if echo is not None))
    return replies.CompletionReply(
        id=head.id,
        created=head.created,
        model=head.model,
        choices=tuple(
            replies.completion_choice(index, record, echoes[index // n], body.logprobs, vocabulary)
            for index, record in enumerate(records)
        ),
        usage=replies.openai_usage(usage),
    )


async def _echoes(service: SampleService, body: CompletionRequest, caller: str) -> list[replies.Echo | None]:
    """Prompts with the log-probs of their tokens, which are only computed where they are asked for."""
    vocabulary = service.facts.vocabulary
    try:
        token_ids = tuple(await service.encode(body.prompt, body.num_choices))
    except InvalidRequest as error:
        raise openai.in_openai_words(error, is_chat=False) from error
    scores: dict[int, ScoredText] = {}
    call = openai.echo_call(token_ids, body.deadline_s) if body.logprobs is not None else None
    if call is not None:
        places = [number for number, ids in enumerate(token_ids) if len(ids) > 1]
        scored = await service.score(call, caller)
        scores = dict(zip(places, scored.items, strict=True))
    return [
        replies.echo_of(ids, prompt.text, scores.get(number), vocabulary)
        for number, (ids, prompt) in enumerate(zip(token_ids, body.prompt, strict=True))
    ]


async def _open(
    service: SampleService, call: SampleCall, caller: str, retry: RetryKey | None, *, is_chat: bool
) -> Answer:
    try:
        return await service.open(call, caller, retry)
    except InvalidRequest as error:
        raise openai.in_openai_words(error, is_chat) from error


async def _sample(
    service: SampleService, call: SampleCall, caller: str, retry: RetryKey | None, *, is_chat: bool
) -> SampleReply:
    try:
        return await service.sample(call, caller, "", retry)
    except InvalidRequest as error:
        raise openai.in_openai_words(error, is_chat) from error


def _head(request: Request, service: SampleService, prefix: str) -> replies.Head:
    return replies.Head(prefix + request_id_of(request), int(time.time()), service.config.deployment)


def _entry(service: SampleService) -> replies.ModelEntry:
    return replies.ModelEntry(id=service.config.deployment, created=service.created)
