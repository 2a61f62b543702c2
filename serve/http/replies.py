"""Replies that are no streams, and what the description of every route says of errors."""

from typing import Any

from fastapi import Request
from fastapi.responses import Response
from pydantic import BaseModel, TypeAdapter

from cong.wire import ErrorReply, StreamEvent, Usage

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorReply, "description": description}
    for status, description in {
        400: "The body is not JSON",
        401: "No key, or an unknown one",
        403: "Not allowed to this caller",
        404: "There is nothing of that name",
        408: "Nothing was ready within the deadline, or the body came or the answer was read too slowly",
        409: "The idempotency key was used with another body",
        413: "The body is too large",
        422: "A field is wrong; `param` names it",
        429: "Too much at once; try again after `retry_after_s`",
        499: "The caller left",
        500: "Something is wrong on the server",
        503: "Not now, or not by this process; try again after `retry_after_s`",
    }.items()
}
"""Documented for every route that takes work."""

_REFERENCE = "#/components/schemas/{model}"
_EVENT = TypeAdapter(StreamEvent).json_schema(mode="serialization", ref_template=_REFERENCE)
EVENT_SCHEMAS: dict[str, Any] = _EVENT.pop("$defs")
"""What events are made of, for the description of the API."""
EVENT_LINES: dict[str, Any] = {"schema": {**_EVENT, "description": "each line"}}
SERVER_SENT: dict[str, Any] = {
    "schema": {
        "type": "object",
        "description": "each event",
        "required": ["data"],
        "properties": {"data": {"type": "string", "contentMediaType": "application/json"}},
    }
}

READ_ERRORS: dict[int | str, dict[str, Any]] = {status: ERRORS[status] for status in (401, 500, 503)}
"""Documented for routes that only tell something."""


def json_reply(request: Request, reply: BaseModel, usage: Usage | None = None) -> Response:
    """A document, written without a detour; its token counts go into the log line."""
    if usage is not None:
        request.scope["state"]["num_prompt_tokens"] = usage.prompt_tokens
        request.scope["state"]["num_completion_tokens"] = usage.completion_tokens
    return Response(reply.model_dump_json(), media_type="application/json")
