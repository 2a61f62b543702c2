"""The service: requests in, answers out, with limits, deadlines and durability between. Knows no HTTP and no Ray.

One event loop calls it; the engine runs in a thread of its own behind it.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import TypeVar

from cong.config.service import ServiceConfig
from cong.engine import EngineProtocol, Rated
from cong.errors import DeadlineExceeded, Forbidden, InvalidRequest, ModelError, StreamError, Unavailable
from cong.schemas import Prompt, SampleRecord, Score, log_ratio
from cong.service.answer import COMPLETE, Answer, LiveAnswer, ReplayedAnswer, usage_of
from cong.service.archive import Archive
from cong.service.facts import Facts
from cong.service.idempotency import Finished, Idempotency, RetryKey
from cong.service.keeping import Keeping
from cong.service.metrics import Family, Meter
from cong.service.pace import Pace
from cong.service.plan import Plan, Planner
from cong.service.reception import Reception, Visit
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
_NO_WRITER = "the stream's writer has ended; this process keeps no samples any more, another may"
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
        self.created = int(time.time())
        """Seconds since 1970, for people."""
        self._reception = Reception(engine, config, clock=clock)
        self._planner = Planner(facts.vocabulary, engine.identities, facts.defaults, self.limits)
        self._keeping = None if self._archive is None else Keeping(self._archive, self.meter, self._reception.quiet)
        self._idempotency = Idempotency(
            config.idempotency_ttl_s, config.max_idempotent_answers, config.max_idempotent_tokens, clock
        )
        self._pace = Pace(config.stream_writes_per_s, config.max_stream_gap_s)
        self._numbers = itertools.count(1)
        self._is_closed = False

    # Life.

    async def start(self) -> None:
        """Begin to take requests, on the loop that calls; a second time does nothing."""
        self._reception.open()

    async def drain(self, timeout_s: float | None = None) -> bool:
        """Take no more requests and let those that run finish; whether they all did within the time."""
        self._reception.shut()
        patience_s = self.config.drain_s if timeout_s is None else timeout_s
        quiet = self._reception.quiet
        try:
            async with asyncio.timeout(patience_s):
                while self._reception.num_calls or self._keeping:
                    quiet.clear()
                    await quiet.wait()
        except TimeoutError:
            return False
        return True

    async def close(self, timeout_s: float | None = None) -> None:
        """Drain, cut short what is left, stop the engine's thread, publish what was to be kept."""
        if self._is_closed:
            return
        self._is_closed = True
        if not await self.drain(timeout_s):
            log.warning("closing cuts requests short", extra={"num_requests": self._reception.num_calls})
            self._reception.cut()
        if not await asyncio.to_thread(self._reception.stop, _STOP_S):
            log.error("the engine is in a step and does not stop; its thread is left behind")
        if self._keeping is not None:
            await self._keeping.wait(self.config.store_timeout_s)
        if self._to_close is not None:
            try:
                await self._to_close.close(self.config.store_timeout_s)
            except StreamError as error:
                # Whoever waited for a sample to be kept has been told; the process ends all the same.
                log.error("the stream could not be closed: %s", error)

    def adopt(self, config: ServiceConfig) -> None:
        """Go on under other deadlines, patience and bounds of admission; what was made at start stays as it is."""
        self.config = config
        self._reception.bound(config.max_waiting, config.max_concurrent_per_key)
        self._pace.bound(config.stream_writes_per_s, config.max_stream_gap_s)

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
        health = self._reception.health()
        if self._archive is None or self._archive.failure is None or health.status == "broken":
            return health
        return health.model_copy(update={"status": "broken", "reason": _NO_WRITER})

    @property
    def failure(self) -> BaseException | None:
        """What has broken it, for whoever keeps the log: callers are told no more than a reason."""
        return self._reception.failure or (None if self._archive is None else self._archive.failure)

    def measurements(self) -> tuple[Family, ...]:
        """Every metric as of now."""
        stats, health, show = self._reception.stats, self.health(), self.meter.show
        show("cong_requests_running", stats.num_running)
        show("cong_requests_waiting", health.num_waiting)
        show("cong_calls_open", self._reception.num_calls)
        used = 1.0 - stats.num_blocks_free / stats.num_blocks if stats.num_blocks else 0.0
        show("cong_kv_cache_usage_ratio", used)
        for status in _STATES:
            show("cong_engine_health", float(status == health.status), status)
        show("cong_engine_steps_total", health.num_steps)
        for phase, seconds in stats.seconds.items():
            show("cong_engine_seconds_total", seconds, phase)
        show("cong_engine_bound_seconds_total", stats.bound_s)
        show("cong_preemptions_total", stats.num_preemptions)
        show("cong_prefix_hits_total", stats.num_prefix_hits)
        show("cong_generation_tokens_total", stats.num_drawn_tokens)
        return self.meter.families()

    def require_room(self, caller: str = "", idempotency_key: str | None = None) -> None:
        """Refuse, before anything of a request is looked at, what could not be taken in now whatever it asks for.

        A retry whose answer is there, or on its way, needs no room.
        """
        if idempotency_key is None or not self._idempotency.knows(caller, idempotency_key):
            self._reception.require_room(caller)

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
        self._reception.require_open()
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
            visit = self._reception.let_in(caller, plan.num_samples_in_all)
            try:
                return await self._begin(call, plan, visit, retry, arrived_s, deadline_s)
            except BaseException:
                visit.close()
                raise
        except BaseException:
            if retry is not None:
                self._idempotency.give_up(retry)
            raise

    async def _begin(
        self, call: SampleCall, plan: Plan, visit: Visit, retry: RetryKey | None, arrived_s: float, deadline_s: float
    ) -> Answer:
        known = await self._known(plan, call.store)
        left_s = deadline_s - (self._clock() - arrived_s)
        if left_s <= 0:
            raise DeadlineExceeded(f"the deadline of {deadline_s:g} s has passed before anything could be made")
        requests = plan.requests(
            f"r{next(self._numbers)}", [sample.record.key for _, sample in known], left_s, call.stream == "tokens"
        )
        ticket = visit.begin(requests, deadline_s, left_s)
        visit.finish(len(known))
        self.meter.count("cong_duplicates_total", len(known))
        self.meter.count("cong_prompt_tokens_total", plan.num_prompt_tokens)

        def finish(record: SampleRecord) -> None:
            visit.finish(1)
            self._measure(record)

        def close(answer: LiveAnswer) -> None:
            self.meter.count("cong_request_finished_total", visit.num_open, "cancelled")
            visit.close()
            self.meter.observe("cong_e2e_request_latency_seconds", [self._clock() - arrived_s])
            if retry is not None:
                is_whole = all(sample.record.finish_reason in COMPLETE for _, sample in answer.samples)
                if answer.num_left == 0 and is_whole:
                    self._idempotency.settle(retry, Finished(tuple(answer.samples)))
                else:
                    self._idempotency.give_up(retry)

        keeping = self._keeping
        return LiveAnswer(
            ticket,
            plan.num_samples_in_all,
            plan.num_prompt_tokens,
            known,
            vocabulary=self.facts.vocabulary if call.stream == "tokens" else None,
            pace=self._pace,
            store=None
            if keeping is None or call.store == "none"
            else lambda number, record: keeping.store(ticket, number, record, call.store),
            on_finished=finish,
            on_close=close,
        )

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

    def _measure(self, record: SampleRecord) -> None:
        meter, num_tokens = self.meter, len(record.completion_token_ids)
        meter.count("cong_request_finished_total", 1, record.finish_reason)
        meter.observe("cong_head_set_size", record.head_sizes)
        if num_tokens:
            first_s = record.timings.queued_s + record.timings.first_token_s
            meter.observe("cong_time_to_first_token_seconds", [first_s])
            if num_tokens > 1:
                each_s = max(0.0, record.timings.total_s - first_s) / (num_tokens - 1)
                meter.observe("cong_inter_token_latency_seconds", [each_s], num_tokens - 1)

    # Scores.

    async def score(self, call: ScoreCall, caller: str = "", request_id: str = "") -> ScoreReply:
        """Log-probs of given completions under every network, in the order of the items."""
        self._reception.require_open()
        arrived_s = self._clock()
        deadline_s = self._deadline_s(call.deadline_s)
        requests = await self._off_loop_if(
            sum(len(item.completion_text or "") + _num_chars(item.prompt.text) for item in call.items) > _MANY_CHARS
            or len(call.items) > _MANY_PROMPTS,
            lambda: self._planner.plan_scores(call.items, f"s{next(self._numbers)}", deadline_s),
        )
        scores: dict[int, Score] = {}
        visit = self._reception.let_in(caller, len(requests))
        try:
            ticket = visit.begin(dict(enumerate(requests)), deadline_s, deadline_s)
            while len(scores) < len(requests):
                for number, event in await ticket.take():
                    assert isinstance(event, Rated), "a request for scores gets no samples"
                    if event.problem:
                        raise ModelError(f"item {number}: {event.problem}")
                    if len(event.score.completion_token_ids) < len(requests[number].completion_token_ids):
                        raise DeadlineExceeded(f"item {number} was not scored within {deadline_s:g} s; ask for fewer")
                    scores[number] = event.score
                    visit.finish(1)
        finally:
            visit.close()
        self.meter.count("cong_scored_tokens_total", sum(len(request.completion_token_ids) for request in requests))
        self.meter.observe("cong_e2e_request_latency_seconds", [self._clock() - arrived_s])
        num_prompt = sum(len(request.prompt_token_ids) + len(request.completion_token_ids) for request in requests)
        return ScoreReply(
            request_id=request_id,
            items=tuple(_scored(scores[number]) for number in range(len(requests))),
            usage=usage_of(num_prompt, ()),
        )

    # What both ask.

    def _require_level(self, level: StoreLevel) -> None:
        if level == "none":
            return
        if self._archive is None:
            raise Forbidden("this deployment keeps no samples; leave `store` out, or set it to none")
        if level not in self.store_levels:
            raise InvalidRequest("store", f"is {level!r}; this deployment offers {', '.join(self.store_levels)}")
        if self._archive.failure is not None:
            raise Unavailable(_NO_WRITER)

    def _deadline_s(self, asked_s: float | None) -> float:
        return min(self.config.default_deadline_s if asked_s is None else asked_s, self.config.max_deadline_s)

    async def encode(self, prompts: Sequence[Prompt], num_samples: int = 1) -> list[tuple[int, ...]]:
        """Token ids of prompts that are to be told `num_samples` times each; refused like so many samples of them."""
        return await self._off_loop_if(_are_large(prompts), lambda: self._planner.encode(prompts, num_samples))

    async def _plan(self, call: SampleCall) -> Plan:
        return await self._off_loop_if(
            _are_large(call.prompts), lambda: self._planner.plan(call, has_keys=call.store != "none")
        )

    async def _off_loop_if(self, is_large: bool, work: Callable[[], T]) -> T:
        """Work that may take long is done where it does not keep the other callers waiting."""
        return await asyncio.to_thread(work) if is_large else work()

    async def _within(self, limit_s: float, work: Coroutine[object, object, T]) -> T:
        try:
            async with asyncio.timeout(limit_s):
                return await work
        except TimeoutError as error:
            raise DeadlineExceeded(f"the same request is being answered and was not done in {limit_s:g} s") from error


def _num_chars(text: str | None) -> int:
    return len(text or "")


def _are_large(prompts: Sequence[Prompt]) -> bool:
    """Whether it takes long to encode them."""
    num_chars = sum(_num_chars(prompt.text) + sum(len(m.content) for m in prompt.messages) for prompt in prompts)
    return num_chars > _MANY_CHARS or len(prompts) > _MANY_PROMPTS


def _scored(score: Score) -> ScoredText:
    aligned, base = score.logprobs.get("aligned"), score.logprobs.get("base")
    if aligned is None or base is None:
        return ScoredText(score=score)
    total = log_ratio(aligned, base)
    return ScoredText(score=score, implicit_reward_sum=total, implicit_reward_mean=total / len(aligned))
