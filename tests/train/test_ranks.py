"""Any number of ranks trains the same run: the same steps, the same weights up to rounding, every record once."""

import threading
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from cong.config import RunConfig
from cong.errors import CheckpointError
from cong.models import load_network
from cong.train.backend import BackendFactory
from cong.train.ledger import read_ledger
from cong.train.metrics import read_metrics
from cong.train.progress import Outcome
from cong.train.run import train
from cong.train.stopping import StopRequest
from tests.train.ranks import ThreadBackend, on_ranks
from tests.train.runs import DPO, ledger_keys
from tests.train.worlds import (
    final_weights,
    network_folder,
    run_config,
    sample,
    sampled_meanwhile,
    stream_keys,
    write_samples,
)


@pytest.fixture(autouse=True)
def one_network_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks are threads here, and transformers loads networks for one thread at a time."""
    lock, load = threading.Lock(), load_network

    def locked(*arguments: Any, **options: Any) -> Any:
        with lock:
            return load(*arguments, **options)

    monkeypatch.setattr("cong.train.trainee.load_network", locked)


EVALUATED = {"evaluation": {"held_out_share": 0.2, "every_steps": 3}}


def losses(config: RunConfig) -> list[float]:
    lines = read_metrics(config.output_dir / "metrics.jsonl")
    return [line[name] for line in lines for name in ("loss", "eval/loss", "grad_norm") if name in line]


def require_close(one: RunConfig, other: RunConfig) -> None:
    assert losses(one) == pytest.approx(losses(other), abs=2e-5)
    weights = final_weights(other)
    for name, weight in final_weights(one).items():
        # Adam divides by the size of gradients: rounding of the smallest of them shows most.
        assert torch.allclose(weight, weights[name], atol=2e-4), name
    assert list(read_ledger(one.output_dir / "ledger")) == list(read_ledger(other.output_dir / "ledger"))


@pytest.mark.parametrize("settings", [EVALUATED, {**DPO, **EVALUATED}], ids=["sft", "dpo"])
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_work_of_one(root: Path, settings: dict[str, Any], world_size: int) -> None:
    write_samples(root / "own", (sample(number, is_plain=True) for number in range(40)), "own")
    if "data" in settings:
        settings = {**settings, "data": {"kind": "joined", "rejected": {"location": str(root / "own")}}}
    one = run_config(root, settings, output_dir=root / "one", cache_dir=root / "cache-1")
    many = run_config(root, settings, output_dir=root / "many", cache_dir=root / "cache-2")
    train(one, is_quiet=True)
    outcomes = on_ranks(world_size, lambda make: train(many, make, is_quiet=True))
    assert len({outcome.metrics["loss"] for outcome in outcomes if outcome.metrics}) == 1
    require_close(one, many)


def test_another_world_size_goes_on_and_repeats_nothing(root: Path) -> None:
    one = run_config(root, {"num_epochs": 2}, output_dir=root / "one")
    many = run_config(root, {"num_epochs": 2}, output_dir=root / "many")
    train(one, is_quiet=True)
    for world_size in (2, 1, 3):
        on_ranks(world_size, partial(_train_a_little, many, StopRequest()))
    train(many, is_quiet=True)
    require_close(one, many)


def _train_a_little(config: RunConfig, stop: StopRequest, make: BackendFactory) -> Outcome:
    """To the first checkpoint, and one step more."""
    return train(config, make, stop=stop, report=lambda metrics, folder: stop.set(), is_quiet=True)


def test_ranks_of_a_growing_stream_take_what_the_first_has_seen(tmp_path: Path) -> None:
    network_folder(tmp_path / "network")
    location, total = tmp_path / "stream", 40
    write_samples(location, [sample(0)], "live00", is_closed=False)
    read = {"follow": {"poll_s": 0.01, "idle_timeout_s": 60.0}, "max_records": total, "shuffle_rows": 0}
    config = run_config(tmp_path, stream={"location": str(location), "read": read})

    with sampled_meanwhile(location, total, 3):
        on_ranks(2, lambda make: train(config, make, is_quiet=True))
    assert ledger_keys(config) == Counter(stream_keys(location))


def test_a_rank_that_cannot_save_ends_all_of_them(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(self: ThreadBackend, folder: Path) -> None:
        if self.rank == 1:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(ThreadBackend, "save", full_disk)
    failures: list[str] = []

    def work(make: BackendFactory) -> Outcome | None:
        try:
            return train(run_config(root), make, is_quiet=True)
        except CheckpointError as error:
            failures.append(str(error))
            return None

    on_ranks(2, work)
    assert len(failures) == 2
    assert all("could not be written by 1 of 2 processes" in message for message in failures)


def test_a_recipe_that_rank_0_refuses_is_refused_by_all(root: Path) -> None:
    train(run_config(root), is_quiet=True)
    changed = run_config(root, {"optimizer": {"learning_rate": 1e-4}})
    failures: list[str] = []

    def work(make: BackendFactory) -> None:
        with pytest.raises(CheckpointError, match="learning_rate was") as caught:
            train(changed, make, is_quiet=True)
        failures.append(str(caught.value))

    on_ranks(2, work)
    assert len(set(failures)) == 1
    assert len(failures) == 2
