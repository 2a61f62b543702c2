"""What a conversation with the service asks of whoever holds the connection, and what it hears back.

A conversation is a generator of steps; both clients carry them out, one by blocking and one by awaiting, so that
nothing about the protocol is written twice. Knows no HTTP library.
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cong.wire import EndEvent, SampleEvent, TokenEvent

T = TypeVar("T")


@dataclass(frozen=True)
class HttpCall:
    """One request, the same in every try."""

    method: str
    path: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Head:
    """Status and headers of a reply; names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Broken:
    """There was no connection, or it ended before what was expected."""

    reason: str


@dataclass(frozen=True)
class Open:
    """Send a request; the answer is a `Head` or `Broken`."""

    call: HttpCall
    connect_s: float
    idle_s: float
    """Without a byte for so long, the connection counts as broken."""


@dataclass(frozen=True)
class Read:
    """Take the next bytes of the body; no bytes at all are its regular end. The answer is bytes or `Broken`."""


@dataclass(frozen=True)
class Close:
    """Let go of the connection's reply; closing twice is fine."""


@dataclass(frozen=True)
class Pause:
    """Do nothing for a while."""

    seconds: float


@dataclass(frozen=True)
class Emit:
    """Hand an event to the caller."""

    event: TokenEvent | SampleEvent | EndEvent


Step = Open | Read | Close | Pause | Emit
Talk = Generator[Step, Any, T]
"""Yields steps, is sent their answers, returns the result, and raises errors of `cong.errors` only."""
