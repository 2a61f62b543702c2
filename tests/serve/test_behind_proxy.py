"""A service without keys answers only what came in over loopback; a reply names its request once."""

import asyncio
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from serve.behind_proxy import OnlyLoopback, WithoutRequestId


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    headers = [(b"x-request-id", b"one"), (b"x-other", b"two")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"answered"})


def reply_of(wrapped: Any, server: tuple[str, int] | None) -> list[Message]:
    sent: list[Message] = []

    async def receive() -> Message:
        raise AssertionError("no byte of the body is read")

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {"type": "http", "method": "GET", "path": "/info", "headers": [], "server": server}
    asyncio.run(wrapped(scope, receive, send))
    return sent


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1"])
def test_what_comes_in_over_loopback_is_answered(host: str) -> None:
    assert reply_of(OnlyLoopback(application), (host, 8000))[0]["status"] == 200


@pytest.mark.parametrize("server", [("10.0.0.5", 8000), ("192.168.1.1", 80), ("::", 1), ("example.org", 80), None])
def test_what_comes_in_from_elsewhere_is_refused(server: tuple[str, int] | None) -> None:
    start, body = reply_of(OnlyLoopback(application), server)
    assert start["status"] == 403
    assert b"permission_error" in body["body"]


def test_the_proxy_s_request_id_is_the_only_one() -> None:
    start, _ = reply_of(WithoutRequestId(application), ("127.0.0.1", 8000))
    assert start["headers"] == [(b"x-other", b"two")]
