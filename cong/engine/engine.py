"""The engine: schedule, forward, draw, commit. Synchronous and single-threaded; knows no HTTP and no Ray."""

import heapq
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from cong import __version__
from cong.config.engine import EngineConfig
from cong.engine.blocks import BlockPool
from cong.engine.drawing import Drawer
from cong.engine.memory import StepCost, plan_blocks
from cong.engine.protocol import (
    EngineStats,
    Event,
    Generate,
    Rate,
    Rated,
    SampleFinished,
    TokenDrawn,
    TokenRecord,
)
from cong.engine.records import record_of, score_of
from cong.engine.runner import Runner
from cong.engine.scheduler import Chunk, Limits, Scheduler
from cong.engine.sequence import Sequence
from cong.engine.text import TextStream
from cong.errors import InvalidRequest, PromptTooLong
from cong.models import NetworkSet, detokenize, encode_prompt, render_chat
from cong.schemas import (
    FinishReason,
    NetworkIdentity,
    Prompt,
    SampleRecord,
    SampleRequest,
    SamplingParameters,
    sample_key,
)


@dataclass
class _Open:
    """A request of which something is unfinished."""

    request: Generate | Rate
    unfinished: dict[int, Sequence] = field(default_factory=dict)
    """By sample index."""


class Engine:
    """K frozen networks that draw one token stream per sequence, many sequences at a time."""

    def __init__(
        self,
        networks: NetworkSet,
        config: EngineConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        writer: str = "",
    ) -> None:
        self.networks = networks
        self.config = config
        self._clock = clock
        self._writer = writer
        self._runner = Runner(networks.networks, stacks_networks=config.stacks_networks, kernel=config.kernel)
        num_blocks = plan_blocks(self._runner, networks, config)
        self._runner.prepare(num_blocks, config.block_size)
        self._pool = BlockPool(num_blocks, config.block_size, self._runner.cached_share)
        limits = Limits(max(config.max_step_tokens, config.max_running), config.max_running)
        self._scheduler = Scheduler(self._pool, limits)
        self._drawer = Drawer(networks.shared_vocab_size, self._runner.device)
        self._cost = StepCost(networks, self._runner)
        self._open: dict[str, _Open] = {}
        self._deadlines: list[tuple[float, str]] = []
        self._num_submitted = 0
        self._outbox: list[Event] = []
        self._counts: Counter[str] = Counter()
        self._seconds = dict.fromkeys(("schedule", "forward", "mix", "commit"), 0.0)
        self._software = {"cong": __version__, "torch": torch.__version__, "engine": "cong"}

    @property
    def identities(self) -> tuple[NetworkIdentity, ...]:
        """The networks, in the order of a mixture's weights."""
        return self.networks.identities

    @property
    def has_work(self) -> bool:
        """Whether another step would do anything."""
        return bool(self._open or self._outbox)

    @property
    def max_tokens(self) -> int:
        """Prompt and completion tokens of the longest sequence that can be served."""
        room = self._pool.num_blocks * self._pool.block_size
        return min(room, self.networks.context_length or room)

    def submit(self, request: Generate) -> None:
        """Queue samples; refuses what can never be served."""
        self._require_new(request.request_id)
        parameters = request.parameters
        self._require_usable(parameters)
        prompt_token_ids = self._prompt_token_ids(request)
        self._require_room(len(prompt_token_ids), parameters.max_tokens, "max_tokens")
        ends = frozenset() if parameters.ignore_eos else self.networks.eos_ids
        needs_text = request.streams or bool(parameters.stop)
        self._queue(
            request,
            [
                Sequence(
                    request_id=request.request_id,
                    sample_index=sample_index,
                    prompt_token_ids=prompt_token_ids,
                    parameters=parameters,
                    stop_token_ids=ends.union(parameters.stop_token_ids),
                    arrival=self._num_submitted + number,
                    submitted_at=self._clock(),
                    text=TextStream(self._detokenize, parameters.stop) if needs_text else None,
                )
                for number, sample_index in enumerate(dict.fromkeys(request.sample_indices))
            ],
        )

    def score(self, request: Rate) -> None:
        """Queue a scoring; its answer is an event."""
        self._require_new(request.request_id)
        targets = request.completion_token_ids
        if not targets:
            raise InvalidRequest("completion_token_ids", "is empty; give at least one token to score")
        self._require_ids(targets, "completion_token_ids")
        prompt_token_ids = self._prompt_token_ids(request)
        self._require_room(len(prompt_token_ids), len(targets), "completion_token_ids")
        sequence = Sequence(
            request_id=request.request_id,
            sample_index=0,
            prompt_token_ids=prompt_token_ids,
            parameters=SamplingParameters(),
            stop_token_ids=frozenset(),
            arrival=self._num_submitted,
            submitted_at=self._clock(),
            targets=targets,
        )
        self._queue(request, [sequence])

    def cancel(self, request_id: str) -> None:
        """End what is left of a request; unknown and finished ones are left alone."""
        self._end(request_id, "cancelled")

    def events(self) -> list[Event]:
        """Do one step and return what happened; empty when there was nothing to do."""
        self._expire()
        if self._open:
            self._step()
        outbox, self._outbox = self._outbox, []
        return outbox

    def generate(
        self, requests: Iterable[SampleRequest], known_keys: Collection[str] = frozenset()
    ) -> Iterator[SampleRecord]:
        """Samples of many requests as they finish, in any order, but for those whose key is known.

        Nothing else uses the engine meanwhile.
        """
        coming = enumerate(requests)
        is_drained = False
        while not is_drained or self.has_work:
            while not is_drained and self._scheduler.num_waiting < self.config.max_running:
                number, request = next(coming, (0, None))
                if request is None:
                    is_drained = True
                    continue
                indices = tuple(i for i, key in enumerate(self.keys(request)) if key not in known_keys)
                if indices:
                    self.submit(Generate(f"generate-{number}", request.prompt, request.parameters, indices))
            yield from (event.record for event in self.events() if isinstance(event, SampleFinished))

    def keys(self, request: SampleRequest) -> tuple[str, ...]:
        """The keys of the request's samples, in order of their index, whether they are made yet or not."""
        prompt_token_ids = self.encode(request.prompt)
        fingerprint = self.networks.tokenizer.fingerprint
        return tuple(
            sample_key(self.identities, fingerprint, prompt_token_ids, request.parameters, index)
            for index in range(request.num_samples)
        )

    def stats(self) -> EngineStats:
        """Where the engine stands."""
        return EngineStats(
            num_running=len(self._scheduler.running),
            num_waiting=self._scheduler.num_waiting,
            num_blocks=self._pool.num_blocks,
            num_blocks_free=self._pool.num_free,
            num_prefix_hits=self._pool.num_hits,
            num_preemptions=self._scheduler.num_preemptions,
            num_steps=self._counts["steps"],
            num_prompt_tokens=self._counts["computed"] - self._counts["drawn"],
            num_drawn_tokens=self._counts["drawn"],
            num_finished=self._counts["finished"],
            bytes_moved=self._counts["bytes"],
            num_operations=self._counts["operations"],
            seconds=dict(self._seconds),
        )

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """Token ids of a prompt in any of its forms."""
        if prompt.token_ids:
            self._require_ids(prompt.token_ids, "prompt.token_ids")
            return prompt.token_ids
        tokenizer = self.networks.tokenizer
        if prompt.messages:
            return tuple(render_chat(tokenizer, prompt.messages))
        ids = tuple(encode_prompt(tokenizer, prompt.text or ""))
        if not ids:
            raise InvalidRequest("prompt.text", "has no tokens, and the tokenizer puts none in front; give some text")
        return ids

    def _prompt_token_ids(self, request: Generate | Rate) -> tuple[int, ...]:
        if not request.prompt_token_ids:
            return self.encode(request.prompt)
        self._require_ids(request.prompt_token_ids, "prompt_token_ids")
        return request.prompt_token_ids

    def _step(self) -> None:
        with self._phase("schedule"):
            chunks = self._scheduler.schedule()
        drawing = [chunk.sequence for chunk in chunks if chunk.draws]
        with self._phase("forward"):
            logits = self._runner.forward(chunks, self.config.block_size)
        with self._phase("mix"):
            tokens = self._drawer.draw(drawing, logits.drawing)
            scores = self._drawer.score(chunks, logits.scored)
        with self._phase("commit"):
            self._scheduler.commit(chunks)
            self._take_tokens(drawing, tokens)
            self._take_scores(chunks, scores)
            self._scheduler.retire()
            self._count(chunks, len(tokens))

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._seconds[name] += time.perf_counter() - started

    def _take_tokens(self, drawing: list[Sequence], tokens: list[TokenRecord]) -> None:
        now = self._clock()
        for sequence, token in zip(drawing, tokens, strict=True):
            if sequence.first_token_at is None:
                sequence.first_token_at = now
            piece = sequence.append(token)
            if sequence.text is not None:
                request = self._open[sequence.request_id].request
                if isinstance(request, Generate) and request.streams:
                    self._outbox.append(TokenDrawn(sequence.request_id, sequence.sample_index, piece, token))
            if sequence.is_finished:
                self._finish(sequence, now)

    def _take_scores(self, chunks: list[Chunk], scores: list[list[TokenRecord]]) -> None:
        scored = [chunk for chunk in chunks if chunk.sequence.targets]
        for chunk, records in zip(scored, scores, strict=True):
            chunk.sequence.records += records
            if chunk.sequence.num_pending == 0:
                chunk.sequence.finish_reason = "stop"
                self._finish(chunk.sequence, self._clock())

    def _finish(self, sequence: Sequence, now: float) -> None:
        """Report a finished sequence; the scheduler lets it go at the end of the step."""
        opened = self._open[sequence.request_id]
        del opened.unfinished[sequence.sample_index]
        if not opened.unfinished:
            del self._open[sequence.request_id]
        self._counts["finished"] += 1
        if isinstance(opened.request, Rate):
            self._outbox.append(Rated(sequence.request_id, score_of(sequence, opened.request, self.networks)))
            return
        record = record_of(sequence, opened.request.prompt, self.networks, self._software, self._writer, now)
        self._outbox.append(SampleFinished(sequence.request_id, sequence.sample_index, record))

    def _end(self, request_id: str, reason: FinishReason) -> None:
        opened = self._open.get(request_id)
        if opened is None:
            return
        for sequence in [*opened.unfinished.values()]:
            sequence.finish_reason = reason
            self._finish(sequence, self._clock())
        self._scheduler.retire()

    def _expire(self) -> None:
        while self._deadlines and self._deadlines[0][0] <= self._clock():
            _, request_id = heapq.heappop(self._deadlines)
            self._end(request_id, "deadline")

    def _queue(self, request: Generate | Rate, sequences: list[Sequence]) -> None:
        self._num_submitted += len(sequences)
        self._open[request.request_id] = _Open(request, {s.sample_index: s for s in sequences})
        for sequence in sequences:
            self._scheduler.submit(sequence)
        if request.deadline_s is not None:
            heapq.heappush(self._deadlines, (self._clock() + request.deadline_s, request.request_id))

    def _count(self, chunks: list[Chunk], num_drawn: int) -> None:
        num_computed = sum(chunk.count for chunk in chunks)
        self._counts["steps"] += 1
        self._counts["computed"] += num_computed
        self._counts["drawn"] += num_drawn
        self._counts["bytes"] += self._cost.num_bytes(sum(chunk.start + chunk.count for chunk in chunks))
        self._counts["operations"] += self._cost.num_operations(num_computed)

    def _detokenize(self, token_ids: Iterable[int]) -> str:
        return detokenize(self.networks.tokenizer, tuple(token_ids))

    def _require_new(self, request_id: str) -> None:
        if request_id in self._open:
            raise InvalidRequest("request_id", f"{request_id!r} is in use; give every unfinished request its own")

    def _require_usable(self, parameters: SamplingParameters) -> None:
        num_networks = len(self.identities)
        if len(parameters.weights) != num_networks:
            roles = ", ".join(identity.role for identity in self.identities)
            raise InvalidRequest(
                "weights",
                f"has {len(parameters.weights)} entries, and this engine holds {num_networks} network(s) ({roles}); "
                "give one weight for each",
            )
        self._require_ids(parameters.exempt_token_ids, "exempt_token_ids")
        self._require_ids(parameters.stop_token_ids, "stop_token_ids")

    def _require_ids(self, token_ids: Iterable[int], name: str) -> None:
        vocab_size = self.networks.shared_vocab_size
        wrong = next((token_id for token_id in token_ids if not 0 <= token_id < vocab_size), None)
        if wrong is not None:
            raise InvalidRequest(name, f"holds {wrong}, and the tokenizer has ids 0 to {vocab_size - 1}")

    def _require_room(self, num_prompt: int, num_more: int, name: str) -> None:
        if num_prompt + num_more > self.max_tokens:
            raise PromptTooLong(
                f"the prompt has {num_prompt} tokens and {name} asks for {num_more} more; together they may be "
                f"{self.max_tokens} (the networks' context and the memory for keys and values); shorten one of them"
            )
