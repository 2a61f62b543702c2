"""Load on a service of this machine: requests at times that are fixed beforehand, or by a fixed number of clients.

    python bench/load.py --url http://127.0.0.1:8000 --rate 20 --seconds 10 --lines outcomes.jsonl

Open loop: a request goes out when it is due, whatever became of those before it, and its times count from when it was
due; so slow answers cannot hide by holding back the requests after them. Bounded in number and time, and on loopback
only. Speaks HTTP by itself, because a client library would cost more than the service on a small machine.
"""

import argparse
import asyncio
import ipaddress
import json
import math
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

MAX_SHOTS = 200_000
MAX_SECONDS = 7200.0
MAX_OPEN = 2000
"""Connections at a time; what would be the next one is counted as unsent, and is no answer of the service."""


@dataclass(frozen=True)
class Shot:
    """One request, due so many seconds after the start."""

    due_s: float
    body: bytes
    leaves_after: int | None = None
    """Of a stream: close the connection after so many tokens; None = read to the end."""


@dataclass
class Outcome:
    """What became of one request; times are seconds since it was due."""

    due_s: float
    late_s: float = 0.0
    """How late this program sent it."""
    first_s: float | None = None
    """Until the first token of a stream, or the first byte of a document."""
    total_s: float = 0.0
    status: int = 0
    """0 = there was no answer."""
    num_tokens: int = 0
    is_complete: bool = False
    """The answer came to its announced end."""
    has_left: bool = False
    retry_after: str = ""
    error: str = ""


@dataclass
class Target:
    """A service of this machine, and connections to it that are free."""

    host: str
    port: int
    path: str = "/sample"
    free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=list)

    @classmethod
    def at(cls, url: str) -> "Target":
        """Refuses every host but this one."""
        parts = urlsplit(url)
        host = "127.0.0.1" if parts.hostname in (None, "localhost") else parts.hostname or ""
        if parts.scheme != "http" or not ipaddress.ip_address(host).is_loopback:
            raise ValueError(f"{url!r} is not on this machine; load goes to http://127.0.0.1 only")
        return cls(host, parts.port or 80, parts.path.rstrip("/") + "/sample")

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bool]:
        """A connection, and whether it has been used before."""
        while self.free:
            reader, writer = self.free.pop()
            if not reader.at_eof() and not writer.is_closing():
                return reader, writer, True
            writer.close()
        reader, writer = await asyncio.open_connection(self.host, self.port, limit=1 << 22)
        return reader, writer, False

    def close(self) -> None:
        """Let go of what is free."""
        for _, writer in self.free:
            writer.close()
        self.free.clear()


def arrivals(rate_per_s: float, seconds: float, seed: int) -> list[float]:
    """Poisson arrivals: the times of requests from many clients that know nothing of each other."""
    rng, times, now = random.Random(seed), list[float](), 0.0
    while (now := now + rng.expovariate(rate_per_s)) < seconds:
        times.append(now)
    return times


def sample_body(
    prompt: dict[str, Any], *, num_tokens: int, seed: int, form: str = "none", num_samples: int = 1
) -> bytes:
    """A request for samples of exactly so many tokens."""
    return json.dumps(
        {
            "prompts": [prompt],
            "num_samples": num_samples,
            "parameters": {"max_tokens": num_tokens, "ignore_eos": True, "seed": seed},
            "stream": form,
        }
    ).encode()


async def fire(target: Target, shots: Sequence[Shot], limit_s: float) -> list[Outcome]:
    """Every shot at its time; returns when all are answered, or after `limit_s` in all."""
    assert len(shots) <= MAX_SHOTS, f"{len(shots)} requests; at most {MAX_SHOTS}"
    assert limit_s <= MAX_SECONDS, f"{limit_s} s; at most {MAX_SECONDS}"
    loop = asyncio.get_running_loop()
    outcomes: list[Outcome] = []
    tasks: set[asyncio.Task[None]] = set()
    started_s = loop.time()

    async def one(shot: Shot, outcome: Outcome) -> None:
        due_at_s = started_s + shot.due_s
        outcome.late_s = loop.time() - due_at_s
        try:
            await _ask(target, shot, outcome, due_at_s)
        except asyncio.CancelledError:
            outcome.error = "not answered in the time of the whole run"
        except (OSError, EOFError, ValueError) as error:
            outcome.error = f"{type(error).__name__}: {error}"
        outcome.total_s = loop.time() - due_at_s

    for shot in sorted(shots, key=lambda shot: shot.due_s):
        await asyncio.sleep(max(0.0, started_s + shot.due_s - loop.time()))
        outcomes.append(outcome := Outcome(shot.due_s))
        if len(tasks) >= MAX_OPEN:
            outcome.error = "unsent"
            continue
        task = asyncio.create_task(one(shot, outcome))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    if tasks:
        await asyncio.wait(tasks, timeout=max(0.0, started_s + limit_s - loop.time()))
    for task in [*tasks]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    target.close()
    return outcomes


async def keep_busy(target: Target, bodies: Sequence[bytes], num_clients: int) -> tuple[float, list[Outcome]]:
    """So many clients, each with its next request once it has its answer; seconds in all, and what became of each."""
    loop = asyncio.get_running_loop()
    left = iter(bodies)
    outcomes: list[Outcome] = []

    async def client() -> None:
        for body in left:
            outcome = Outcome(0.0)
            due_at_s = loop.time()
            await _ask(target, Shot(0.0, body), outcome, due_at_s)
            outcome.total_s = loop.time() - due_at_s
            outcomes.append(outcome)

    started_s = loop.time()
    await asyncio.gather(*(client() for _ in range(num_clients)))
    seconds = loop.time() - started_s
    target.close()
    return seconds, outcomes


