"""Many prompts through a service: a bounded number in flight, each until it is done, known, or given up.

Knows neither where prompts come from nor where replies go; whoever runs it says so. Nothing is asked twice.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from cong.client.async_client import AsyncClient
from cong.client.feed import Feed
from cong.client.units import Ask, Units
from cong.errors import (
    BadReply,
    Conflict,
    CongError,
    Forbidden,
    InvalidRequest,
    NotFound,
    Overloaded,
    PromptTooLong,
    RequestError,
    ServiceError,
    Unauthenticated,
    Unavailable,
)
from cong.schemas import Prompt, SamplingParameters
from cong.wire import SampleReply, StoreLevel

_STRENGTH: Mapping[StoreLevel, int] = {"none": 0, "local": 1, "shared": 2}

HOPELESS = (Unauthenticated, Forbidden, NotFound, BadReply)
"""Every other prompt would meet with the same."""
PASSING = (Overloaded, Unavailable, ServiceError)
"""Says something about the service and nothing about the prompt."""
FINAL = (InvalidRequest, PromptTooLong, Conflict)
"""The same request would meet with the same again."""


@dataclass(frozen=True)
class Bounds:
    """How much at a time, and when to stop."""

    in_flight: int = 64
    max_failures_in_a_row: int = 50
    """0 = no limit."""
    grace_s: float = 20.0
    """After a stop, what is in flight may take so long to finish."""


@dataclass(frozen=True)
class GivenUp:
    """A prompt without its samples, and why."""

    prompt: Prompt
    error: str
    """Name of the error."""
    reason: str
    is_final: bool
    """Asked for again as it is, it would be refused again."""


@dataclass
class Tally:
    """What became of the prompts."""

    num_done: int = 0
    num_known: int = 0
    """Were done before, or the same as another one."""
    num_failed: int = 0
    num_samples: int = 0
    num_duplicates: int = 0
    """Of the samples: the service had them already."""
    num_tokens: int = 0
    num_shared: int = 0
    """Asked what a prompt before them asks: equal tokens have the same samples, kept under the id of the first."""
    num_cut_off: int = 0
    """Were in flight when the time to finish them was over."""
    stopped: str = ""
    """Why not every prompt was looked at; empty = every one was."""


class Done(Protocol):
    """Units that need not be asked for."""

    def __contains__(self, unit: str) -> bool: ...

    def add(self, unit: str) -> None: ...


class Bulk:
    """One run over many prompts; belongs to one event loop."""

    def __init__(
        self,
        client: AsyncClient,
        ask: Ask,
        units: Units,
        bounds: Bounds,
        done: Done,
        take: Callable[[SampleReply], None],
        give_up: Callable[[GivenUp], None],
        settled: Callable[[Tally], None],
    ) -> None:
        """`take` and `give_up` are told the outcome of each prompt that was asked for; `done` learns of it after them.

        `settled` hears of every prompt that is through, known ones included.
        """
        self._client = client
        self._ask = ask
        # Whole: whatever the deployment's own parameters are, samples are what this run says.
        self._parameters = SamplingParameters.model_validate(ask.parameters.model_dump())
        self._units = units
        self._bounds = bounds
        self._done = done
        self._take = take
        self._give_up = give_up
        self._settled = settled
        self._seen: set[str] = set()
        """Asked for in this run and not done: in flight or given up."""
        self._met: set[int] = set()
        """Hashes of all units met in this run."""
        self._ids: dict[int, int] = {}
        """Of the ids met in this run, hashed: the unit that came first under each."""
        self._num_failures_in_a_row = 0
        self._stopping = asyncio.Event()
        self._error: BaseException | None = None
        self.tally = Tally()

    def stop(self, reason: str) -> None:
        """Send no more prompts, and finish what is in flight."""
        if not self._stopping.is_set():
            self.tally.stopped = reason
            self._stopping.set()

    async def run(self, prompts: Iterable[Prompt]) -> Tally:
        """Every prompt once; returns when all are through, or when what is in flight after a stop has ended."""
        feed = Feed(prompts, 2 * self._bounds.in_flight)
        workers = [asyncio.create_task(self._work(feed)) for _ in range(self._bounds.in_flight)]
        all_through = asyncio.gather(*workers, return_exceptions=True)
        stopping = asyncio.create_task(self._stopping.wait())
        either: list[asyncio.Future[Any]] = [all_through, stopping]
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            feed.close()
            if not all_through.done():
                await asyncio.wait({all_through}, timeout=self._bounds.grace_s)
        finally:
            feed.close()
            stopping.cancel()
            for worker in workers:
                worker.cancel()
            await asyncio.wait({all_through})
        if self._error is not None:
            raise self._error
        return self.tally

    async def _work(self, feed: Feed[Prompt]) -> None:
        try:
            while (prompt := await feed.take()) is not None and not self._stopping.is_set():
                await self._settle(prompt)
                self._settled(self.tally)
        except Exception as error:  # noqa: BLE001
            # The run ends with it, once what else is in flight has ended.
            self._error = self._error or error
            self.stop(str(error))

    async def _settle(self, prompt: Prompt) -> None:
        ask, unit = self._ask, self._units.of(prompt)
        if self._ids.setdefault(hash(prompt.prompt_id), hash(unit)) != hash(unit):
            reason = "a prompt before it has the same id; samples are joined by it, so give each its own"
            self._give_up(GivenUp(prompt, "DuplicateId", reason, is_final=True))
            self.tally.num_failed += 1
            return
        self.tally.num_shared += hash(unit) in self._met
        self._met.add(hash(unit))
        if unit in self._seen or unit in self._done:
            self.tally.num_known += 1
            return
        self._seen.add(unit)
        try:
            reply = await self._client.sample(
                prompt,
                num_samples=ask.num_samples,
                parameters=self._parameters,
                store=ask.store,
                deadline_s=ask.deadline_s,
                idempotency_key=self._units.request_key(prompt),
            )
        except HOPELESS:
            raise
        except (RequestError, ServiceError) as error:
            self._fail(prompt, error)
            return
        except asyncio.CancelledError:
            self.tally.num_cut_off += 1
            raise
        problem = self._problem(reply)
        if problem:
            self._give_up(GivenUp(prompt, "IncompleteReply", problem, is_final=False))
            self.tally.num_failed += 1
            return
        self._take(reply)
        self._done.add(unit)
        self._seen.discard(unit)
        self._num_failures_in_a_row = 0
        self.tally.num_done += 1
        self.tally.num_samples += len(reply.samples)
        self.tally.num_duplicates += sum(sample.is_duplicate for sample in reply.samples)
        self.tally.num_shared += any(s.record.prompt.prompt_id != prompt.prompt_id for s in reply.samples)
        self.tally.num_tokens += sum(len(sample.record.completion_token_ids) for sample in reply.samples)

    def _problem(self, reply: SampleReply) -> str:
        """Why a reply is not all that was asked for; empty when it is."""
        ask = self._ask
        records = [sample.record for sample in reply.samples]
        if not all(map(self._units.is_from_here, records)):
            raise BadReply(f"{self._client.url} answers with other networks than it named at the start; start again")
        if {record.sample_index for record in records} != set(range(ask.num_samples)):
            return f"{len(records)} samples came, and {ask.num_samples} were asked for"
        weak = next((s for s in reply.samples if _STRENGTH[s.stored] < _STRENGTH[ask.store]), None)
        if weak is not None:
            return f"a sample is stored at the level {weak.stored!r}, and {ask.store!r} was asked for"
        ended = next((r.finish_reason for r in records if r.finish_reason not in ("stop", "length")), None)
        return f"a sample ended by {ended!r} before it was complete" if ended else ""

    def _fail(self, prompt: Prompt, error: CongError) -> None:
        self.tally.num_failed += 1
        self._give_up(GivenUp(prompt, type(error).__name__, str(error), isinstance(error, FINAL)))
        if not isinstance(error, PASSING):
            return
        self._num_failures_in_a_row += 1
        most = self._bounds.max_failures_in_a_row
        if most and self._num_failures_in_a_row >= most:
            self.stop(f"{most} prompts in a row were given up; the last: {error}")
