"""Runs that are stopped and go on, and what they are compared by."""

from collections import Counter
from pathlib import Path
from typing import Any

import torch

from cong.config import RunConfig
from cong.train.ledger import read_ledger
from cong.train.metrics import read_metrics
from cong.train.progress import Outcome
from cong.train.run import train
from cong.train.stopping import StopRequest
from tests.train.worlds import final_weights

TIMES = ("tokens_per_s", "arithmetic_share", "wait_s", "compute_s")
DPO = {"objective": {"name": "dpo", "parameters": {"beta": 0.5}}, "data": {"kind": "joined"}}


def curve(config: RunConfig) -> list[dict[str, Any]]:
    """Every number of every step that is no time."""
    lines = read_metrics(config.output_dir / "metrics.jsonl")
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def stop_after_checkpoints(config: RunConfig, num_checkpoints: int) -> Outcome:
    """Train until so many checkpoints are committed, and one step more."""
    stop = StopRequest()
    left = [num_checkpoints]

    def report(metrics: object, folder: Path) -> None:
        left[0] -= 1
        if left[0] == 0:
            stop.set()

    return train(config, report=report, stop=stop, is_quiet=True)


def train_in_pieces(config: RunConfig) -> int:
    """Train with a stop in every process; how many processes it took."""
    for number in range(1, 30):
        if stop_after_checkpoints(config, 1).is_finished:
            return number
    raise AssertionError("the run does not end")


def require_equal_runs(one: RunConfig, other: RunConfig) -> None:
    assert curve(one) == curve(other)
    assert list(read_ledger(one.output_dir / "ledger")) == list(read_ledger(other.output_dir / "ledger"))
    weights, others = final_weights(one), final_weights(other)
    assert weights.keys() == others.keys()
    assert all(torch.equal(weight, others[name]) for name, weight in weights.items())


def ledger_keys(config: RunConfig) -> Counter[str]:
    return Counter(key for _, keys in read_ledger(config.output_dir / "ledger") for key in keys)
