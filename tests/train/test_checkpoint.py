"""A damaged checkpoint is announced and stepped over; nothing starts from zero by itself, and old ones go by number."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from cong.config import RunConfig
from cong.errors import CheckpointError
from cong.files import files_below
from cong.train import commit
from cong.train.checkpoint import newest_complete
from cong.train.run import train
from cong.train.torch_backend import TorchBackend
from tests.killing import Killed
from tests.train.runs import ledger_keys, require_equal_runs, stop_after_checkpoints
from tests.train.worlds import run_config, stream_keys


def checkpoint_files(config: RunConfig) -> list[str]:
    newest = sorted((config.output_dir / "checkpoints").glob("step-*"))[-1]
    return [f"{newest.name}/{name}" for name in files_below(newest)]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_every_damage_to_the_newest_checkpoint_is_announced_and_stepped_over(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = run_config(root)
    unbroken = run_config(root, output_dir=root / "unbroken")
    train(unbroken, is_quiet=True)
    stop_after_checkpoints(config, 2)
    files = checkpoint_files(config)
    assert {Path(name).name for name in files} == {
        *("COMMITTED", "manifest.json", "state.json", "generators-00000.json"),
        *("weights.safetensors", "optimizer.safetensors"),
    }
    folder = config.output_dir / "checkpoints"
    whole = newest_complete(folder, config.output_dir / "ledger")
    assert whole is not None
    assert whole.step == 5
    damages = {
        "removed": lambda path: path.unlink(),
        "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
        "emptied": lambda path: path.write_bytes(b""),
        "flipped": flip,
    }
    for name in files:
        content = (folder / name).read_bytes()
        for damage in damages.values():
            damage(folder / name)
            caplog.clear()
            found = newest_complete(folder, config.output_dir / "ledger")
            assert found is not None
            assert found.step == 4
            assert "stepping back to step 4" in caplog.text
            assert "step-00000005 is not complete" in caplog.text
            (folder / name).write_bytes(content)
    flip(folder / "step-00000005" / "backend" / "weights.safetensors")
    train(config, is_quiet=True)
    require_equal_runs(unbroken, config)


def test_a_missing_newest_checkpoint_is_announced(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = run_config(root)
    stop_after_checkpoints(config, 2)
    shutil.rmtree(config.output_dir / "checkpoints" / "step-00000005")
    assert train(config, is_quiet=True).is_finished
    assert "step-00000005 was committed and is missing" in caplog.text


def test_training_never_starts_from_zero_by_itself(root: Path) -> None:
    config = run_config(root)
    stop_after_checkpoints(config, 1)
    folder = config.output_dir / "checkpoints"
    for path in folder.glob("step-*"):
        flip(path / "state.json")
    with pytest.raises(CheckpointError, match="no checkpoint is left to resume from"):
        train(config, is_quiet=True)
    shutil.rmtree(folder)
    with pytest.raises(CheckpointError, match="shows steps that were saved"):
        train(config, is_quiet=True)


def test_a_first_save_that_was_cut_off_is_no_end(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    unbroken = run_config(root, output_dir=root / "unbroken")
    train(unbroken, is_quiet=True)

    def kill(path: Path, content: bytes) -> None:
        raise Killed(path)

    for every_steps in (2, 3):
        config = run_config(root, {"checkpoints": {"every_steps": every_steps}})
        with monkeypatch.context() as patch:
            # The state is the first that is written once the ledger is.
            patch.setattr(commit, "write_inside", kill)
            with pytest.raises(Killed):
                train(config, is_quiet=True)
    config = run_config(root)
    assert train(config, is_quiet=True).is_finished
    assert "step 3, was being written when the run ended; it begins anew" in caplog.text
    require_equal_runs(unbroken, config)


def test_a_damaged_ledger_part_is_noticed(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = run_config(root)
    stop_after_checkpoints(config, 2)
    (part,) = (config.output_dir / "ledger").glob("steps-00000004-*.jsonl")
    flip(part)
    assert train(config, is_quiet=True).is_finished
    assert "the ledger is damaged" in caplog.text
    assert ledger_keys(config) == Counter(stream_keys(root / "stream"))


def test_an_interrupted_write_leaves_the_checkpoints_before_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = run_config(root)
    stop_after_checkpoints(config, 1)
    before = sorted(path.name for path in (config.output_dir / "checkpoints").glob("step-*"))

    def full_disk(self: TorchBackend, folder: Path) -> None:
        (folder / "weights.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(TorchBackend, "save", full_disk)
        with pytest.raises(
            CheckpointError, match=r"No space left on device.*disk has room.*before it are as they were"
        ):
            train(config, is_quiet=True)
    assert sorted(path.name for path in (config.output_dir / "checkpoints").glob("step-*")) == before
    assert train(config, is_quiet=True).is_finished


def test_checkpoints_are_kept_by_number(root: Path) -> None:
    config = run_config(root, {"checkpoints": {"every_steps": 1, "num_kept": 3}})
    train(config, is_quiet=True)
    names = sorted(path.name for path in (config.output_dir / "checkpoints").iterdir())
    assert names == ["newest.json", "step-00000005", "step-00000006", "step-00000007"]
    assert json.loads((config.output_dir / "checkpoints" / "newest.json").read_text()) == {"step": 7}