async def _ask(target: Target, shot: Shot, outcome: Outcome, due_at_s: float) -> None:
    reader, writer, is_used = await target.open()
    is_free = False
    try:
        head = f"POST {target.path} HTTP/1.1\r\nhost: {target.host}:{target.port}\r\ncontent-type: application/json\r\n"
        request = f"{head}content-length: {len(shot.body)}\r\n\r\n".encode() + shot.body
        writer.write(request)
        try:
            raw = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            if not is_used or (isinstance(error, asyncio.IncompleteReadError) and error.partial):
                raise
            # A connection that was kept may have been closed by the other side meanwhile: that is no answer.
            writer.close()
            reader, writer = await asyncio.open_connection(target.host, target.port, limit=1 << 22)
            writer.write(request)
            raw = await reader.readuntil(b"\r\n\r\n")
        lines = raw.decode("latin-1").split("\r\n")
        outcome.status = int(lines[0].split(" ", 2)[1])
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)
        }
        outcome.retry_after = headers.get("retry-after", "")
        await _read(reader, headers, shot, outcome, due_at_s)
        is_free = not outcome.has_left and headers.get("connection", "") != "close"
    finally:
        if is_free:
            target.free.append((reader, writer))
        else:
            writer.close()


async def _read(
    reader: asyncio.StreamReader, headers: dict[str, str], shot: Shot, outcome: Outcome, due_at_s: float
) -> None:
    loop = asyncio.get_running_loop()
    is_stream = headers.get("content-type", "").startswith("application/x-ndjson")
    last = b""
    async for part in _body(reader, headers):
        num_here = part.count(b'"event":"token"') if is_stream else 0
        if outcome.first_s is None and (num_here or not is_stream):
            outcome.first_s = loop.time() - due_at_s
        outcome.num_tokens += num_here
        # Of a stream only its end matters; of a document everything.
        last = (last + part)[-(1 << 16) :] if is_stream else last + part
        if shot.leaves_after is not None and outcome.num_tokens >= shot.leaves_after:
            outcome.has_left = True
            return
    if outcome.status != 200:
        return
    if is_stream:
        end = json.loads(last.rstrip().rpartition(b"\n")[2])
        outcome.is_complete = end.get("event") == "end" and end.get("error") is None
        outcome.error = "" if outcome.is_complete else str(end)[:200]
    else:
        document = json.loads(last)
        outcome.num_tokens = document["usage"]["completion_tokens"]
        outcome.is_complete = True


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> Any:
    if "chunked" not in headers.get("transfer-encoding", ""):
        if length := int(headers.get("content-length", "0")):
            yield await reader.readexactly(length)
        return
    while size := int((await reader.readline()).split(b";")[0], 16):
        yield (await reader.readexactly(size + 2))[:-2]
    await reader.readline()


def percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that at least this share of all does not exceed."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(len(values) * share) - 1)]


def summarise(outcomes: Sequence[Outcome], seconds: float) -> dict[str, Any]:
    """What the service did, in numbers; seconds count from when each request was due."""
    served = [one for one in outcomes if one.is_complete]
    refused = [one for one in outcomes if one.status == 429]
    return {
        "requests": len(outcomes),
        "statuses": dict(sorted(Counter(str(one.status) for one in outcomes).items())),
        "complete": len(served),
        "left": sum(one.has_left for one in outcomes),
        "incomplete": sum(one.status == 200 and not one.is_complete and not one.has_left for one in outcomes),
        "unsent": sum(one.error == "unsent" for one in outcomes),
        "refused_without_retry_after": sum(not one.retry_after for one in refused),
        "tokens_per_s": sum(one.num_tokens for one in outcomes) / seconds,
        **_spread("first_token_s", [one.first_s for one in served if one.first_s is not None]),
        **_spread("total_s", [one.total_s for one in served]),
        **_spread("refusal_s", [one.total_s for one in refused]),
        **_spread("late_s", [one.late_s for one in outcomes]),
        "errors": dict(Counter(one.error for one in outcomes if one.error).most_common(5)),
    }


def _spread(name: str, values: Sequence[float]) -> dict[str, float | None]:
    return {f"{name}_p50": percentile(values, 0.5), f"{name}_p99": percentile(values, 0.99)}


def main() -> int:
    """Load a service, show what it did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--rate", type=float, required=True, help="requests per second")
    parser.add_argument("--seconds", type=float, default=10.0, help="in which requests go out")
    parser.add_argument("--drain", type=float, default=60.0, help="longest wait for what is left")
    parser.add_argument("--prompt", default="Sdbgaf=")
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument(
        "--leaving", type=float, default=0.0, help="share of requests that leave after their first token"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lines", type=Path, help="store every outcome, one a line")
    options = parser.parse_args()
    rng = random.Random(options.seed + 1)
    shots = [
        Shot(
            due_s,
            sample_body({"text": options.prompt}, num_tokens=options.new_tokens, seed=number, form="tokens"),
            1 if rng.random() < options.leaving else None,
        )
        for number, due_s in enumerate(arrivals(options.rate, options.seconds, options.seed))
    ]
    started = time.perf_counter()
    outcomes = asyncio.run(fire(Target.at(options.url), shots, options.seconds + options.drain))
    print(json.dumps(summarise(outcomes, time.perf_counter() - started), indent=2))
    if options.lines is not None:
        options.lines.write_text("".join(json.dumps(asdict(outcome)) + "\n" for outcome in outcomes))
    return 0 if all(one.status in (200, 429) for one in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
