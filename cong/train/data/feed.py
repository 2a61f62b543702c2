"""From a source to optimiser steps: which examples, what of them fits, and who computes which in which pass.

Everything is a pure function of the source's position, the number of ranks and the rank. Every rank fetches the whole
step, so that each knows its units, its keys and how many passes all will make, without asking. Knows no network.
"""

import heapq
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cong.config.train import BatchSettings
from cong.errors import ConfigError, StreamInterrupted
from cong.objectives import FrozenNetwork, Unit
from cong.train.data.batch import Example, MicroBatch, make_batch
from cong.train.data.source import Drawn, Source

_INTERRUPTED = "interrupted"
"""What rank 0 says in place of a draw when it was asked to stop."""

Frozen = Callable[[Sequence[Example]], list[Example]]
"""Examples with the log-probs of frozen networks; called by all ranks with the same examples."""


@dataclass(frozen=True, eq=False)
class StepBatch:
    """One optimiser step as one rank sees it."""

    micro_batches: tuple[MicroBatch, ...]
    """Of this rank; every rank has as many."""
    num_units: int
    """Over all ranks and micro-batches; 0 = nothing of the step is left to train on."""
    num_tokens: int
    """Read by networks, over all ranks, prompts included."""
    num_response_tokens: int
    keys: tuple[str, ...]
    """Of all its examples, over all ranks."""
    position: str
    """Where the source stands behind it."""
    wait_s: float
    """How long it took to come."""


def fit(example: Example, settings: BatchSettings) -> tuple[Example | None, str]:
    """What of an example can be trained on, and the name under which the rest is counted."""
    if any(len(response) == 0 for response in example.responses):
        return None, "dropped_empty"
    if len(example.prompt_ids) == 0:
        return None, "dropped_without_prompt"
    if example.longest <= settings.max_example_tokens:
        return example, ""
    if settings.too_long == "refuse":
        raise ConfigError(
            f"example {example.key} has {example.longest} tokens, more than train.batches.max_example_tokens, "
            f"{settings.max_example_tokens}; raise it, or set train.batches.too_long to drop or truncate"
        )
    room = settings.max_example_tokens - len(example.prompt_ids)
    if settings.too_long == "drop" or room < 1:
        return None, "dropped_too_long"
    frozen = {name: tuple(values[:room] for values in sides) for name, sides in example.frozen.items()}
    cut = replace(example, responses=tuple(response[:room] for response in example.responses), frozen=frozen)
    if len(cut.responses) == 2 and np.array_equal(*cut.responses):
        return None, "dropped_cut_to_equal"
    return cut, "truncated"


def fitting_examples(
    examples: Sequence[Example],
    settings: BatchSettings,
    counts: dict[str, int],
    is_held_out: Callable[[str], bool] = lambda prompt_id: False,
) -> list[Example]:
    """What of some examples can be trained on; everything else is added to the counts."""
    kept = []
    for example in examples:
        fitted, reason = (None, "held_out") if is_held_out(example.prompt_id) else fit(example, settings)
        if reason:
            counts[reason] = counts.get(reason, 0) + 1
        if fitted is not None:
            kept.append(fitted)
            if fitted.is_cut_off:
                counts["cut_off"] = counts.get("cut_off", 0) + 1
    return kept


def plan_passes(num_tokens: Sequence[int], world_size: int, max_tokens: int) -> list[list[list[int]]]:
    """For each rank its micro-batches, each a list of places: equal work, and equally many passes on every rank.

    The longest example goes first, always to the rank that has least to do; within a rank into the first micro-batch
    with room for it.
    """
    order = sorted(range(len(num_tokens)), key=lambda place: (-num_tokens[place], place))
    load = [(0, rank) for rank in range(world_size)]
    share: list[list[int]] = [[] for _ in range(world_size)]
    for place in order:
        total, rank = heapq.heappop(load)
        share[rank].append(place)
        heapq.heappush(load, (total + num_tokens[place], rank))
    plans = [_passes(places, num_tokens, max_tokens) for places in share]
    num_passes = max(map(len, plans))
    return [[*passes, *([] for _ in range(num_passes - len(passes)))] for passes in plans]


