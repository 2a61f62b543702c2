"""What an application does differently because a proxy of Serve's stands in front of it. Pure ASGI; knows no Ray."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cong.wire import REQUEST_ID_HEADER


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
