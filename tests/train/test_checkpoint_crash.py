"""Whatever the moment at which a save is cut off, the newest complete checkpoint is the one before or the new one."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from cong.config.train import OptimizerSettings
from cong.lab.networks import build_network
from cong.train.checkpoint import newest_complete, remove_old, save_checkpoint
from cong.train.ledger import Ledger, parts_to_json
from cong.train.torch_backend import TorchBackend


class Killed(BaseException):
    """The process is gone: nothing after it runs, no clean-up either."""


class Fuse:
    """Counts the operations that change what is on disk, and cuts the process off at one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
        self.num_operations = 0
        self._limit = limit
        for owner, name in ((os, "fsync"), (Path, "rename"), (Path, "replace"), (Path, "write_bytes"), (Path, "mkdir")):
            monkeypatch.setattr(owner, name, self._counted(getattr(owner, name)))

    def _counted(self, operation: Any) -> Any:
        def counted(*arguments: Any, **options: Any) -> Any:
            self.num_operations += 1
            if self.num_operations > self._limit:
                raise Killed
            return operation(*arguments, **options)

        return counted


def save(backend: TorchBackend, root: Path, step: int, ledger: Ledger) -> None:
    ledger.add(step, [f"key-{step}"])

    def state() -> Mapping[str, Any]:
        return {"ledger": parts_to_json(ledger.write(step))}

    save_checkpoint(backend, root / "checkpoints", step, state, {"own.json": b"{}"})
    remove_old(root / "checkpoints", 2)


def test_a_save_that_is_cut_off_anywhere_leaves_a_complete_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = build_network(16, 1, 1, 16, torch.Generator().manual_seed(0))
    backend = TorchBackend(network, OptimizerSettings(), precision="float32")
    for limit in range(100):
        root = tmp_path / str(limit)
        root.mkdir()
        ledger = Ledger(root / "ledger")
        for step in (1, 2):
            save(backend, root, step, ledger)
        with monkeypatch.context() as patch:
            fuse = Fuse(patch, limit)
            try:
                save(backend, root, 3, ledger)
            except Killed:
                is_whole = False
            else:
                is_whole = True
        found = newest_complete(root / "checkpoints", root / "ledger")
        assert found is not None
        assert found.step == 3 if is_whole else found.step in (2, 3)
        assert [part.name for part in found.ledger_parts][-1].endswith(f"{found.step:08d}.jsonl")
        # Whoever goes on from there saves over what was left behind.
        again = Ledger(root / "ledger", found.ledger_parts, found.step)
        again.remove_others()
        save(backend, root, 3 if found.step == 2 else 4, again)
        if is_whole:
            assert limit == fuse.num_operations > 15
            return
    raise AssertionError("a save has no end")
