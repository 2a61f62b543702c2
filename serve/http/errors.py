"""Errors as replies: one table from every error that cong raises to a status, a type and a code.

What callers cannot help is told in fixed words: no paths, no stack traces, no text of theirs.
"""

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cong import errors
from cong.schemas import Message, Prompt, SamplingParameters, ScoreRequest
from cong.service.openai import ChatRequest, CompletionRequest
from cong.wire import ErrorBody, ErrorType, SampleCall, ScoreCall
from cong.wording import causes

MAX_MESSAGE_CHARS = 2000
_MAX_TOLD = 10
_MAX_LOOKED_AT = 40
"""Of what is wrong with a body: one field may be wrong in several ways. A body may hold a million wrong fields, and
while one caller is told of them all others wait."""

_HOMES: Mapping[str, str] = {
    name: home
    for home, names in (
        ("/v1/chat/completions", ChatRequest.model_fields),
        ("/v1/completions", CompletionRequest.model_fields),
        ("a message", Message.model_fields),
        ("a prompt", Prompt.model_fields),
        ("an item of /score", ScoreRequest.model_fields),
        ("/score", ScoreCall.model_fields),
        ("`parameters` of /sample", {*SamplingParameters.model_fields, "alpha"}),
        ("/sample", {*SampleCall.model_fields, "prompt"}),
    )
    for name in names
}
"""What a request may say and where, for whoever has misspelt it or put it elsewhere; the last place counts."""


@dataclass(frozen=True)
class Kind:
    """How a class of errors is told."""

    status: int
    type: ErrorType
    code: str
    fixed: str = ""
    """What is said instead of the error's own message; empty = the message is made for callers."""


_INTERNAL = "something is wrong on the server; its log says more under this request id"
_STORE = (
    "a sample could not be stored as asked, or not be read where it is stored, so it is not answered; try again, what "
    "is stored already is not made again"
)

TABLE: Mapping[type[errors.CongError], Kind] = {
    errors.RequestError: Kind(422, "invalid_request_error", "invalid_request"),
    errors.InvalidRequest: Kind(422, "invalid_request_error", "invalid_value"),
    errors.PromptTooLong: Kind(422, "invalid_request_error", "context_length_exceeded"),
    errors.NoChatTemplate: Kind(
        422,
        "invalid_request_error",
        "no_chat_template",
        "messages: the deployment's tokenizer has no usable chat template; give a plain text prompt",
    ),
    errors.Unauthenticated: Kind(401, "authentication_error", "invalid_api_key"),
    errors.Forbidden: Kind(403, "permission_error", "forbidden"),
    errors.NotFound: Kind(404, "not_found_error", "not_found"),
    errors.SlowReader: Kind(408, "deadline_error", "slow_reader"),
    errors.Conflict: Kind(409, "conflict_error", "idempotency_conflict"),
    errors.Overloaded: Kind(429, "rate_limit_error", "overloaded"),
    errors.Unavailable: Kind(503, "unavailable_error", "unavailable"),
    errors.StreamError: Kind(503, "unavailable_error", "not_stored", _STORE),
    errors.DeadlineExceeded: Kind(408, "deadline_error", "deadline_exceeded"),
    errors.ConfigError: Kind(500, "server_error", "internal", _INTERNAL),
    errors.ModelError: Kind(500, "server_error", "internal", _INTERNAL),
    errors.CheckpointError: Kind(500, "server_error", "internal", _INTERNAL),
    errors.ServiceError: Kind(500, "server_error", "internal", _INTERNAL),
    errors.KernelUnavailable: Kind(500, "server_error", "internal", _INTERNAL),
    errors.PipelineError: Kind(500, "server_error", "internal", _INTERNAL),
    errors.EvaluationError: Kind(500, "server_error", "internal", _INTERNAL),
    errors.MachineRefusal: Kind(500, "server_error", "internal", _INTERNAL),
    errors.MissingExtra: Kind(500, "server_error", "internal", _INTERNAL),
}
"""An error is told like the nearest class above it in the tree. The root stands for none: it is not in the table."""

_NO_ROUTE = {
    404: "there is no such route; GET /docs lists all",
    405: "this route has no such method; GET /docs lists all",
}
_BY_STATUS: Mapping[int, tuple[ErrorType, str]] = {
    400: ("invalid_request_error", "bad_request"),
    404: ("not_found_error", "not_found"),
    405: ("invalid_request_error", "method_not_allowed"),
    408: ("deadline_error", "body_timeout"),
    413: ("invalid_request_error", "body_too_large"),
    415: ("invalid_request_error", "unsupported_media_type"),
}


