"""Room for one more, asked before a byte of a body is read: beyond capacity a refusal must cost next to nothing."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from cong.errors import CongError
from cong.wire import IDEMPOTENCY_HEADER
from serve.http.errors import ErrorResponse, problem_of
from serve.http.provider import ServiceProvider

TAKES_ROOM = frozenset({"/sample", "/score", "/v1/completions", "/v1/chat/completions"})


class Room:
    """Refuses work that could not be taken in now, whatever it asks for; what has room is looked at further inside."""

    def __init__(self, app: ASGIApp, provider: ServiceProvider) -> None:
        self._app = app
        self._provider = provider

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = self._provider() if scope["type"] == "http" else None
        if service is not None and scope["method"] == "POST" and scope["state"]["path"] in TAKES_ROOM:
            try:
                service.require_room(scope["state"]["caller"], Headers(scope=scope).get(IDEMPOTENCY_HEADER))
            except CongError as error:
                await ErrorResponse(problem_of(error), scope["state"]["request_id"])(scope, receive, send)
                return
        await self._app(scope, receive, send)
