"""Whatever the moment at which a save is cut off, the newest complete checkpoint is the one before or the new one.

Of the first save there is none before: the run is new.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from cong.config.train import OptimizerSettings
from cong.lab.networks import build_network
from cong.train.checkpoint import newest_complete, remove_old
from cong.train.commit import save_checkpoint
from cong.train.ledger import Ledger, parts_to_json
from cong.train.torch_backend import TorchBackend
from tests.killing import Killed, count_changes, killed_after


def save(backend: TorchBackend, root: Path, step: int, ledger: Ledger) -> None:
    ledger.add(step, [f"key-{step}"])

    def state() -> Mapping[str, Any]:
        return {"ledger": parts_to_json(ledger.write(step))}

    save_checkpoint(backend, root / "checkpoints", step, state, {"own.json": b"{}"})
    remove_old(root / "checkpoints", 2)


@pytest.mark.parametrize("steps_before", [(), (1, 2)], ids=["first", "third"])
def test_a_save_that_is_cut_off_anywhere_leaves_a_complete_checkpoint_or_a_new_run(
    tmp_path: Path, steps_before: Sequence[int]
) -> None:
    network = build_network(16, 1, 1, 16, torch.Generator().manual_seed(0))
    backend = TorchBackend(network, OptimizerSettings(), precision="float32")

    def prepared(name: str) -> tuple[Path, Ledger]:
        ledger = Ledger(tmp_path / name / "ledger")
        for step in steps_before:
            save(backend, tmp_path / name, step, ledger)
        return tmp_path / name, ledger

    root, ledger = prepared("whole")
    num_changes = count_changes(lambda: save(backend, root, 3, ledger), root)
    assert num_changes > 15
    for limit in range(num_changes):
        root, ledger = prepared(str(limit))
        with pytest.raises(Killed), killed_after(limit, root):
            save(backend, root, 3, ledger)
        found = newest_complete(root / "checkpoints", root / "ledger")
        if found is None:
            assert not steps_before
            again = Ledger(root / "ledger")
        else:
            assert found.step in (*steps_before[-1:], 3)
            assert [part.name for part in found.ledger_parts][-1].endswith(f"{found.step:08d}.jsonl")
            again = Ledger(root / "ledger", found.ledger_parts, found.step)
        # Whoever goes on from there saves over what was left behind.
        again.remove_others()
        save(backend, root, 4 if found is not None and found.step == 3 else 3, again)
        assert newest_complete(root / "checkpoints", root / "ledger") is not None
