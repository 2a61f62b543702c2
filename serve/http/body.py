"""Bodies are taken in whole, bounded in bytes and in time, before anything looks at them."""

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.http.errors import ErrorResponse, Problem, http_problem

_WITH_BODY = frozenset({"POST", "PUT", "PATCH", "DELETE"})


class BodyLimit:
    """Reads a body up to its limits and hands it on in one piece; what is larger or slower is refused."""

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in _WITH_BODY:
            await self._app(scope, receive, send)
            return
        stated = Headers(scope=scope).get("content-length", "0")
        if not (stated.isascii() and stated.isdigit()):
            await self._refuse(http_problem(400, "content-length is not a number"), scope, receive, send)
            return
        if len(stated) > 18 or int(stated) > self._max_bytes:
            await self._refuse(self._too_large(), scope, receive, send)
            return
        try:
            async with asyncio.timeout(self._timeout_s):
                body = await self._read(receive)
        except TimeoutError:
            message = f"the body did not arrive within {self._timeout_s:g} s; send it faster, or less of it"
            await self._refuse(http_problem(408, message), scope, receive, send)
            return
        if isinstance(body, Problem):
            await self._refuse(body, scope, receive, send)
            return
        if body is None:
            return
        await self._app(scope, _replayed(body, receive), send)

    async def _read(self, receive: Receive) -> bytes | Problem | None:
        """The whole body; None where the caller left before its end."""
        parts: list[bytes] = []
        num_bytes = 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return None
            part = message.get("body", b"")
            num_bytes += len(part)
            if num_bytes > self._max_bytes:
                return self._too_large()
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)

    def _too_large(self) -> Problem:
        return http_problem(413, f"the body has more than {self._max_bytes} bytes; send several smaller requests")

    async def _refuse(self, problem: Problem, scope: Scope, receive: Receive, send: Send) -> None:
        await ErrorResponse(problem, scope["state"]["request_id"])(scope, receive, send)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body as one message, then whatever comes after it: the caller's leaving."""
    is_read = False

    async def replay() -> Message:
        nonlocal is_read
        if is_read:
            return await receive()
        is_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
