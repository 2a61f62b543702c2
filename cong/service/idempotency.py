"""Answers kept for a retry with the same key: bounded in number, in tokens and in time. Knows no engine and no HTTP.

Whoever comes first with a key makes the answer; whoever comes meanwhile waits for it. If the first leaves without an
answer, one of those who wait makes it instead.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from cong.errors import Conflict
from cong.wire import StoredSample


@dataclass(frozen=True)
class RetryKey:
    """What makes two requests the same one."""

    caller: str
    key: str
    digest: str
    """Of everything that was asked."""


@dataclass(frozen=True)
class Finished:
    """All samples of a request: the number of the prompt, and the sample."""

    samples: tuple[tuple[int, StoredSample], ...]

    @property
    def num_tokens(self) -> int:
        """What it costs to keep."""
        return sum(
            len(sample.record.completion_token_ids) + len(sample.record.prompt_token_ids) for _, sample in self.samples
        )


@dataclass
class _Making:
    """A request that is being answered."""

    digest: str
    done: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True)
class _Made:
    """A request that has been answered."""

    digest: str
    answer: Finished
    expires_s: float


class Idempotency:
    """Answers by caller and key."""

    def __init__(
        self, ttl_s: float, max_answers: int, max_tokens: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ttl_s = ttl_s
        self._max_answers = max_answers
        self._max_tokens = max_tokens
        self._clock = clock
        self._making: dict[tuple[str, str], _Making] = {}
        self._made: OrderedDict[tuple[str, str], _Made] = OrderedDict()
        """Oldest first, so that what expires first is in front."""
        self._num_tokens = 0

    def __len__(self) -> int:
        return len(self._making) + len(self._made)

    def knows(self, caller: str, key: str) -> bool:
        """Whether a request with this key is being answered, or was."""
        return (caller, key) in self._made or (caller, key) in self._making

    async def claim(self, retry: RetryKey) -> Finished | None:
        """The answer, once it is there; None = the caller is to make it, and to `settle` or `give_up`."""
        name = (retry.caller, retry.key)
        while True:
            self._forget()
            entry = self._made.get(name) or self._making.get(name)
            if entry is None:
                self._making[name] = _Making(retry.digest)
                return None
            if entry.digest != retry.digest:
                raise Conflict(
                    f"the idempotency key {retry.key!r} was used before with another request; use a new key for a new "
                    "request"
                )
            if isinstance(entry, _Made):
                return entry.answer
            await entry.done.wait()

    def settle(self, retry: RetryKey, answer: Finished) -> None:
        """Keep an answer, and give it to those who wait."""
        name = (retry.caller, retry.key)
        making = self._making.pop(name)
        self._made[name] = _Made(making.digest, answer, self._clock() + self._ttl_s)
        self._num_tokens += answer.num_tokens
        making.done.set()

    def give_up(self, retry: RetryKey) -> None:
        """There will be no answer from this caller; the next one may make it."""
        self._making.pop((retry.caller, retry.key)).done.set()

    def _forget(self) -> None:
        now = self._clock()
        while self._made:
            name, oldest = next(iter(self._made.items()))
            has_room = len(self._made) <= self._max_answers and self._num_tokens <= self._max_tokens
            if has_room and oldest.expires_s > now:
                return
            self._num_tokens -= oldest.answer.num_tokens
            del self._made[name]