@dataclass(frozen=True)
class Problem:
    """An error ready to be told."""

    status: int
    type: ErrorType
    code: str
    message: str
    param: str | None = None
    retry_after_s: float | None = None
    headers: Mapping[str, str] | None = None

    def body(self, request_id: str) -> ErrorBody:
        """As it stands in a reply."""
        return ErrorBody(
            message=printable(self.message)[:MAX_MESSAGE_CHARS],
            type=self.type,
            param=None if self.param is None else printable(self.param)[:MAX_MESSAGE_CHARS],
            code=self.code,
            retry_after_s=self.retry_after_s,
            request_id=request_id,
        )


def printable(text: str) -> str:
    """The same text where half a surrogate pair, which no encoding can carry, is replaced."""
    return text.encode("utf-8", "replace").decode("utf-8")


def problem_of(error: BaseException) -> Problem:
    """How an error is told; one that nobody foresaw is told in fixed words."""
    if isinstance(error, errors.CongError):
        kind = kind_of(type(error)) or TABLE[errors.ConfigError]
        retry_after_s = getattr(error, "retry_after_s", 1.0 if kind.status == 503 else None)
        param = getattr(error, "field", None)
        return Problem(kind.status, kind.type, kind.code, kind.fixed or str(error), param, retry_after_s)
    if isinstance(error, RequestValidationError):
        return _validation(error.errors())
    if isinstance(error, HTTPException) and error.status_code == 400 and error.__cause__ is not None:
        return http_problem(400, f"the body cannot be read as JSON: {error.__cause__}")
    if isinstance(error, HTTPException):
        return http_problem(error.status_code, _NO_ROUTE.get(error.status_code, str(error.detail)), error.headers)
    return Problem(500, "server_error", "internal", _INTERNAL)


def kind_of(error: type[errors.CongError]) -> Kind | None:
    """The table's row for a class of errors; None = nobody has thought of it."""
    return next((TABLE[base] for base in error.__mro__ if base in TABLE), None)


def http_problem(status: int, message: str, headers: Mapping[str, str] | None = None) -> Problem:
    """An error of the protocol itself."""
    default: tuple[ErrorType, str] = (
        ("invalid_request_error", "bad_request") if status < 500 else ("server_error", "internal")
    )
    kind, code = _BY_STATUS.get(status, default)
    return Problem(status, kind, code, message, headers=headers)


def _validation(found: Sequence[Any]) -> Problem:
    """Every wrong field by name with what is wrong; what was sent is not repeated."""
    first = found[0]
    if first["type"] == "json_invalid":
        return http_problem(400, f"the body is not JSON: {first['ctx']['error']} at character {first['loc'][-1]}")
    if first["loc"] == ("body",) and first.get("input") is None:
        return http_problem(400, "the body is empty; send a JSON object")
    if first["loc"] == ("body",) and isinstance(first["input"], bytes):
        return http_problem(415, "the body is not said to be JSON; send the header Content-Type: application/json")
    known = [{**one, "loc": [part for part in one["loc"] if part != "body"]} for one in found[:_MAX_LOOKED_AT]]
    for one in known:
        if one["type"] == "extra_forbidden":
            one["msg"] = _unknown(str(one["loc"][-1]))
    told = causes(known)
    lines = [f"{field}: {words}" if field else words for field, words in told[:_MAX_TOLD]]
    if len(told) > _MAX_TOLD or len(found) > _MAX_LOOKED_AT:
        lines.append("and more")
    return Problem(422, "invalid_request_error", "invalid_value", "; ".join(lines), told[0][0] or None)


def _unknown(name: str) -> str:
    if name in _HOMES:
        return f"is not known here; it belongs to {_HOMES[name]}"
    close = difflib.get_close_matches(name, _HOMES, n=1)
    return f"is not known here; did you mean {close[0]}?" if close else "is not known here"


class ErrorResponse(Response):
    """A problem as a reply; leaves its code in the request's state, where it is counted."""

    media_type = "application/json"

    def __init__(self, problem: Problem, request_id: str) -> None:
        self.problem = problem
        headers = dict(problem.headers or {})
        if problem.retry_after_s is not None:
            headers["retry-after"] = str(math.ceil(problem.retry_after_s))
        if problem.status == 401:
            headers["www-authenticate"] = "Bearer"
        content = json.dumps({"error": problem.body(request_id).model_dump(mode="json")})
        super().__init__(content, problem.status, headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})["error_code"] = self.problem.code
        await super().__call__(scope, receive, send)
