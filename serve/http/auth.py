"""Who asks: a key in `Authorization: Bearer` or `x-api-key`, checked before a byte of the body is read."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from cong.errors import CongError
from cong.service import KeyRing
from serve.http.errors import ErrorResponse, problem_of

OPEN_PATHS = frozenset({"/health"})
"""Answered without a key: load balancers have none."""


class Authentication:
    """Lets known keys in and leaves their name in the request's state."""

    def __init__(self, app: ASGIApp, keys: KeyRing) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["state"]["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        try:
            scope["state"]["caller"] = self._keys.verify(presented_key(Headers(scope=scope)))
        except CongError as error:
            await ErrorResponse(problem_of(error), scope["state"]["request_id"])(scope, receive, send)
            return
        await self._app(scope, receive, send)


def presented_key(headers: Headers) -> str | None:
    """The key that a request carries."""
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and credentials.strip():
        return credentials.strip()
    return headers.get("x-api-key")
