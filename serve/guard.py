"""The last line of a service without keys: it answers only to callers on its own machine.

The configuration refuses to listen elsewhere without keys, but where Serve listens is written in another place, so each
request is asked which address it came in on.
"""

from starlette.types import ASGIApp, Receive, Scope, Send

from cong.config.service import is_loopback
from cong.errors import Forbidden
from serve.http.errors import ErrorResponse, problem_of


class OnlyLoopback:
    """Refuses what did not come in over loopback, before a byte of the body is read."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            server = scope.get("server")
            if server is None or not is_loopback(str(server[0])):
                error = Forbidden("this service has no keys, so it answers only on its own machine; give it keys")
                await ErrorResponse(problem_of(error), "")(scope, receive, send)
                return
        await self._app(scope, receive, send)
