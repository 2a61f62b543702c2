"""The HTTP library at the edge of the clients: how connections are made, and which of its errors mean a broken one."""

import socket
from typing import Any

import httpx

from cong.client.talk import Broken, Head, Open

# A machine that vanishes sends nothing: the kernel asks after 30 silent seconds, and gives up on it 30 s later.
KEEPALIVE: list[tuple[int, int, int]] = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    *[
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
        if hasattr(socket, name)
    ],
]

# How many calls run at a time is the caller's to decide.
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=64)

Trouble = httpx.RequestError
"""What httpx raises when a connection cannot be made, breaks, or carries something that is no HTTP."""


def request_arguments(step: Open, url: str) -> dict[str, Any]:
    """A step in the words of httpx."""
    return {
        "method": step.call.method,
        "url": url + step.call.path,
        "content": step.call.body,
        "headers": dict(step.call.headers),
        "timeout": httpx.Timeout(step.idle_s, connect=step.connect_s),
    }


def head_of(response: httpx.Response) -> Head:
    """Status and headers of a response."""
    return Head(response.status_code, dict(response.headers.items()))


def broken(error: httpx.RequestError, step: Open) -> Broken:
    """What happened to a connection, in words."""
    if isinstance(error, httpx.ConnectTimeout):
        return Broken(f"no connection within {step.connect_s:.3g} s")
    if isinstance(error, httpx.TimeoutException):
        return Broken(f"nothing came for {step.idle_s:.3g} s")
    what = "no connection" if isinstance(error, httpx.ConnectError) else "the connection broke"
    return Broken(f"{what}: {str(error) or type(error).__name__}")
