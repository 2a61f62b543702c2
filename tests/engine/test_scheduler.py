"""Scheduling and block accounting without a model, under random arrivals, lengths, ends and memory."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cong.engine.blocks import BlockPool, prefix_keys
from cong.engine.protocol import TokenRecord
from cong.engine.scheduler import Chunk, Limits, Scheduler
from cong.engine.sequence import Sequence
from cong.schemas import SamplingParameters


def sequence(number: int, prompt: tuple[int, ...], max_tokens: int, targets: tuple[int, ...] = ()) -> Sequence:
    parameters = SamplingParameters(max_tokens=max_tokens)
    return Sequence(f"r{number}", 0, prompt, parameters, frozenset(), arrival=number, targets=targets)


class Machine:
    """A scheduler and a stand-in for the networks: it remembers which token every place holds."""

    def __init__(self, num_blocks: int, block_size: int, limits: Limits, *, looks_ahead: bool = False) -> None:
        self.looks_ahead = looks_ahead
        self.ahead: list[Chunk] = []
        self.pool = BlockPool(num_blocks, block_size)
        self.scheduler = Scheduler(self.pool, limits)
        self.limits = limits
        self.places: dict[int, tuple[int, ...]] = {}
        """Place -> the tokens up to and including the one whose keys and values lie there."""

    def write(self, chunks: list[Chunk]) -> None:
        size = self.pool.block_size
        for chunk in chunks:
            tokens = chunk.sequence.token_ids
            for position in range(chunk.start, chunk.start + chunk.count):
                place = chunk.sequence.blocks[position // size] * size + position % size
                self.places[place] = tuple(tokens[: position + 1])

    def expect_context(self, chunks: list[Chunk]) -> None:
        """Every token of a step finds its whole past, right and in order, wherever it was computed."""
        size = self.pool.block_size
        for chunk in chunks:
            for position in range(chunk.start + chunk.count):
                place = chunk.sequence.blocks[position // size] * size + position % size
                assert self.places[place] == tuple(chunk.sequence.token_ids[: position + 1])

    def expect_lawful(self, chunks: list[Chunk]) -> None:
        assert sum(chunk.count for chunk in chunks) <= self.limits.max_step_tokens
        assert len({id(chunk.sequence) for chunk in chunks}) == len(chunks)
        assert len(self.scheduler.running) <= self.limits.max_running
        counts = [chunk.count for chunk in chunks]
        assert counts == sorted(counts, key=lambda count: count != 1), "chunks of one token come first"
        self.pool.check([s.blocks for s in self.scheduler.running])
        written = [
            (chunk.sequence.blocks[position // self.pool.block_size], position)
            for chunk in chunks
            for position in range(chunk.start, chunk.start + chunk.count)
        ]
        assert len(set(written)) == len(written), "two sequences write the same place"
        size = self.pool.block_size
        read = {(c.sequence.blocks[position // size], position) for c in chunks for position in range(c.start)}
        kept_alone = {(c.sequence.blocks[c.start // size], c.start) for c in chunks if c.count == 1}
        assert not read & kept_alone, "a chunk of one token keeps its key while others attend"

    def look_ahead(self, chunks: list[Chunk]) -> list[Chunk]:
        """The next step, whose tokens nobody knows yet: what it writes for those who end is of no use to anybody."""
        ahead = self.scheduler.look_ahead(chunks)
        for chunk in ahead:
            number, offset = divmod(chunk.start, self.pool.block_size)
            self.places[chunk.sequence.blocks[number] * self.pool.block_size + offset] = ()
        return ahead

    def step(self) -> list[Chunk]:
        chunks = [chunk for chunk in self.ahead if not chunk.sequence.is_finished] or self.scheduler.schedule()
        self.expect_lawful(chunks)
        self.write(chunks)
        self.expect_context(chunks)
        self.ahead = self.look_ahead(chunks) if self.looks_ahead else []
        self.scheduler.commit(chunks)
        for chunk in chunks:
            one = chunk.sequence
            if chunk.draws:
                one.append(TokenRecord(hash((one.request_id, one.num_drawn)) % 50, ()))
            elif one.targets and one.num_pending == 0:
                one.finish_reason = "stop"
        self.scheduler.retire()
        self.pool.check([s.blocks for s in self.scheduler.running])
        return chunks


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 2**32 - 1))
def test_everything_finishes_and_nothing_is_lost(seed: int) -> None:
    generator = random.Random(seed)
    block_size = generator.choice([1, 2, 4, 16])
    longest = generator.randint(2, 60)
    num_blocks = -(-longest // block_size) + generator.choice([0, 0, 1, 3, 50])
    max_running = generator.randint(1, 8)
    limits = Limits(generator.randint(max_running, 40), max_running)
    machine = Machine(num_blocks, block_size, limits, looks_ahead=generator.random() < 0.5)
    opening = tuple(generator.randrange(9) for _ in range(longest // 2))
    coming = []
    for number in range(generator.randint(1, 25)):
        prompt = tuple(generator.randrange(9) for _ in range(generator.randint(1, longest - 1)))
        if generator.random() < 0.5:
            prompt = (opening + prompt)[: max(1, generator.randint(1, longest - 1))]
        room = longest - len(prompt)
        is_scored = generator.random() < 0.2
        targets = tuple(generator.randrange(9) for _ in range(generator.randint(1, room))) if is_scored else ()
        coming.append(sequence(number, prompt, generator.randint(1, room), targets))
    everyone = list(coming)
    for _ in range(20_000):
        while coming and generator.random() < 0.5:
            machine.scheduler.submit(coming.pop(0))
        if generator.random() < 0.05:
            victim = generator.choice(everyone)
            if not victim.is_finished and victim not in coming:
                victim.finish_reason = "cancelled"
                machine.scheduler.retire()
        if not coming and not machine.scheduler.has_work:
            break
        machine.step()
    assert all(one.is_finished for one in everyone), "somebody starved"
    for one in everyone:
        if one.finish_reason == "length":
            assert one.num_drawn == one.parameters.max_tokens
    assert machine.pool.num_used == 0
    machine.pool.check([])


def test_decoding_goes_on_while_a_long_prompt_comes_in_pieces() -> None:
    machine = Machine(200, 4, Limits(max_step_tokens=16, max_running=4))
    machine.scheduler.submit(sequence(0, (1, 2, 3), max_tokens=30))
    machine.step()
    machine.scheduler.submit(sequence(1, tuple(range(100)), max_tokens=1))
    pieces = []
    for _ in range(7):
        chunks = machine.step()
        assert chunks[0].sequence.request_id == "r0"
        assert chunks[0].draws
        pieces += [chunk.count for chunk in chunks[1:]]
    assert pieces == [15, 15, 15, 15, 15, 15, 10]


def test_samples_of_one_prompt_share_its_full_blocks_in_the_very_same_step() -> None:
    machine = Machine(100, 4, Limits(max_step_tokens=64, max_running=8))
    prompt = tuple(range(14))
    for number in range(5):
        machine.scheduler.submit(sequence(number, prompt, max_tokens=3))
    chunks = machine.step()
    assert sorted(chunk.count for chunk in chunks) == [2, 2, 2, 2, 14]
    assert machine.pool.num_hits == 4 * 3
    assert machine.pool.num_used == 3 + 5


def test_what_a_chunk_of_one_token_fills_is_shared_from_the_next_step_on() -> None:
    machine = Machine(200, 4, Limits(max_step_tokens=32, max_running=4))
    prompt = tuple(range(32))
    machine.scheduler.submit(sequence(0, (1, 2, 3), max_tokens=30))
    machine.step()
    machine.scheduler.submit(sequence(1, prompt, max_tokens=4))
    assert [chunk.count for chunk in machine.step()] == [1, 31]
    machine.scheduler.submit(sequence(2, (*prompt, 7), max_tokens=4))
    assert [(c.sequence.request_id, c.start) for c in machine.step()] == [("r0", 4), ("r1", 31), ("r2", 28)]
    machine.scheduler.submit(sequence(3, (*prompt, 8), max_tokens=4))
    assert [(c.sequence.request_id, c.start) for c in machine.step()][2:] == [("r2", 33), ("r3", 32)]


def test_a_prompt_that_somebody_is_computing_is_waited_for_and_others_pass() -> None:
    machine = Machine(100, 4, Limits(max_step_tokens=20, max_running=8))
    prompt = tuple(range(30))
    machine.scheduler.submit(sequence(0, prompt, max_tokens=2))
    machine.scheduler.submit(sequence(1, prompt, max_tokens=2))
    machine.scheduler.submit(sequence(2, (7, 7, 7), max_tokens=2))
    assert [(c.sequence.request_id, c.count) for c in machine.step()] == [("r0", 20)]
    counts = {c.sequence.request_id: c.count for c in machine.step()}
    assert counts == {"r0": 10, "r1": 2, "r2": 3}


def test_a_prefix_outlives_its_sequence_until_its_blocks_are_needed() -> None:
    machine = Machine(6, 4, Limits(max_step_tokens=64, max_running=2))
    prompt = tuple(range(9))
    for number, expected in ((0, 9), (1, 1)):
        machine.scheduler.submit(sequence(number, prompt, max_tokens=1))
        assert [chunk.count for chunk in machine.step()] == [expected]
    machine.scheduler.submit(sequence(2, tuple(range(50, 74)), max_tokens=1))
    machine.step()
    machine.scheduler.submit(sequence(3, prompt, max_tokens=1))
    assert [chunk.count for chunk in machine.step()] == [9]


def test_the_youngest_gives_way_and_returns() -> None:
    machine = Machine(4, 4, Limits(max_step_tokens=32, max_running=4))
    for number in range(2):
        machine.scheduler.submit(sequence(number, (number,) * 7, max_tokens=9))
    order = []
    while machine.scheduler.has_work:
        before = {s.request_id for s in machine.scheduler.running}
        machine.step()
        order += sorted(before - {s.request_id for s in machine.scheduler.running})
    assert machine.scheduler.num_preemptions >= 1
    assert order.index("r1") < order.index("r0"), "the younger one left first"
    assert machine.pool.num_used == 0


def test_a_long_queue_is_not_walked_in_every_step() -> None:
    machine = Machine(40, 4, Limits(max_step_tokens=32, max_running=4))
    for number in range(5_000):
        machine.scheduler.submit(sequence(number, (1, 2, 3, 4, 5, 6, 7, 8, 9), max_tokens=3))

    looked_at = 0
    match = machine.pool.match

    def counting(keys: list[bytes]) -> list[int]:
        nonlocal looked_at
        looked_at += 1
        return match(keys)

    machine.pool.match = counting  # type: ignore[method-assign, assignment]
    for _ in range(10):
        machine.scheduler.schedule()
    assert looked_at <= 10 * 10


def test_the_next_step_is_told_ahead_unless_somebody_may_join_or_blocks_run_out() -> None:
    machine = Machine(7, 4, Limits(max_step_tokens=32, max_running=2), looks_ahead=True)
    machine.scheduler.submit(sequence(0, (1, 2, 3), max_tokens=12))
    machine.step()
    assert [(chunk.start, chunk.count) for chunk in machine.ahead] == [(3, 1)]
    machine.scheduler.submit(sequence(1, (7, 8, 9), max_tokens=4))
    machine.step()
    assert machine.ahead == [], "a seat is free, and somebody waits"
    machine.scheduler.submit(sequence(2, (5,) * 20, max_tokens=1))
    machine.step()
    machine.step()
    assert [chunk.sequence.request_id for chunk in machine.ahead] == ["r0", "r1"], "nobody who waits finds a seat"
    machine.step()
    machine.step()
    assert machine.ahead == [], "r1 draws its last token, and its seat is free then"
    while machine.scheduler.has_work:
        machine.step()
    full = Machine(1, 4, Limits(max_step_tokens=32, max_running=2), looks_ahead=True)
    full.scheduler.submit(sequence(3, (1, 2, 3), max_tokens=1))
    full.step()
    assert full.ahead == [], "the last token is drawn"


@pytest.mark.parametrize("size", [1, 3, 4])
def test_prefix_keys_name_full_blocks_and_everything_before_them(size: int) -> None:
    tokens = [5, 6, 7, 8, 5, 6, 7, 8, 9]
    keys = prefix_keys(tokens, size)
    assert len(keys) == len(tokens) // size
    assert len(set(keys)) == len(keys)
    assert prefix_keys(tokens[: size * 2], size) == keys[:2]
    assert prefix_keys([0, *tokens[1:]], size)[-1] != keys[-1]


def test_tokens_whose_python_hashes_are_equal_have_different_prefix_keys() -> None:
    """The modulus of Python's hash of whole numbers is 2^61 - 1, so who chooses tokens can choose equal hashes."""
    zeros, others = (0,) * 32, (2**61 - 1,) * 32
    assert hash(zeros) == hash(others)
    assert not set(prefix_keys(zeros, 16)) & set(prefix_keys(others, 16))
