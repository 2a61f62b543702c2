"""Who computes what in the next step, under a budget of tokens, sequences and blocks.

Sequences that draw come first, then those whose prompt is not through yet, then waiting ones in order of arrival: a
long prompt takes what is left and stalls nobody. When blocks run out the youngest running sequence gives up its own
and waits to be recomputed: nothing ever fails for lack of memory. Knows blocks and sequences; no tensors, no networks.
"""

from collections import deque
from collections.abc import Iterable
from collections.abc import Sequence as Ordered
from dataclasses import dataclass, field

from cong.engine.blocks import BlockPool, prefix_keys
from cong.engine.sequence import Sequence


@dataclass(frozen=True)
class Limits:
    """What one step may hold."""

    max_step_tokens: int
    """At least `max_running`, so that every running sequence can draw in every step."""
    max_running: int


@dataclass(frozen=True)
class Chunk:
    """Tokens `start` to `start + count` of a sequence are computed in this step."""

    sequence: Sequence
    start: int
    count: int
    draws: bool
    """Whether the chunk reaches the last token, so that the next one is drawn."""

    @property
    def scored(self) -> slice:
        """Which of the sequence's targets are scored by the logits of this chunk."""
        first = len(self.sequence.prompt_token_ids) - 1
        return slice(max(self.start - first, 0), max(self.start + self.count - first, 0))


