"""A try that did not succeed: as which error it is raised, and whether another try makes sense.

Reads the service's error documents, and what stands between us and the service says instead of them.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from pydantic import ValidationError

from cong.client.talk import Broken, Head
from cong.errors import (
    BadReply,
    Conflict,
    CongError,
    DeadlineExceeded,
    Forbidden,
    InvalidRequest,
    NotFound,
    Overloaded,
    PromptTooLong,
    ServiceError,
    StreamCut,
    Unauthenticated,
    Unavailable,
    Unreachable,
)
from cong.wire import ErrorBody, ErrorReply, ErrorType

DEFAULT_RETRY_AFTER_S = 1.0
MAX_RETRY_AFTER_S = 86_400.0
_EXCERPT_CHARS = 200

_PAGE_OF_ROUTES = "/-/routes"
"""Where the proxies of Ray Serve point that have no replica for a path, as from their start until they hear of one."""

_PROMPT_TOO_LONG = ("prompt_too_long", "context_length_exceeded")


@dataclass(frozen=True)
class Failure:
    """Why a try failed."""

    error: Callable[[str], CongError]
    """The error to raise, with a remark at the end of its message."""
    is_passing: bool
    """Whether the same request may succeed later."""
    retry_after_s: float | None = None
    """When the service wants to be asked again."""


def broken(reason: Broken, url: str) -> Failure:
    """No reply at all, or only a part of one."""
    return Failure(lambda remark: Unreachable(f"{url}: {reason.reason}{remark}"), is_passing=True)


def cut(reason: str, url: str) -> Failure:
    """A stream that did not come to its end."""
    message = f"{url}: the stream ended before its last event ({reason}); what came is not all"
    return Failure(lambda remark: StreamCut(message + remark), is_passing=True)


def refused(head: Head, body: bytes, url: str, now_s: float) -> Failure:
    """A reply that is not a success. `now_s` is the time of day, for a Retry-After that names a date."""
    retry_after_s = retry_after(head.headers, now_s)
    error = document_of(body)
    return _without_document(head, body, url, retry_after_s) if error is None else told(error, url, retry_after_s)


def document_of(body: bytes) -> ErrorBody | None:
    """A service's own words; None where something else speaks."""
    try:
        return ErrorReply.model_validate_json(body).error
    except ValidationError:
        return None


def told(error: ErrorBody, url: str, retry_after_s: float | None = None) -> Failure:
    """What the service itself says; its own number is finer than the header, which has whole seconds."""
    if error.retry_after_s is not None:
        retry_after_s = _bounded(error.retry_after_s)
    origin = f" [request {error.request_id}]" if error.request_id else ""
    return _failure(error.type, error.message, error.param, error.code, f"{url}: ", origin, retry_after_s)


def _failure(
    kind: ErrorType,
    message: str,
    param: str | None,
    code: str | None,
    url: str,
    origin: str,
    retry_after_s: float | None,
) -> Failure:
    wait_s = DEFAULT_RETRY_AFTER_S if retry_after_s is None else retry_after_s

    def error(remark: str) -> CongError:
        end = origin + remark
        match kind:
            case "invalid_request_error" if code in _PROMPT_TOO_LONG:
                return PromptTooLong(message + end)
            case "invalid_request_error":
                field = param or "request"
                return InvalidRequest(field, message.removeprefix(f"{field}: ") + end)
            case "authentication_error":
                return Unauthenticated(f"{url}{message}{end}; give the key by CONG_API_KEY or api_key")
            case "permission_error":
                return Forbidden(f"{url}{message}{end}")
            case "not_found_error":
                return NotFound(param or url.removesuffix(": "), message.removeprefix(f"{param}: ") + end)
            case "conflict_error":
                return Conflict(f"{url}{message}{end}")
            case "rate_limit_error":
                return Overloaded(f"{url}{message}{end}", wait_s)
            case "deadline_error":
                return DeadlineExceeded(f"{url}{message}{end}")
            case "unavailable_error":
                return Unavailable(f"{url}{message}{end}", wait_s)
            case _:
                return ServiceError(f"{url}{message}{end}")

    return Failure(error, kind in ("rate_limit_error", "unavailable_error"), retry_after_s)


_BY_STATUS: Mapping[int, ErrorType] = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "not_found_error",
    408: "deadline_error",
    409: "conflict_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    502: "unavailable_error",
    503: "unavailable_error",
    504: "unavailable_error",
}


def _without_document(head: Head, body: bytes, url: str, retry_after_s: float | None) -> Failure:
    """A status from a proxy, a load balancer, or an address that is no cong at all."""
    text = "".join(c if c.isprintable() else " " for c in body[: 4 * _EXCERPT_CHARS].decode("utf-8", "replace"))
    said = f"status {head.status}" + (f", {text[:_EXCERPT_CHARS].strip()!r}" if text.strip() else "")
    kind = _BY_STATUS.get(head.status)
    if head.status == 404 and _PAGE_OF_ROUTES in text:
        kind = "unavailable_error"
        said += "; the proxy there knows the way to no service, which passes where one starts; check the address"
    if kind is not None:
        return _failure(kind, said, None, None, f"{url}: ", "", retry_after_s)
    if head.status >= 500:
        # The service explains its own failures. Without an explanation it died under the request, and another
        # replica may answer.
        return Failure(lambda remark: ServiceError(f"{url}: {said}{remark}"), is_passing=True)
    where = head.headers.get("location")
    remedy = f"it points to {where!r}; give that address" if where else "check the address"
    return Failure(lambda remark: BadReply(f"{url}: {said}; {remedy}{remark}"), is_passing=False)


def retry_after(headers: Mapping[str, str], now_s: float) -> float | None:
    """Seconds that a Retry-After header asks for: a number, or a date, which is read against the reply's own date."""
    text = headers.get("retry-after", "").strip()
    if not text:
        return None
    try:
        return _bounded(float(text))
    except ValueError:
        then = _date(text)
        now = _date(headers.get("date", "")) or datetime.fromtimestamp(now_s, UTC)
        return None if then is None else _bounded((then - now).total_seconds())


def _date(text: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    return date if date.tzinfo is not None else date.replace(tzinfo=UTC)


def _bounded(seconds: float | None) -> float | None:
    if seconds is None or not math.isfinite(seconds):
        return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_S)
