"""The outermost layer: every request gets an id, a line in the log, and an answer whatever happens inside.

Pure ASGI: it passes messages on one by one, so that a caller's leaving is seen inside at once. Logs no text of prompts,
answers or keys.
"""

import logging
import re
import time
import uuid

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cong.wire import REQUEST_ID_HEADER
from serve.http.errors import ErrorResponse, problem_of
from serve.http.provider import ServiceProvider

log = logging.getLogger(__name__)

MAX_ID_CHARS = 64
GONE = 499
"""Logged where the caller left before it was answered."""

_QUIET = frozenset({"/health", "/metrics"})


def clean_request_id(given: str | None) -> str:
    """A caller's request id as far as it is harmless in logs and headers; a new one where nothing is left of it."""
    cleaned = re.sub(r"[^A-Za-z0-9._-]", "", given or "")[:MAX_ID_CHARS]
    return cleaned or uuid.uuid4().hex


class RequestContext:
    """Id, log line, count of refusals, last resort."""

    def __init__(self, app: ASGIApp, provider: ServiceProvider) -> None:
        self._app = app
        self._provider = provider

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s = time.perf_counter()
        request_id = clean_request_id(Headers(scope=scope).get(REQUEST_ID_HEADER))
        state = scope.setdefault("state", {})
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        state.update(request_id=request_id, caller="", error_code="", path=path)
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                name = REQUEST_ID_HEADER.encode()
                headers = [pair for pair in message.get("headers", ()) if pair[0].lower() != name]
                message = {**message, "headers": [*headers, (name, request_id.encode())]}
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            # The last resort: nobody foresaw it, so the log gets everything and the caller gets fixed words.
            log.exception("a request failed unexpectedly", extra={"request_id": request_id})
            if not status:
                await ErrorResponse(problem_of(error), request_id)(scope, receive, send_with_id)
        finally:
            self._note(scope, status, time.perf_counter() - started_s)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        state = scope["state"]
        service = self._provider()
        if state["error_code"] and service is not None:
            service.meter.count("cong_requests_refused_total", 1, state["error_code"])
        level = logging.DEBUG if state["path"] in _QUIET and status < 400 else logging.INFO
        log.log(
            level,
            "%s %s %d",
            scope["method"],
            state["path"][:200].encode("unicode_escape").decode("ascii"),
            status or GONE,
            extra={
                "request_id": state["request_id"],
                "caller": state["caller"],
                "status": status or GONE,
                "error_code": state["error_code"],
                "seconds": round(seconds, 6),
                **{name: state[name] for name in ("num_prompt_tokens", "num_completion_tokens") if name in state},
            },
        )
