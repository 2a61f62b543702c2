"""The engine: schedule, forward, draw, commit. Synchronous and single-threaded; knows no HTTP and no Ray."""

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager

import torch

from cong import __version__
from cong.config.engine import EngineConfig
from cong.engine.blocks import BlockPool
from cong.engine.ceiling import measure_ceiling
from cong.engine.cpu.waiting import Waiting
from cong.engine.desk import Desk
from cong.engine.drawing import Drawer, Drawn
from cong.engine.gpu.captured import StepLimits
from cong.engine.memory import StepCost, plan_blocks
from cong.engine.offline import generate
from cong.engine.pool import NO_BLOCK
from cong.engine.protocol import EngineStats, Event, Generate, Rate, TokenRecord
from cong.engine.runner import Logits, Runner
from cong.engine.scheduler import Chunk, Limits, Scheduler
from cong.engine.sequence import Sequence
from cong.engine.transfer import select_rows
from cong.models import NetworkSet
from cong.schemas import NetworkIdentity, Prompt, SampleRecord, SampleRequest, SamplingParameters


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
        is_on_gpu = networks.networks[0].device.type == "cuda"
        self._runner = Runner(
            networks.networks,
            stacks_networks=config.stacks_networks,
            kernel=config.kernel,
            compiles_layers=is_on_gpu and config.compiles_layers,
            joins_products=is_on_gpu and config.joins_products,
        )
        num_blocks = plan_blocks(self._runner, networks, config)
        longest = min(networks.context_length or num_blocks * config.block_size, num_blocks * config.block_size)
        limits = Limits(max(config.max_step_tokens, config.max_running), config.max_running)
        captured = StepLimits(limits.max_running, limits.max_step_tokens, -(-longest // config.block_size))
        self._runner.prepare(
            num_blocks,
            config.block_size,
            captured if config.captures_graphs else None,
        )
        self._pool = BlockPool(num_blocks, config.block_size, self._runner.cached_share)
        self._scheduler = Scheduler(self._pool, limits)
        self._drawer = Drawer(
            networks.shared_vocab_size,
            self._runner.device,
            finds_heads=self._runner.has_tiles,
            has_kernel=self._runner.has_kernel,
        )
        self._cost = StepCost(networks, self._runner)
        software = {"cong": __version__, "torch": torch.__version__, "engine": "cong"}
        self._desk = Desk(networks, self.max_tokens, software, self._writer, clock)
        self._ceiling = measure_ceiling(self._runner.device, self._runner.dtype)
        self._waiting = Waiting() if not is_on_gpu and torch.get_num_threads() > 1 else None
        self._looks_ahead = is_on_gpu and config.looks_ahead
        self._ahead: tuple[list[Chunk], Logits] | None = None
        """A step that is computed before the tokens of the one before it are known here."""
        self._bound_s = 0.0
        self._counts: Counter[str] = Counter()
        self._seconds = dict.fromkeys(("schedule", "forward", "mix", "commit"), 0.0)
        if self._runner.has_tiles:
            self._warm_up()

    @property
    def identities(self) -> tuple[NetworkIdentity, ...]:
        """The networks, in the order of a mixture's weights."""
        return self.networks.identities

    @property
    def has_work(self) -> bool:
        """Whether another step would do anything."""
        return self._desk.has_open or self._desk.has_news

    @property
    def max_tokens(self) -> int:
        """Prompt and completion tokens of the longest sequence that can be served."""
        room = self._pool.num_blocks * self._pool.block_size
        return min(room, self.networks.context_length or room)

    @property
    def max_running(self) -> int:
        """Sequences that are computed in one step."""
        return self.config.max_running

    def submit(self, request: Generate) -> None:
        """Queue samples; refuses what can never be served."""
        self._scheduler.submit(*self._desk.open_samples(request))

    def score(self, request: Rate) -> None:
        """Queue a scoring; its answer is an event."""
        self._scheduler.submit(self._desk.open_score(request))

    def cancel(self, request_id: str) -> None:
        """End what is left of a request; unknown and finished ones are left alone."""
        if self._desk.end(request_id, "cancelled"):
            self._scheduler.retire()

    def events(self) -> list[Event]:
        """Do one step and return what happened; empty when there was nothing to do."""
        if self._desk.expire():
            self._scheduler.retire()
        if self._desk.has_open:
            try:
                self._step()
            except BaseException:  # a Ctrl-C, or memory that ran out; whoever asked may go on
                self._start_over()
                raise
            if self._waiting is not None:
                self._waiting.look()
        return self._desk.take_events()

    def generate(
        self, requests: Iterable[SampleRequest], known_keys: Collection[str] = frozenset()
    ) -> Iterator[SampleRecord]:
        """Samples of many requests as they finish, in any order, but for those whose key is known.

        Nothing else uses the engine meanwhile.
        """
        return generate(self, requests, known_keys)

    def keys(self, request: SampleRequest) -> tuple[str, ...]:
        """The keys of the request's samples, in order of their index, whether they are made yet or not."""
        return self._desk.keys(request)

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """Token ids of a prompt in any of its forms."""
        return self._desk.encode(prompt)

    def stats(self) -> EngineStats:
        """Where the engine stands."""
        return EngineStats(
            num_seats=self.max_running,
            num_running=len(self._scheduler.running),
            num_waiting=self._scheduler.num_waiting,
            num_blocks=self._pool.num_blocks,
            num_blocks_free=self._pool.num_free,
            num_prefix_hits=self._pool.num_hits,
            num_preemptions=self._scheduler.num_preemptions,
            num_steps=self._counts["steps"],
            num_prompt_tokens=self._counts["computed"] - self._counts["drawn"],
            num_drawn_tokens=self._counts["drawn"],
            num_finished=self._desk.num_finished,
            bytes_moved=self._counts["bytes"],
            num_operations=self._counts["operations"],
            bound_s=self._bound_s,
            seconds=dict(self._seconds),
        )

    def close(self) -> None:
        """Only threads of OpenMP work for this engine; one of them may be idle on purpose."""
        if self._waiting is not None:
            self._waiting.close()

    def _warm_up(self) -> None:
        """Compile what the first requests would wait for: a prompt of nobody's, kept nowhere, tokens, and their draws.

        Where a vocabulary is odd, networks' logits of one, of three and of many rows lie at addresses that Triton tells
        apart, and compiles kernels for.
        """
        parameters = SamplingParameters(weights=(1.0,) * len(self.identities))
        nobody = Sequence("", 0, (0, 0), parameters, frozenset(), 0, blocks=[NO_BLOCK] * 2)
        for start, count, times in ((0, 2, 1), (1, 1, 1), (1, 1, min(3, self.max_running))):
            logits = self._runner.forward([Chunk(nobody, start, count, draws=True)] * times)
            self._drawer.draw([nobody] * times, logits.drawing).numbers()

    def _step(self) -> None:
        chunks, logits = self._take_ahead() or self._compute()
        drawing = [chunk.sequence for chunk in chunks if chunk.draws]
        with self._phase("mix"):
            drawn = self._drawer.draw(drawing, logits.drawing)
            scores = self._drawer.score(chunks, logits.scored)
        self._ahead = self._compute_ahead(chunks, drawn)
        with self._phase("mix"):
            tokens = drawn.tokens()
            if tokens is None:
                tokens = self._draw_from_all(chunks, drawing, logits)
        with self._phase("commit"):
            self._scheduler.commit(chunks)
            self._take_tokens(drawing, tokens)
            self._take_scores(chunks, scores)
            self._scheduler.retire()
            self._count(chunks, len(tokens), sum(map(len, scores)))

    def _start_over(self) -> None:
        """Compute anew what runs: a step was broken off, and what it was to leave in blocks may not be there."""
        self._ahead = None
        self._drawer.forget()
        self._scheduler.start_over()

    def _compute(self) -> tuple[list[Chunk], Logits]:
        with self._phase("schedule"):
            chunks = self._scheduler.schedule()
            now = self._clock()
            for chunk in chunks:
                if chunk.sequence.admitted_at is None:
                    chunk.sequence.admitted_at = now
        with self._phase("forward"):
            return chunks, self._runner.forward(chunks)

    def _compute_ahead(self, chunks: list[Chunk], drawn: Drawn) -> tuple[list[Chunk], Logits] | None:
        """The step after this one, while its tokens are on their way; None where it cannot be told yet."""
        with self._phase("schedule"):
            ahead = self._scheduler.look_ahead(chunks) if self._looks_ahead else []
        if not ahead:
            return None
        with self._phase("forward"):
            rows = [row for row, chunk in enumerate(chunks) if not chunk.sequence.draws_last]
            return ahead, self._runner.forward(ahead, select_rows(drawn.token_B, rows))

    def _take_ahead(self) -> tuple[list[Chunk], Logits] | None:
        """What was computed ahead, for those who have not ended since."""
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            return None
        chunks, logits = ahead
        rows = [row for row, chunk in enumerate(chunks) if not chunk.sequence.is_finished]
        return ([chunks[row] for row in rows], logits.drawn_by(rows)) if rows else None

    def _draw_from_all(self, chunks: list[Chunk], drawing: list[Sequence], logits: Logits) -> list[TokenRecord]:
        """Where head sets were too large for the kernels."""
        if self._ahead is not None:  # computed with tokens that are none, and in the place of these logits
            self._ahead = None
            logits = self._runner.forward(chunks)
        tokens = self._drawer.draw_from_all(drawing, logits.drawing).tokens()
        assert tokens is not None, "the plain rule looks at every token"
        return tokens

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._seconds[name] += time.perf_counter() - started

    def _take_tokens(self, drawing: list[Sequence], tokens: list[TokenRecord]) -> None:
        now = self._clock()
        for sequence, token in zip(drawing, tokens, strict=True):
            self._desk.take_token(sequence, token, now)

    def _take_scores(self, chunks: list[Chunk], scores: list[list[TokenRecord]]) -> None:
        scored = [chunk for chunk in chunks if chunk.sequence.targets]
        for chunk, tokens in zip(scored, scores, strict=True):
            self._desk.take_scores(chunk.sequence, chunk.scored.start, tokens, self._clock())

    def _count(self, chunks: list[Chunk], num_drawn: int, num_scored: int) -> None:
        num_computed = sum(chunk.count for chunk in chunks)
        self._counts["steps"] += 1
        self._counts["computed"] += num_computed
        self._counts["drawn"] += num_drawn
        num_bytes = self._cost.num_bytes(num_computed, sum(chunk.start + chunk.count for chunk in chunks))
        num_operations = self._cost.num_operations(num_computed, num_drawn + num_scored)
        self._counts["bytes"] += num_bytes
        self._counts["operations"] += num_operations
        self._bound_s += self._ceiling.seconds(num_bytes, num_operations)
