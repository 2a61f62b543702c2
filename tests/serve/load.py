"""Load from outside, each request with its outcome: at fixed times whatever became of the last, or so many at once."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from .application import LIMIT_S

BODY: dict[str, Any] = {"prompt": "Sdbgaf=", "num_samples": 2, "parameters": {"max_tokens": 24, "ignore_eos": True}}


@dataclass(frozen=True)
class Outcome:
    """One request."""

    began_s: float
    ended_s: float
    status: int
    """0 = there was no answer."""
    networks: frozenset[str]
    """Fingerprints of the networks of each of its samples, joined."""
    reason: str = ""

    @property
    def is_failure(self) -> bool:
        return self.status != 200


class Load:
    """Requests from a pool of threads."""

    def __init__(self, http: httpx.Client, per_s: float, num_at_once: int, body: dict[str, Any]) -> None:
        """`num_at_once` requests are always under way; 0 = a new one begins `per_s` times a second."""
        self._http = http
        self._per_s = per_s
        self._num_at_once = num_at_once
        self._body = body
        self._is_over = threading.Event()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(64)
        self._thread = threading.Thread(target=self._run)
        self.outcomes: list[Outcome] = []
        self.num_in_flight = 0

    @property
    def failures(self) -> list[Outcome]:
        return [one for one in self.outcomes if one.is_failure]

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._is_over.set()
        self._thread.join()
        self._pool.shutdown(wait=True)

    def wait_for(self, num_more: int, limit_s: float = LIMIT_S) -> None:
        """Until so many more requests have been answered."""
        wanted, until_s = len(self.outcomes) + num_more, time.monotonic() + limit_s
        while len(self.outcomes) < wanted:
            assert time.monotonic() < until_s, f"{wanted - len(self.outcomes)} answers are missing after {limit_s:g} s"
            time.sleep(0.05)

    def _run(self) -> None:
        for _ in range(self._num_at_once):
            self._pool.submit(self._ask_on_and_on)
        if self._num_at_once:
            self._is_over.wait()
            return
        next_s = time.monotonic()
        while not self._is_over.wait(max(0.0, next_s - time.monotonic())):
            next_s += 1.0 / self._per_s
            self._pool.submit(self._ask)

    def _ask_on_and_on(self) -> None:
        while not self._is_over.is_set():
            self._ask()

    def _ask(self) -> None:
        with self._lock:
            self.num_in_flight += 1
        began_s = time.monotonic()
        status, networks, reason = 0, frozenset[str](), ""
        try:
            reply = self._http.post("/sample", json=self._body)
            status, reason = reply.status_code, reply.text[:300]
            if status == 200:
                networks = frozenset(
                    "+".join(network["fingerprint"] for network in sample["record"]["networks"])
                    for sample in reply.json()["samples"]
                )
        except httpx.TransportError as error:
            reason = repr(error)
        with self._lock:
            self.num_in_flight -= 1
            self.outcomes.append(Outcome(began_s, time.monotonic(), status, networks, reason))


@contextmanager
def under_load(
    http: httpx.Client, *, per_s: float = 8.0, num_at_once: int = 0, body: dict[str, Any] | None = None
) -> Iterator[Load]:
    """Load while the block runs; every request has its outcome afterwards."""
    load = Load(http, per_s, num_at_once, BODY if body is None else body)
    load.start()
    try:
        yield load
    finally:
        load.stop()
