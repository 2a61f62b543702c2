"""Whole runs under ZeRO: data, objective, checkpoints and export are those of the torch backend."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cong.config import RunConfig, dump_config
from cong.train.ledger import read_ledger
from cong.train.metrics import read_metrics
from cong.train.run import train
from tests.train.deepspeed.launch import launch
from tests.train.worlds import final_weights, network_folder, run_config, sample, write_samples

pytestmark = pytest.mark.slow

KINDS: dict[str, dict[str, Any]] = {
    "zero2": {"deepspeed": {"zero_stage": 2}, "evaluation": {"held_out_share": 0.2, "every_steps": 3}},
    "zero3-checkpointed": {"deepspeed": {"zero_stage": 3}, "has_activation_checkpointing": True},
    "zero3-lora": {"deepspeed": {"zero_stage": 3}, "lora": {"rank": 4, "alpha": 8.0}},
    "zero3-resized": {"deepspeed": {"zero_stage": 3}, "num_epochs": 2},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[RunConfig, RunConfig]]:
    """Each run by one process with torch and by ranks with DeepSpeed; some change their number twice."""
    root = tmp_path_factory.mktemp("runs")
    network_folder(root / "network")
    write_samples(root / "stream", (sample(number) for number in range(40)))
    made = {}
    for name, kind in KINDS.items():
        plain = run_config(root, kind, output_dir=root / f"{name}-torch", cache_dir=root / "cache-torch")
        divided = run_config(
            root, {**kind, "backend": "deepspeed"}, output_dir=root / name, cache_dir=root / "cache-deepspeed"
        )
        (root / f"{name}.yaml").write_text(dump_config(divided))
        train(plain, is_quiet=True)
        made[name] = plain, divided
    resized = [name for name in KINDS if name.endswith("resized")]
    stopped = [f"stop:{name}" for name in resized]
    launch(2, "run", str(root), *(name for name in KINDS if name not in resized), *stopped)
    for num_ranks, names in ((1, stopped), (2, resized)):
        output = launch(num_ranks, "run", str(root), *names)[0]
        assert output.count("was saved by another number of processes; converting it once") == len(names)
    return made


def numbers_of(config: RunConfig) -> list[float]:
    lines = read_metrics(config.output_dir / "metrics.jsonl")
    return [line[name] for line in lines for name in ("loss", "eval/loss", "grad_norm") if name in line]


@pytest.mark.parametrize("name", KINDS)
def test_a_run_by_ranks_tells_the_numbers_of_one_by_one_process(
    name: str, runs: dict[str, tuple[RunConfig, RunConfig]]
) -> None:
    plain, divided = runs[name]
    assert numbers_of(divided) == pytest.approx(numbers_of(plain), abs=5e-5)


@pytest.mark.parametrize("name", KINDS)
def test_the_exported_network_is_the_same(name: str, runs: dict[str, tuple[RunConfig, RunConfig]]) -> None:
    plain, divided = (final_weights(config) for config in runs[name])
    assert divided.keys() == plain.keys()
    for tensor, weight in plain.items():
        # Adam divides by the size of gradients: rounding of the smallest of them shows most.
        assert torch.allclose(divided[tensor], weight, atol=2e-4), tensor


@pytest.mark.parametrize("name", KINDS)
def test_no_record_is_skipped_or_repeated(name: str, runs: dict[str, tuple[RunConfig, RunConfig]]) -> None:
    plain, divided = (list(read_ledger(Path(config.output_dir) / "ledger")) for config in runs[name])
    assert divided == plain
