"""What a report is made of, read from what stages have left."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from cong.pipeline import STAGES, material
from cong.pipeline.board import Board, Standing


class Rows:
    """A stream of 24,576 samples whose last twelfth is longer and better than all others."""

    def __init__(self, store: object) -> None:
        pass

    def tables(self, size: int, columns: Sequence[str]) -> Iterator[tuple[pa.Table, None]]:
        for part in range(12):
            value = 1 + 9 * (part == 11)
            rows = {"num_tokens": value, "implicit_reward_mean": float(value), "finish_reason": "stop"}
            yield pa.table({name: [rows[name]] * 2048 for name in columns}), None


def test_lengths_and_rewards_are_those_of_all_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(material, "StreamReader", Rows)
    monkeypatch.setattr(material, "open_store", str)
    monkeypatch.setattr(material, "_first_samples", lambda *_: ())
    stage = next(stage for stage in STAGES if stage.kind == "sample")
    standing = Standing(stage, "done", "", folder=Path("nowhere"))
    drawn = material._drawn(standing, Board.__new__(Board))
    assert drawn.num_records == len(drawn.lengths) == len(drawn.rewards) == 24_576
    assert max(drawn.lengths) == 10
    assert sum(drawn.rewards) / drawn.num_records == 1.75
