"""Preference pairs as examples, joined from two streams by what they answer, never by position.

Knows no tensors and no training.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from cong.config.stream import ReadSettings, SampleFilter
from cong.stream import Store, StreamReader, ragged
from cong.train.data.batch import Example, TokenIds
from cong.train.data.reading import FINGERPRINT, Reading

_AT_ONCE = 1024


@dataclass(frozen=True)
class Pairs:
    """Examples with two responses, and what was left out on the way."""

    examples: list[Example]
    counts: Mapping[str, int]


@dataclass(frozen=True, eq=False)
class _Sample:
    key: str
    prompt_ids: TokenIds
    response: TokenIds


_Place = tuple[str, int]
"""Prompt id and sample index: what two samples must share to be a pair."""


def join_pairs(
    chosen: tuple[Store, SampleFilter],
    rejected: tuple[Store, SampleFilter],
    reading: Reading,
    *,
    cache_dir: str = "",
) -> Pairs:
    """Pairs of samples with the same prompt id and sample index, in the order of these, however the streams lie.

    Where there is no such id on the other side, a sample of the same tokens and index is as good: prompts with equal
    tokens have the same samples, which lie in a stream under the id of the one that came first. Of several candidates
    for one side the one with the lowest key is taken. Everything left out is counted.
    """
    counts: Counter[str] = Counter()
    better = _by_place(chosen, "chosen", counts, reading, cache_dir)
    worse = _by_place(rejected, "rejected", counts, reading, cache_dir)
    by_tokens: dict[tuple[bytes, int], _Place] = {}
    for place in sorted(worse):
        by_tokens.setdefault((worse[place].prompt_ids.tobytes(), place[1]), place)
    used: set[_Place] = set()
    examples = []
    for place in sorted(better):
        good = better[place]
        partner: _Place | None = place
        if place not in worse:
            partner = by_tokens.get((good.prompt_ids.tobytes(), place[1]))
            counts["pairs_of_other_ids"] += partner is not None
        bad = None if partner is None else worse[partner]
        if partner is not None:
            used.add(partner)
        if bad is None:
            counts["chosen_without_rejected"] += 1
        elif not np.array_equal(good.prompt_ids, bad.prompt_ids):
            counts["pairs_of_unequal_prompts"] += 1
        elif np.array_equal(good.response, bad.response):
            counts["pairs_equal"] += 1
        else:
            key = f"{good.key}/{bad.key}"
            examples.append(Example(key, place[0], good.prompt_ids, (good.response, bad.response)))
    counts["rejected_without_chosen"] += sum(place not in used for place in worse)
    counts["pairs"] = len(examples)
    return Pairs(examples, {name: number for name, number in counts.items() if number})


def _by_place(
    side: tuple[Store, SampleFilter], name: str, counts: Counter[str], reading: Reading, cache_dir: str
) -> dict[_Place, _Sample]:
    store, wanted = side
    reader = StreamReader(store, ReadSettings(filter=wanted), cache_dir=cache_dir)
    found: dict[_Place, _Sample] = {}
    for place, sample in _samples(reader, reading):
        counts[f"{name}_read"] += 1
        before = found.get(place)
        if before is not None:
            counts[f"{name}_duplicate"] += 1
        if before is None or sample.key < before.key:
            found[place] = sample
    return found


def _samples(reader: StreamReader, reading: Reading) -> Iterable[tuple[_Place, _Sample]]:
    columns = ("key", "prompt_id", "sample_index", "prompt_token_ids", "completion_token_ids", FINGERPRINT)
    while (draw := reader.draw(_AT_ONCE)) is not None:
        table = reader.fetch(draw, columns)
        reading.require(reader, draw, table)
        asked, said = ragged(table, "prompt_token_ids"), ragged(table, "completion_token_ids")
        names = zip(*(table.column(name).to_pylist() for name in columns[:3]), strict=True)
        for row, (key, prompt_id, index) in enumerate(names):
            # Copies: a view would keep the whole table in memory.
            yield (prompt_id, int(index)), _Sample(key, asked.row(row).copy(), said.row(row).copy())
