"""Requests as OpenTelemetry spans: names, counts and times, never text. Only put in where it is switched on.

Spans go wherever the process has configured OpenTelemetry to send them; without that they go nowhere.
"""

from opentelemetry import propagate, trace
from opentelemetry.trace import SpanKind, StatusCode
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cong import __version__

_OPERATIONS = {
    "/sample": "text_completion",
    "/score": "score",
    "/v1/completions": "text_completion",
    "/v1/chat/completions": "chat",
}


class Tracing:
    """A span around every request that does work."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._tracer = trace.get_tracer("cong", __version__)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["state"]["path"] if scope["type"] == "http" else ""
        operation = _OPERATIONS.get(path)
        if operation is None:
            await self._app(scope, receive, send)
            return
        parent = propagate.extract(dict(Headers(scope=scope)))
        with self._tracer.start_as_current_span(
            f"{scope['method']} {path}", context=parent, kind=SpanKind.SERVER
        ) as span:
            state = scope["state"]
            span.set_attributes(
                {
                    "http.request.method": scope["method"],
                    "http.route": path,
                    "gen_ai.operation.name": operation,
                    "cong.request_id": state["request_id"],
                }
            )

            async def note(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= 500:
                        span.set_status(StatusCode.ERROR)
                await send(message)

            try:
                await self._app(scope, receive, note)
            finally:
                if "num_prompt_tokens" in state:
                    span.set_attribute("gen_ai.usage.input_tokens", state["num_prompt_tokens"])
                    span.set_attribute("gen_ai.usage.output_tokens", state["num_completion_tokens"])
                if state["error_code"]:
                    span.set_attribute("error.type", state["error_code"])
