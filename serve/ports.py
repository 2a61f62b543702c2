"""Ports of this machine for what is started on it."""

import itertools
import random
import socket

_RANGE = range(20_000, 30_000)
"""None of these is given to whoever asks the system for any port, to Ray's workers, or to Serve's replicas."""


def free_ports(number: int) -> list[int]:
    """Ports that nobody listens at, and that nobody else is given by chance before they are used."""
    drawn = random.SystemRandom().sample(_RANGE, len(_RANGE))
    return list(itertools.islice(filter(_is_free, drawn), number))


def free_port() -> int:
    """One of them."""
    (port,) = free_ports(1)
    return port


def _is_free(port: int) -> bool:
    with socket.socket() as tried:
        try:
            tried.bind(("", port))
        except OSError:
            return False
    return True
