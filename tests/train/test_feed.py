"""Which examples make a step, what of them fits, and who computes which: the same for every number of ranks."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cong.config.train import BatchSettings
from cong.errors import CheckpointError, ConfigError
from cong.train.data.batch import Example, make_batch
from cong.train.data.feed import Feed, fit, plan_passes
from cong.train.data.source import Drawn, ExampleList
from cong.train.validation import is_held_out


def example(number: int, prompt: int = 3, response: int = 4) -> Example:
    rng = np.random.default_rng(number)
    ids = rng.integers(1, 30, prompt + response).astype(np.int32)
    logprobs = rng.normal(size=response).astype(np.float32)
    return Example(f"k{number}", f"p{number}", ids[:prompt], (ids[prompt:],), {"base": (logprobs,)})


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(1, 300), max_size=40), st.integers(1, 6), st.integers(50, 400))
def test_every_example_is_computed_once_in_equally_many_passes(
    num_tokens: list[int], world_size: int, max_tokens: int
) -> None:
    plans = plan_passes(num_tokens, world_size, max_tokens)
    assert len(plans) == world_size
    assert len({len(passes) for passes in plans}) == 1
    places = sorted(place for passes in plans for part in passes for place in part)
    assert places == list(range(len(num_tokens)))
    for passes in plans:
        for part in passes:
            assert len(part) <= 1 or sum(num_tokens[place] for place in part) <= max_tokens
    loads = [sum(num_tokens[place] for part in passes for place in part) for passes in plans]
    # Greedy by length: no rank is ahead of another by more than one example.
    assert max(loads) - min(loads) <= max(num_tokens, default=0)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_ranks_together_hold_the_step(world_size: int) -> None:
    examples = [example(number, 3, 2 + number % 11) for number in range(30)]
    batches = BatchSettings(batch_size=8, max_tokens_per_micro_batch=30)
    feeds = [
        Feed(
            ExampleList(examples, seed=3),
            batches,
            unit="tokens",
            rank=rank,
            world_size=world_size,
            frozen_names=("base",),
        )
        for rank in range(world_size)
    ]
    alone = Feed(ExampleList(examples, seed=3), batches, unit="tokens", frozen_names=("base",))
    while (whole := alone.next()) is not None:
        shares = [feed.next() for feed in feeds]
        tokens: Counter[tuple[int, float]] = Counter()
        for share in shares:
            assert share is not None
            assert (share.keys, share.num_units, share.position) == (whole.keys, whole.num_units, whole.position)
            for batch in share.micro_batches:
                ids, scores = batch.responses.token_ids_N.tolist(), batch.responses.frozen["base"].tolist()
                tokens.update(zip(ids, scores, strict=True))
        wanted: Counter[tuple[int, float]] = Counter()
        for batch in whole.micro_batches:
            wanted.update(
                zip(batch.responses.token_ids_N.tolist(), batch.responses.frozen["base"].tolist(), strict=True)
            )
        assert tokens == wanted
        assert sum(tokens.values()) == whole.num_units
    assert all(feed.next() is None for feed in feeds)


def test_an_order_is_a_function_of_seed_epoch_and_place() -> None:
    examples = [example(number) for number in range(11)]
    source = ExampleList(examples, num_epochs=2, seed=5)
    drawn = []
    positions = [source.position]
    while (draw := source.draw(4)) is not None:
        drawn.append([each.key for each in source.fetch(draw)])
        positions.append(source.position)
        assert Drawn.from_json(draw.to_json()) == draw
    assert [len(keys) for keys in drawn] == [4, 4, 3, 4, 4, 3]
    first, second = ([key for keys in drawn[start : start + 3] for key in keys] for start in (0, 3))
    assert sorted(first) == sorted(second) == sorted(each.key for each in examples)
    assert first != second
    for number, position in enumerate(positions[:-1]):
        resumed = ExampleList(examples, num_epochs=2, seed=5)
        resumed.seek(position)
        again = resumed.draw(4)
        assert again is not None
        assert [each.key for each in resumed.fetch(again)] == drawn[number]
    with pytest.raises(CheckpointError, match="no position"):
        source.seek(json.dumps({"epoch": 1}))


def test_another_content_has_another_identity() -> None:
    examples = [example(number) for number in range(3)]
    changed = replace(examples[1], responses=(np.array([1], dtype=np.int32),))
    identities = [
        ExampleList(examples).identity,
        ExampleList([examples[0], changed, examples[2]]).identity,
        ExampleList(examples[:2]).identity,
        ExampleList(examples, seed=1).identity,
    ]
    assert len({json.dumps(identity) for identity in identities}) == 4
    assert ExampleList(list(examples)).identity == identities[0]


def test_too_long_examples_are_dropped_cut_or_refused_and_counted() -> None:
    examples = [example(0, 3, 4), example(1, 3, 9), example(2, 12, 1), example(3, 3, 7), example(4, 3, 0)]
    drop = BatchSettings(batch_size=5, max_example_tokens=10)
    feed = Feed(ExampleList(examples), drop, unit="tokens", frozen_names=("base",))
    step = feed.next()
    assert step is not None
    assert step.keys == ("k0", "k3")
    assert feed.counts == {"dropped_too_long": 2, "dropped_empty": 1}

    cut = Feed(
        ExampleList(examples), drop.model_copy(update={"too_long": "truncate"}), unit="tokens", frozen_names=("base",)
    )
    step = cut.next()
    assert step is not None
    assert step.keys == ("k0", "k1", "k3")
    assert cut.counts == {"truncated": 1, "dropped_too_long": 1, "dropped_empty": 1}
    assert step.num_units == 4 + 7 + 7
    shortened, _ = fit(examples[1], drop.model_copy(update={"too_long": "truncate"}))
    assert shortened is not None
    assert shortened.responses[0].tolist() == examples[1].responses[0][:7].tolist()
    assert shortened.frozen["base"][0].tolist() == examples[1].frozen["base"][0][:7].tolist()

    refuse = Feed(ExampleList(examples), drop.model_copy(update={"too_long": "refuse"}), unit="tokens")
    with pytest.raises(ConfigError, match=r"k1 has 12 tokens, more than train\.batches\.max_example_tokens, 10"):
        refuse.next()


def test_a_pair_that_is_cut_to_equal_sides_says_nothing() -> None:
    settings = BatchSettings(max_example_tokens=10, too_long="truncate")
    base = example(0, 3, 9)
    ends = (np.append(base.responses[0], np.int32(each)) for each in (1, 2))
    pair = Example("k", "p", base.prompt_ids, tuple(ends))
    assert fit(pair, settings) == (None, "dropped_cut_to_equal")
    assert fit(pair, settings.model_copy(update={"max_example_tokens": 13}))[0] is pair


def test_a_step_of_which_nothing_is_left_has_no_units() -> None:
    feed = Feed(ExampleList([example(0, 3, 0)]), BatchSettings(batch_size=1), unit="tokens")
    step = feed.next()
    assert step is not None
    assert (step.num_units, step.keys, len(step.micro_batches)) == (0, (), 1)


def test_held_out_prompts_are_the_same_everywhere_and_never_trained_on() -> None:
    share = sum(is_held_out(f"p-{number}", 0.1) for number in range(10_000)) / 10_000
    assert share == pytest.approx(0.1, abs=0.01)
    smaller = {number for number in range(2_000) if is_held_out(f"p-{number}", 0.05)}
    assert smaller <= {number for number in range(2_000) if is_held_out(f"p-{number}", 0.1)}
    examples = [example(number) for number in range(40)]
    feed = Feed(
        ExampleList(examples),
        BatchSettings(batch_size=40),
        unit="tokens",
        is_held_out=lambda each: is_held_out(each, 0.3),
    )
    step = feed.next()
    assert step is not None
    kept = {f"k{number}" for number in range(40) if not is_held_out(f"p{number}", 0.3)}
    assert set(step.keys) == kept
    assert feed.counts == {"held_out": 40 - len(kept)}


def test_packed_and_padded_batches_name_the_same_tokens() -> None:
    examples = [example(number, 2 + number % 3, 1 + number % 5) for number in range(9)]
    packed, padded = (make_batch(examples, ("base",), is_packed=is_packed) for is_packed in (True, False))
    assert packed.origins == padded.origins
    assert packed.responses.lengths == padded.responses.lengths
    assert torch.equal(packed.responses.token_ids_N, padded.responses.token_ids_N)
    assert torch.equal(packed.responses.frozen["base"], padded.responses.frozen["base"])
    assert packed.token_ids_BT.shape == (1, packed.num_tokens)
    for batch in (packed, padded):
        flat = batch.token_ids_BT.flatten()
        # The row that predicts a token is the place before it.
        assert torch.equal(flat[batch.responses.positions_N + 1], batch.responses.token_ids_N)
        places = batch.position_ids_BT.flatten()[batch.responses.positions_N]
        wanted = [
            len(examples[number].prompt_ids) - 1 + step
            for number, side in batch.origins
            for step in range(len(examples[number].responses[side]))
        ]
        assert places.tolist() == wanted
