"""A reply names its request once; without keys nothing listens where other machines can reach it."""

import asyncio
from contextlib import nullcontext
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from cong.errors import ConfigError
from serve.behind_proxy import WithoutRequestId
from serve.deployment import require_loopback


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    headers = [(b"x-request-id", b"one"), (b"x-other", b"two")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"answered"})


def reply_of(wrapped: Any) -> list[Message]:
    sent: list[Message] = []

    async def receive() -> Message:
        raise AssertionError("no byte of the body is read")

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {"type": "http", "method": "GET", "path": "/info", "headers": []}
    asyncio.run(wrapped(scope, receive, send))
    return sent


def test_the_proxy_s_request_id_is_the_only_one() -> None:
    start, _ = reply_of(WithoutRequestId(application))
    assert start["headers"] == [(b"x-other", b"two")]


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [
        *((host, True) for host in ("127.0.0.1", "127.8.9.1", "::1", "localhost")),
        *((host, False) for host in ("0.0.0.0", "10.0.0.5", "::", "example.org", "every address")),
    ],
)
def test_without_keys_serve_may_listen_on_loopback_and_nowhere_else(host: str, is_loopback: bool) -> None:
    refused = nullcontext() if is_loopback else pytest.raises(ConfigError, match=f"at {host},.*service.api_keys_file")
    with refused as error:
        require_loopback(host)
    assert (error is None) == is_loopback
