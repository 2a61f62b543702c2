"""The service: requests in, answers out, with limits, deadlines and durability between. Knows no HTTP and no Ray.

One event loop calls it; the engine runs in a thread of its own behind it.
"""

import asyncio
import itertools
import logging
import math
import time
from collections.abc import Callable, Coroutine
from typing import TypeVar

from cong.config.service import ServiceConfig
from cong.engine import EngineProtocol, Rate, Rated
from cong.errors import CongError, DeadlineExceeded, Forbidden, InvalidRequest, StreamError, Unavailable
from cong.schemas import SampleRecord, Score
from cong.service.admission import Admission
from cong.service.answer import COMPLETE, Answer, LiveAnswer, ReplayedAnswer, usage_of
from cong.service.archive import Archive
from cong.service.engine_thread import EngineThread
from cong.service.facts import Facts
from cong.service.idempotency import Finished, Idempotency, RetryKey
from cong.service.metrics import Family, Meter
from cong.service.plan import Plan, Planner
from cong.service.switchboard import Switchboard, Ticket
from cong.wire import (
    HealthReply,
    InfoReply,
    SampleCall,
    SampleReply,
    ScoreCall,
    ScoredText,
    ScoreReply,
    StoredSample,
    StoreLevel,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

_MANY_PROMPTS = 16
_MANY_CHARS = 20_000
_STOP_S = 10.0
_STATES = ("ok", "starting", "draining", "stuck", "broken")


class SampleService:
    """An engine, a stream and the rules between them and the callers."""

    def __init__(
        self,
        engine: EngineProtocol,
        facts: Facts,
        config: ServiceConfig,
        archive: Archive | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`archive` is where samples are kept; None, or a configuration that forbids it: nothing is kept."""
        self.config = config
        self.facts = facts
        self.limits = facts.limits(config)
        self.meter = Meter()
        self._archive = archive if config.may_store_prompts else None
        self._to_close = archive
        self._clock = clock
        self._started_s = clock()
        self.created = int(time.time())
        """Seconds since 1970, for people."""
        self._switchboard = Switchboard()
        self._thread = EngineThread(engine, self._switchboard.post, clock=clock)
        self._planner = Planner(facts.vocabulary, engine.identities, facts.defaults, self.limits)
        self._admission = Admission(
            config.max_waiting, config.max_concurrent_per_key, lambda: self._thread.stats.num_running, clock
        )
        self._idempotency = Idempotency(
            config.idempotency_ttl_s, config.max_idempotent_answers, config.max_idempotent_tokens, clock
        )
        self._numbers = itertools.count(1)
        self._tickets: set[Ticket] = set()
        self._storing: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._is_started = self._is_draining = self._is_closed = False

    # Life.

    async def start(self) -> None:
        """Begin to take requests, on the loop that calls; a second time does nothing."""
        if not self._is_started:
            self._switchboard.attach(asyncio.get_running_loop())
            self._thread.start()
            self._is_started = True

    async def drain(self, timeout_s: float | None = None) -> bool:
        """Take no more requests and let those that run finish; whether they all did within the time."""
        self._is_draining = True
        patience_s = self.config.drain_s if timeout_s is None else timeout_s
        try:
            async with asyncio.timeout(patience_s):
                while self._admission.num_calls or self._storing:
                    self._idle.clear()
                    await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def close(self, timeout_s: float | None = None) -> None:
        """Drain, cut short what is left, stop the engine's thread, publish what was to be kept."""
        if self._is_closed:
            return
        self._is_closed = True
        if not await self.drain(timeout_s):
            log.warning("closing cuts requests short", extra={"num_requests": self._admission.num_calls})
            for ticket in tuple(self._tickets):
                ticket.fail(Unavailable("the service is closing; another one may answer"))
        if not await asyncio.to_thread(self._thread.stop, _STOP_S):
            log.error("the engine is in a step and does not stop; its thread is left behind")
        if self._storing:
            await asyncio.wait(self._storing, timeout=self.config.store_timeout_s)
        if self._to_close is not None:
            await self._to_close.close(self.config.store_timeout_s)

    def adopt(self, config: ServiceConfig) -> None:
        """Go on under other deadlines, patience and bounds of admission; what was made at start stays as it is."""
        self.config = config
        self._admission.bound(config.max_waiting, config.max_concurrent_per_key)

    # What it is and how it is.

    @property
    def store_levels(self) -> tuple[StoreLevel, ...]:
        """What `store` may ask for here, weakest first."""
        return ("none",) if self._archive is None else self._archive.levels

    def info(self) -> InfoReply:
        """What this deployment is."""
        location = None if self._archive is None else self._archive.location
        return self.facts.info(self.config, self.store_levels, location)

    def health(self) -> HealthReply:
        """How it is; anything but ok means that another process should be asked."""
        stats = self._thread.stats
        if self._thread.error is not None or (self._is_started and not self._is_closed and not self._thread.is_alive):
            status = "broken"
        elif not self._is_started:
            status = "starting"
        elif self._is_draining:
            status = "draining"
        elif self._thread.busy_s() > self.config.stuck_after_s:
            status = "stuck"
        else:
            status = "ok"
        return HealthReply(
            status=status,
            num_running=stats.num_running,
            num_waiting=self._admission.num_waiting,
            num_steps=self._thread.num_steps,
            uptime_s=self._clock() - self._started_s,
        )

    def measurements(self) -> tuple[Family, ...]:
        """Every metric as of now."""
        stats, health, show = self._thread.stats, self.health(), self.meter.show
        show("cong_requests_running", stats.num_running)
        show("cong_requests_waiting", self._admission.num_waiting)
        show("cong_calls_open", self._admission.num_calls)
        used = 1.0 - stats.num_blocks_free / stats.num_blocks if stats.num_blocks else 0.0
        show("cong_kv_cache_usage_ratio", used)
        for status in _STATES:
            show("cong_engine_health", float(status == health.status), status)
        show("cong_engine_steps_total", self._thread.num_steps)
        for phase, seconds in stats.seconds.items():
            show("cong_engine_seconds_total", seconds, phase)
        show("cong_preemptions_total", stats.num_preemptions)
        show("cong_prefix_hits_total", stats.num_prefix_hits)
        show("cong_generation_tokens_total", stats.num_drawn_tokens)
        return self.meter.families()

    # Samples.

    async def sample(
        self, call: SampleCall, caller: str = "", request_id: str = "", retry: RetryKey | None = None
    ) -> SampleReply:
        """All samples of a request as one document, in order of prompts, then of sample index."""
        async with await self.open(call, caller, retry) as answer:
            found = [
                (event.prompt_index, event.sample)
                async for batch in answer
                for event in batch
                if event.event == "sample"
            ]
        found.sort(key=lambda item: (item[0], item[1].record.sample_index))
        samples = tuple(sample for _, sample in found)
        return SampleReply(request_id=request_id, samples=samples, usage=usage_of(answer.num_prompt_tokens, samples))

    async def open(self, call: SampleCall, caller: str = "", retry: RetryKey | None = None) -> Answer:
        """Check a request and begin to serve it; what can be refused is refused here. The answer must be closed."""
        self._require_open()
        self._require_level(call.store)
        arrived_s = self._clock()
        deadline_s = self._deadline_s(call.deadline_s)
        plan = await self._plan(call)
        if retry is not None:
            finished = await self._within(deadline_s, self._idempotency.claim(retry))
            if finished is not None:
                self.meter.count("cong_duplicates_total", len(finished.samples))
                vocabulary = self.facts.vocabulary if call.stream == "tokens" else None
                return ReplayedAnswer(finished, plan.num_prompt_tokens, vocabulary)
        try:
            return await self._begin(call, plan, caller, retry, arrived_s, deadline_s)
        except BaseException:
            if retry is not None:
                self._idempotency.give_up(retry)
            raise

    async def _begin(
        self, call: SampleCall, plan: Plan, caller: str, retry: RetryKey | None, arrived_s: float, deadline_s: float
    ) -> Answer:
        self._admission.enter(caller, plan.num_samples_in_all)
        try:
            known = await self._known(plan, call.store)
            left_s = deadline_s - (self._clock() - arrived_s)
            if left_s <= 0:
                raise DeadlineExceeded(f"the deadline of {deadline_s:g} s has passed before anything could be made")
        except BaseException:
            self._admission.finish(plan.num_samples_in_all)
            self._leave(caller)
            raise
        requests = plan.requests(
            f"r{next(self._numbers)}", [sample.record.key for _, sample in known], left_s, call.stream == "tokens"
        )
        ids = [request.request_id for request in requests.values()]
        ticket = self._ticket(ids)

        def close(answer: LiveAnswer) -> None:
            self._close_ticket(ticket, ids, guard, is_done=answer.num_unfinished == 0)
            self.meter.count("cong_request_finished_total", answer.num_unfinished, "cancelled")
            self._admission.finish(answer.num_unfinished)
            self._leave(caller)
            self.meter.observe("cong_e2e_request_latency_seconds", [self._clock() - arrived_s])
            if retry is not None:
                is_whole = all(sample.record.finish_reason in COMPLETE for _, sample in answer.samples)
                if answer.num_left == 0 and is_whole:
                    self._idempotency.settle(retry, Finished(tuple(answer.samples)))
                else:
                    self._idempotency.give_up(retry)

        guard = self._guard(ticket, deadline_s, left_s)
        for number, request in requests.items():
            self._switchboard.expect(request.request_id, ticket, number)
        self._thread.put([*requests.values()])
        self._admission.finish(len(known))
        self.meter.count("cong_duplicates_total", len(known))
        self.meter.count("cong_prompt_tokens_total", plan.num_prompt_tokens)
        archive = self._archive
        return LiveAnswer(
            ticket,
            plan.num_samples_in_all,
            plan.num_prompt_tokens,
            known,
            vocabulary=self.facts.vocabulary if call.stream == "tokens" else None,
            store=None
            if archive is None or call.store == "none"
            else lambda number, record: self._store(archive, ticket, number, record, call.store),
            on_finished=self._note_finished,
            on_close=close,
        )

    # Scores.

    async def score(self, call: ScoreCall, caller: str = "", request_id: str = "") -> ScoreReply:
        """Log-probs of given completions under every network, in the order of the items."""
        self._require_open()
        arrived_s = self._clock()
        deadline_s = self._deadline_s(call.deadline_s)
        requests = await self._off_loop_if(
            sum(len(item.completion_text or "") + _num_chars(item.prompt.text) for item in call.items) > _MANY_CHARS
            or len(call.items) > _MANY_PROMPTS,
            lambda: self._planner.plan_scores(call.items, f"s{next(self._numbers)}", deadline_s),
        )
        scores = await self._rate(requests, caller, deadline_s)
        self.meter.observe("cong_e2e_request_latency_seconds", [self._clock() - arrived_s])
        num_prompt = sum(len(request.prompt_token_ids) + len(request.completion_token_ids) for request in requests)
        return ScoreReply(
            request_id=request_id,
            items=tuple(_scored(score) for score in scores),
            usage=usage_of(num_prompt, ()),
        )

    async def _rate(self, requests: list[Rate], caller: str, deadline_s: float) -> list[Score]:
        ids = [request.request_id for request in requests]
        self._admission.enter(caller, len(requests))
        ticket = self._ticket(ids)
        guard = self._guard(ticket, deadline_s, deadline_s)
        scores: dict[int, Score] = {}
        try:
            for number, request in enumerate(requests):
                self._switchboard.expect(request.request_id, ticket, number)
            self._thread.put(requests)
            while len(scores) < len(requests):
                for number, event in await ticket.take():
                    assert isinstance(event, Rated), "a request for scores gets no samples"
                    if len(event.score.completion_token_ids) < len(requests[number].completion_token_ids):
                        raise DeadlineExceeded(f"item {number} was not scored within {deadline_s:g} s; ask for fewer")
                    scores[number] = event.score
        finally:
            self._close_ticket(ticket, ids, guard, is_done=len(scores) == len(requests))
            self._admission.finish(len(requests))
            self._leave(caller)
        self.meter.count("cong_scored_tokens_total", sum(len(request.completion_token_ids) for request in requests))
        return [scores[number] for number in range(len(requests))]

    # The parts.

    def _require_open(self) -> None:
        status = self.health().status
        if status == "ok":
            return
        reasons = {
            "starting": "the service starts; try again in a moment",
            "draining": "the service is closing; another one may answer",
            "stuck": "the engine has not finished a step for long; another process may answer",
            "broken": "the engine has failed; this process takes no work any more, another one may",
        }
        raise Unavailable(reasons[status], retry_after_s=5.0 if status == "stuck" else 1.0)

    def _require_level(self, level: StoreLevel) -> None:
        if level == "none" or level in self.store_levels:
            return
        if self._archive is None:
            raise Forbidden("this deployment keeps no samples; leave `store` out, or set it to none")
        raise InvalidRequest("store", f"is {level!r}; this deployment offers {', '.join(self.store_levels)}")

    def _deadline_s(self, asked_s: float | None) -> float:
        return min(self.config.default_deadline_s if asked_s is None else asked_s, self.config.max_deadline_s)

    async def _plan(self, call: SampleCall) -> Plan:
        num_chars = sum(
            _num_chars(prompt.text) + sum(len(m.content) for m in prompt.messages) for prompt in call.prompts
        )
        is_large = num_chars > _MANY_CHARS or len(call.prompts) > _MANY_PROMPTS
        return await self._off_loop_if(is_large, lambda: self._planner.plan(call, has_keys=call.store != "none"))

    async def _off_loop_if(self, is_large: bool, work: Callable[[], T]) -> T:
        """Work that may take long is done where it does not keep the other callers waiting."""
        return await asyncio.to_thread(work) if is_large else work()

    async def _known(self, plan: Plan, level: StoreLevel) -> list[tuple[int, StoredSample]]:
        """Samples that the stream holds already; looked for only by those who store."""
        if self._archive is None or level == "none":
            return []
        found = await self._archive.find([key for question in plan.questions for key in question.keys])
        return [
            (number, found[key])
            for number, question in enumerate(plan.questions)
            for key in question.keys
            if key in found
        ]

    def _ticket(self, ids: list[str]) -> Ticket:
        ticket = Ticket(self.config.max_buffered_events, lambda: self._abandon(ids))
        self._tickets.add(ticket)
        return ticket

    def _guard(self, ticket: Ticket, deadline_s: float, left_s: float) -> asyncio.TimerHandle:
        """The engine ends what is late by itself; if it does not, because it is stuck, the caller still gets away."""
        error = DeadlineExceeded(f"nothing came within the deadline of {deadline_s:g} s")
        return asyncio.get_running_loop().call_later(left_s + max(1.0, 0.1 * left_s), ticket.fail, error)

    def _close_ticket(self, ticket: Ticket, ids: list[str], guard: asyncio.TimerHandle, *, is_done: bool) -> None:
        guard.cancel()
        self._tickets.discard(ticket)
        self._switchboard.forget(ids)
        if not is_done:
            self._thread.cancel(ids)

    def _abandon(self, ids: list[str]) -> None:
        """Nobody reads what comes: it need not be made."""
        self._switchboard.forget(ids)
        self._thread.cancel(ids)

    def _leave(self, caller: str) -> None:
        self._admission.leave(caller)
        self._idle.set()

    def _note_finished(self, record: SampleRecord) -> None:
        self._admission.finish(1)
        meter, num_tokens = self.meter, len(record.completion_token_ids)
        meter.count("cong_request_finished_total", 1, record.finish_reason)
        meter.observe("cong_head_set_size", record.head_sizes)
        if num_tokens:
            first_s = record.timings.queued_s + record.timings.first_token_s
            meter.observe("cong_time_to_first_token_seconds", [first_s])
            if num_tokens > 1:
                each_s = max(0.0, record.timings.total_s - first_s) / (num_tokens - 1)
                meter.observe("cong_inter_token_latency_seconds", [each_s], num_tokens - 1)

    def _store(self, archive: Archive, ticket: Ticket, number: int, record: SampleRecord, level: StoreLevel) -> None:
        """Put a sample on the ticket once it is kept. It is kept even if the caller leaves meanwhile."""

        async def keep() -> None:
            try:
                kept = await archive.keep(record, level)
            except (StreamError, OSError, RuntimeError) as error:
                self.meter.count("cong_stream_failures_total")
                log.error("a sample could not be stored: %s", error, extra={"key": record.key})
                told = error if isinstance(error, CongError) else StreamError(str(error))
                ticket.fail(told)
                return
            self.meter.count("cong_stream_acknowledged_total", 1, kept.sample.stored)
            self.meter.observe("cong_stream_append_seconds", [kept.seconds])
            if kept.sample.is_duplicate:
                self.meter.count("cong_duplicates_total")
            ticket.put(number, kept.sample)

        task = asyncio.get_running_loop().create_task(keep())
        self._storing.add(task)
        task.add_done_callback(self._note_stored)

    def _note_stored(self, task: "asyncio.Task[None]") -> None:
        self._storing.discard(task)
        self._idle.set()
        if not task.cancelled() and task.exception() is not None:
            log.error("storing a sample failed unexpectedly", exc_info=task.exception())

    async def _within(self, limit_s: float, work: Coroutine[object, object, T]) -> T:
        try:
            async with asyncio.timeout(limit_s):
                return await work
        except TimeoutError as error:
            raise DeadlineExceeded(f"the same request is being answered and was not done in {limit_s:g} s") from error


def _num_chars(text: str | None) -> int:
    return len(text or "")


def _scored(score: Score) -> ScoredText:
    aligned, base = score.logprobs.get("aligned"), score.logprobs.get("base")
    if aligned is None or base is None:
        return ScoredText(score=score)
    total = math.fsum(aligned) - math.fsum(base)
    return ScoredText(score=score, implicit_reward_sum=total, implicit_reward_mean=total / len(aligned))