def _passes(places: Sequence[int], num_tokens: Sequence[int], max_tokens: int) -> list[list[int]]:
    passes: list[list[int]] = []
    room: list[int] = []
    for place in places:
        at = next((at for at, left in enumerate(room) if left >= num_tokens[place]), None)
        if at is None:
            passes.append([])
            room.append(max_tokens)
            at = len(passes) - 1
        passes[at].append(place)
        room[at] -= num_tokens[place]
    return passes or [[]]


def count_units(examples: Sequence[Example], unit: Unit) -> int:
    """How many units of a mean some examples hold."""
    if unit == "pairs":
        return sum(len(example.responses) == 2 for example in examples)
    if unit == "sequences":
        return sum(len(example.responses) for example in examples)
    return sum(len(response) for example in examples for response in example.responses)


class Feed:
    """Optimiser steps of one rank, one after the other."""

    def __init__(
        self,
        source: Source,
        settings: BatchSettings,
        *,
        unit: Unit,
        rank: int = 0,
        world_size: int = 1,
        frozen_names: tuple[FrozenNetwork, ...] = (),
        frozen: Frozen = list,
        is_held_out: Callable[[str], bool] = lambda prompt_id: False,
        from_first: Callable[[str], str] | None = None,
    ) -> None:
        """`from_first` sends rank 0's draw to the others: needed where the source grows and there are others."""
        self._source = source
        self._settings = settings
        self._unit = unit
        self._rank = rank
        self._world_size = world_size
        self._frozen_names = frozen_names
        self._frozen = frozen
        self._is_held_out = is_held_out
        self._from_first = from_first
        self.counts: dict[str, int] = {}
        self.is_interrupted = False
        """It was asked to stop while it waited: more would have come."""

    @property
    def is_first(self) -> bool:
        """Whether this rank decides what all draw."""
        return self._rank == 0

    def next(self) -> StepBatch | None:
        """The next optimiser step, or None behind the last."""
        started_s = time.perf_counter()
        try:
            drawn = self._draw()
        except StreamInterrupted:
            self.is_interrupted = True
            return None
        if drawn is None:
            return None
        fetched = self._source.fetch(drawn)
        examples = self._frozen(fitting_examples(fetched, self._settings, self.counts, self._is_held_out))
        return self._batch(examples, drawn.position, started_s)

    def restore(self, counts: Mapping[str, int]) -> None:
        """Count on from what a checkpoint has counted."""
        self.counts = dict(counts)

    def _draw(self) -> Drawn | None:
        if self._from_first is None:
            return self._source.draw(self._settings.batch_size)
        said = ""
        if self.is_first:
            try:
                drawn = self._source.draw(self._settings.batch_size)
                said = "" if drawn is None else drawn.to_json()
            except StreamInterrupted:
                said = _INTERRUPTED
        text = self._from_first(said)
        if text == _INTERRUPTED:
            raise StreamInterrupted("rank 0 was asked to stop while it waited for more of the stream")
        return Drawn.from_json(text) if text else None

    def _batch(self, examples: Sequence[Example], position: str, started_s: float) -> StepBatch:
        num_tokens = [example.num_tokens for example in examples]
        plans = plan_passes(num_tokens, self._world_size, self._settings.max_tokens_per_micro_batch)
        micro_batches = tuple(
            make_batch([examples[place] for place in places], self._frozen_names, is_packed=self._settings.is_packed)
            for places in plans[self._rank]
        )
        return StepBatch(
            micro_batches=micro_batches,
            num_units=count_units(examples, self._unit),
            num_tokens=sum(num_tokens),
            num_response_tokens=count_units(examples, "tokens"),
            keys=tuple(example.key for example in examples),
            position=position,
            wait_s=time.perf_counter() - started_s,
        )
