"""What an application does differently because Serve's proxy stands in front of it. Pure ASGI; knows no Ray."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cong.config.service import is_loopback
from cong.errors import Forbidden
from cong.wire import REQUEST_ID_HEADER
from serve.http.errors import ErrorResponse, problem_of


class OnlyLoopback:
    """Refuses what did not come in over loopback, before a byte of the body is read: for services without keys.

    The configuration refuses to listen elsewhere without keys, but where Serve listens is written in another place, so
    each request is asked which address it came in on.
    """

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


class WithoutRequestId:
    """Takes the request's id off replies: the proxy, which gave it, puts it on again, and once is enough."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_without(message: Message) -> None:
            if message["type"] == "http.response.start":
                name = REQUEST_ID_HEADER.encode()
                headers = [pair for pair in message.get("headers", ()) if pair[0].lower() != name]
                message = {**message, "headers": headers}
            await send(message)

        await self._app(scope, receive, send_without)
