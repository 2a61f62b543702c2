"""`POST /sample` and `POST /score`: the service's own language."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Request
from fastapi.responses import Response
from pydantic import BaseModel

from cong.schemas import content_key
from cong.service import RetryKey, SampleService
from cong.wire import EVENT_STREAM, NDJSON, SampleCall, SampleReply, ScoreCall, ScoreReply
from serve.http.encoding import EventEncoder, LineEncoder, wants_event_stream
from serve.http.leaving import unless_gone
from serve.http.provider import caller_of, request_id_of, service_of
from serve.http.replies import ERRORS, EVENT_LINES, SERVER_SENT, json_reply
from serve.http.streaming import AnswerStream, Patience

MAX_KEY_CHARS = 256

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="idempotency-key",
        min_length=1,
        max_length=MAX_KEY_CHARS,
        description="The same key with the same body gets the same samples, made once",
    ),
]

SAMPLE_EXAMPLES: dict[str, Any] = {
    "one": {"summary": "One sample", "value": {"prompt": "hello", "parameters": {"max_tokens": 8}}},
    "many": {
        "summary": "Several prompts, four samples each, stronger contrast",
        "value": {
            "prompts": ["hello", {"text": "good day", "prompt_id": "greeting-2"}],
            "num_samples": 4,
            "parameters": {"alpha": 0.2, "temperature": 0.8, "max_tokens": 8, "seed": 7},
        },
    },
    "tokens": {
        "summary": "Token by token, by a method's own parameters",
        "value": {
            "prompt": "hello",
            "method": "contrastive-decoding",
            "method_parameters": {"coefficient": 0.5},
            "parameters": {"max_tokens": 8},
            "stream": "tokens",
        },
    },
}

SCORE_EXAMPLES: dict[str, Any] = {
    "one": {"summary": "One completion", "value": {"items": [{"prompt": {"text": "hello"}, "completion_text": " you"}]}}
}

router = APIRouter()


def retry_key(request: Request, key: str | None, body: BaseModel) -> RetryKey | None:
    """What makes a request the same as one before; None without a key."""
    if key is None:
        return None
    return RetryKey(caller_of(request), key, content_key([request.url.path, body.model_dump(mode="json")]))


def patience_of(service: SampleService) -> Patience:
    """How long a streaming answer waits for whom."""
    return Patience(service.config.keep_alive_s, service.config.write_timeout_s)


@router.post(
    "/sample",
    response_model=SampleReply,
    responses={
        **ERRORS,
        200: {
            "description": "All samples, or events of which the last is of the kind `end`",
            "content": {
                NDJSON: EVENT_LINES,
                EVENT_STREAM: SERVER_SENT,
            },
        },
    },
    summary="Draw samples",
)
async def sample(
    request: Request,
    call: Annotated[SampleCall, Body(openapi_examples=SAMPLE_EXAMPLES)],
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Samples of one or several prompts, drawn from the deployment's networks.

    With `store` they are durable before they are answered. With `stream` the answer comes as events: as lines of JSON,
    or as server-sent events if only these are accepted; its last event is always of the kind `end`.
    """
    service, caller, request_id = service_of(request), caller_of(request), request_id_of(request)
    retry = retry_key(request, idempotency_key, call)
    if call.stream != "none":
        is_event_stream = wants_event_stream(request.headers.get("accept", ""))
        encoder = (EventEncoder if is_event_stream else LineEncoder)(request_id)
        return AnswerStream(lambda: service.open(call, caller, retry), encoder, patience_of(service))
    reply = await unless_gone(request.receive, service.sample(call, caller, request_id, retry))
    return json_reply(request, reply, reply.usage)


@router.post("/score", response_model=ScoreReply, responses=ERRORS, summary="Score completions")
async def score(request: Request, call: Annotated[ScoreCall, Body(openapi_examples=SCORE_EXAMPLES)]) -> Response:
    """Log-probs of given completions under every network, and their implicit rewards."""
    service = service_of(request)
    reply = await unless_gone(request.receive, service.score(call, caller_of(request), request_id_of(request)))
    return json_reply(request, reply, reply.usage)
