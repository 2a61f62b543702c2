"""A run goes on as it began: what would change its results is refused by name, what only watches may change."""

from pathlib import Path
from typing import Any

import pytest

from cong.errors import CheckpointError
from cong.train.run import train
from tests.train.runs import stop_after_checkpoints
from tests.train.worlds import network_folder, run_config

CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"optimizer": {"learning_rate": 1e-3}}, "train.optimizer.learning_rate was 0.003 and is 0.001"),
    ({"batches": {"batch_size": 5}}, "train.batches.batch_size was 6 and is 5"),
    ({"num_epochs": 3}, "train.num_epochs was 2 and is 3"),
    ({"objective": {"parameters": {"mean_over": "sequences"}}}, "train.objective.parameters.mean_over"),
    ({"evaluation": {"held_out_share": 0.1}}, "train.evaluation.held_out_share was 0.0 and is 0.1"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_a_changed_recipe_is_refused_by_name(root: Path, change: dict[str, Any], message: str) -> None:
    stop_after_checkpoints(run_config(root, {"num_epochs": 2}), 1)
    asked = (root / "run" / "config.yaml").read_text()
    with pytest.raises(CheckpointError, match=message):
        train(run_config(root, {"num_epochs": 2, **change}), is_quiet=True)
    assert (root / "run" / "config.yaml").read_text() == asked, "the folder tells of the run that is in it"


def test_another_network_or_filter_is_refused_by_name(root: Path) -> None:
    stop_after_checkpoints(run_config(root), 1)
    network_folder(root / "other", seed=1)
    with pytest.raises(CheckpointError, match=r"network\.fingerprint was"):
        train(run_config(root, {"network": {"source": str(root / "other")}}), is_quiet=True)
    read = {"shuffle_rows": 16, "shuffle_seed": 4}
    with pytest.raises(CheckpointError, match=r"data\.order\.shuffle_seed was 3 and is 4"):
        train(run_config(root, stream={"location": str(root / "stream"), "read": read}), is_quiet=True)


def test_a_moved_network_and_stream_are_the_same(root: Path) -> None:
    stop_after_checkpoints(run_config(root), 1)
    (root / "network").rename(root / "network-2")
    (root / "stream").rename(root / "stream-2")
    stream = {"location": str(root / "stream-2"), "read": {"shuffle_rows": 16, "shuffle_seed": 3}}
    config = run_config(root, {"network": {"source": str(root / "network-2")}}, stream=stream)
    assert train(config, is_quiet=True).is_finished


def test_what_only_watches_or_keeps_may_change(root: Path) -> None:
    stop_after_checkpoints(run_config(root), 1)
    changed = {
        "checkpoints": {"every_steps": 3, "num_kept": 1},
        "logging": {"every_steps": 2},
        "batches": {"max_tokens_per_micro_batch": 90},
        "has_activation_checkpointing": True,
    }
    config = run_config(root, changed)
    assert train(config, is_quiet=True).is_finished
    assert len(list((config.output_dir / "checkpoints").glob("step-*"))) == 1