@dataclass
class Scheduler:
    """The queue of waiting sequences and the set of running ones."""

    pool: BlockPool
    limits: Limits
    running: list[Sequence] = field(default_factory=list)
    """In order of arrival."""
    num_preemptions: int = 0
    _waiting: deque[Sequence] = field(default_factory=deque)
    """In order of arrival; finished ones are dropped when they reach the front."""

    @property
    def has_work(self) -> bool:
        """Whether any sequence waits or runs."""
        return bool(self._waiting or self.running)

    @property
    def num_waiting(self) -> int:
        """Sequences in the queue."""
        return len(self._waiting)

    def submit(self, first: Sequence, *others: Sequence) -> None:
        """Queue the sequences of one request; the caller has checked that each fits into an empty pool."""
        keys = prefix_keys(first.token_ids[: first.num_shareable_tokens], self.pool.block_size)
        for sequence in (first, *others):
            sequence.prefix_keys = keys
            self._waiting.append(sequence)

    def schedule(self) -> list[Chunk]:
        """The next step's chunks, at most one per sequence, chunks of one token first."""
        step = _Step(self.limits.max_step_tokens, self.limits.max_running)
        num_preemptions = self.num_preemptions
        for sequence in tuple(self.running):
            if sequence.num_pending == 1 and sequence.is_running:
                self._continue(sequence, step)
        for sequence in tuple(self.running):
            if sequence.num_pending > 1 and sequence.is_running:
                self._continue(sequence, step)
        if self.num_preemptions == num_preemptions:  # nobody joins in the room that somebody just had to leave
            self._admit(step)
        return sorted(step.chunks, key=lambda chunk: chunk.count != 1)

    def look_ahead(self, chunks: Ordered[Chunk]) -> list[Chunk]:
        """The step after this one before its tokens are known: whoever goes on computes the one that it draws now.

        Empty where more is to be decided: prompts are not through, somebody may join, or blocks have run out.
        """
        going = [chunk.sequence for chunk in chunks if not chunk.sequence.draws_last]
        if not all(chunk.draws for chunk in chunks) or len(chunks) < len(self.running):
            return []
        if self._waiting and len(going) < self.limits.max_running:
            return []
        missing = [self.pool.num_needed(sequence.num_tokens + 1) - len(sequence.blocks) for sequence in going]
        if sum(missing) > self.pool.num_free:
            return []
        for sequence, count in zip(going, missing, strict=True):
            if count:
                sequence.blocks += self.pool.allocate(count)
        return [Chunk(sequence, sequence.num_tokens, 1, draws=True) for sequence in going]

    def _continue(self, sequence: Sequence, step: "_Step") -> None:
        """Compute as much of a running sequence as budget and blocks allow."""
        count = step.grant(sequence)
        if count == 0:
            return
        missing = self.pool.num_needed(sequence.num_computed + count) - len(sequence.blocks)
        while missing > self.pool.num_free:
            victim = next((s for s in reversed(self.running) if id(s) not in step.members), None)
            if victim is None or victim is sequence:
                if victim is not None and count == 1:
                    self._preempt(sequence)
                return  # a prompt that finds no room is continued in a later step
            self._preempt(victim)
        if missing > 0:
            sequence.blocks += self.pool.allocate(missing)
        self._compute(sequence, count, step)

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._release(sequence)
        sequence.is_running = False
        sequence.num_computed = 0
        self.num_preemptions += 1
        self._waiting.appendleft(sequence)

    def _release(self, sequence: Sequence) -> None:
        self.pool.release(sequence.blocks)
        sequence.blocks = []

    def _compute(self, sequence: Sequence, count: int, step: "_Step") -> None:
        """Put a chunk into the step. What it fills of its prompt, others may share, in this very step if it is long."""
        start, stop = sequence.num_computed, sequence.num_computed + count
        chunk = Chunk(sequence, start, count, stop == sequence.num_tokens and not sequence.targets)
        if count > 1:
            self._publish(chunk)
        step.add(chunk)

    def _publish(self, chunk: Chunk) -> None:
        """Let others share the prompt blocks that a chunk fills."""
        sequence, size = chunk.sequence, self.pool.block_size
        filled = range(chunk.start // size, min((chunk.start + chunk.count) // size, len(sequence.prefix_keys)))
        for number in filled:
            self.pool.publish(sequence.blocks[number], sequence.prefix_keys[number])

    def _admit(self, step: "_Step") -> None:
        """Start waiting sequences in order, as far as budget, seats and blocks go."""
        size = self.pool.block_size
        in_progress = {s.prefix_keys[-1] for s in self.running if s.prefix_keys and s.num_pending > 1}
        in_progress -= {c.sequence.prefix_keys[-1] for c in step.chunks if c.sequence.prefix_keys and c.draws}
        held_back: list[Sequence] = []
        while self._waiting and len(self.running) < self.limits.max_running and len(held_back) < len(self.running) + 1:
            sequence = self._waiting[0]
            if sequence.is_finished:
                self._waiting.popleft()
                continue
            # At least the last token is computed, for its logits.
            shareable = sequence.prefix_keys[: (sequence.num_tokens - 1) // size]
            shared = self.pool.match(shareable)
            if len(shared) < len(shareable) and sequence.prefix_keys[-1] in in_progress:
                held_back.append(self._waiting.popleft())  # somebody computes this very prompt: wait and share it
                continue
            num_shared = len(shared) * size
            count = step.grant(sequence, sequence.num_tokens - num_shared)
            missing = self.pool.num_needed(num_shared + count) - len(shared)
            if count == 0 or missing > self.pool.num_free - self.pool.num_free_of(shared):
                break
            self._waiting.popleft()
            self.pool.acquire(shared)
            sequence.blocks = [*shared, *self.pool.allocate(missing)]
            sequence.num_computed = num_shared
            self._seat(sequence)
            self._compute(sequence, count, step)
            if sequence.prefix_keys and num_shared + count < sequence.num_shareable_tokens:
                in_progress.add(sequence.prefix_keys[-1])
        self._waiting.extendleft(reversed(held_back))

    def _seat(self, sequence: Sequence) -> None:
        """Put a sequence among the running ones, by arrival."""
        sequence.is_running = True
        place = len(self.running)
        while place and self.running[place - 1].arrival > sequence.arrival:
            place -= 1
        self.running.insert(place, sequence)

    def commit(self, chunks: Iterable[Chunk]) -> None:
        """Take note that chunks have been computed."""
        for chunk in chunks:
            chunk.sequence.num_computed = chunk.start + chunk.count
            if chunk.count == 1:  # which keeps its key while others already attend
                self._publish(chunk)

    def start_over(self) -> None:
        """Let all who run wait to be recomputed, and nobody share what they held: it may never have been computed."""
        for sequence in reversed(tuple(self.running)):
            self.pool.forget(sequence.blocks)
            self._preempt(sequence)

    def retire(self) -> None:
        """Let finished sequences go and free what they held."""
        if not any(sequence.is_finished for sequence in self.running):
            return
        for sequence in self.running:
            if sequence.is_finished:
                sequence.is_running = False
                if sequence.finish_reason == "error":  # its keys and values are no numbers
                    self.pool.forget(sequence.blocks)
                self._release(sequence)
        self.running = [sequence for sequence in self.running if sequence.is_running]


class _Step:
    """The chunks of a step while it is put together, and what may still be added."""

    def __init__(self, num_tokens: int, num_scored: int) -> None:
        self.chunks: list[Chunk] = []
        self.members: set[int] = set()
        self._tokens_left = num_tokens
        self._scored_left = num_scored
        """Every token of a scored text may need a row of logits, so a step takes few."""

    def grant(self, sequence: Sequence, wanted: int | None = None) -> int:
        """How many of its pending tokens a sequence may compute now."""
        count = min(sequence.num_pending if wanted is None else wanted, self._tokens_left)
        return min(count, self._scored_left) if sequence.targets else count

    def add(self, chunk: Chunk) -> None:
        """Take a chunk and what it costs."""
        self.chunks.append(chunk)
        self.members.add(id(chunk.sequence))
        self._tokens_left -= chunk.count
        if chunk.sequence.targets:
            self._scored_left -= chunk.count
