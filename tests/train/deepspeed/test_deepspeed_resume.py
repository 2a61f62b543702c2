"""Saved and loaded: by as many ranks bit for bit, by more or fewer through a conversion, and never when torn."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.train.deepspeed.conftest import Results
from tests.train.deepspeed.launch import launch
from tests.train.deepspeed.worker import RESIZED, RESUMED

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(name: str, resumed: Results) -> None:
    for rank in (0, 1):
        unbroken, again = resumed.of(f"{name}.unbroken", rank=rank), resumed.of(f"{name}.resumed", rank=rank)
        assert len(unbroken.losses) == 2
        assert again.losses == unbroken.losses
        assert again.norms == unbroken.norms
        # Moments enter the weights of the steps that follow: equal weights mean an equal optimiser.
        assert all(torch.equal(again.weights[tensor], weight) for tensor, weight in unbroken.weights.items())


@pytest.mark.parametrize("name", RESIZED)
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_another_number_of_ranks_goes_on_with_the_same_state(name: str, num_ranks: int, resized: Results) -> None:
    # 2 ranks save, 1 loads and saves, 2 load that: both go on as the first two would have.
    unbroken = resized.of(f"{name}.unbroken")
    stepped = resized.of(f"{name}.stepped", world_size=num_ranks)
    assert stepped.losses == pytest.approx(unbroken.losses, abs=1e-5 if "bfloat16" not in name else 0.01)
    assert stepped.norms == pytest.approx(unbroken.norms, rel=1e-5 if "bfloat16" not in name else 0.03)
    if "bfloat16" not in name:
        for tensor, weight in unbroken.weights.items():
            assert (stepped.weights[tensor] - weight).abs().max() < 1e-5


@pytest.mark.parametrize("name", RESIZED)
def test_converting_changes_no_weight(name: str, resized: Results) -> None:
    one, two = resized.of(f"{name}.loaded", world_size=1), resized.of(f"{name}.loaded")
    assert one.weights.keys() == two.weights.keys()
    assert all(torch.equal(two.weights[tensor], weight) for tensor, weight in one.weights.items())


def test_a_conversion_leaves_one_folder_beside_the_saved_one(resized: Results) -> None:
    names = {path.name for path in (resized.folder / "saved").iterdir()}
    plain = [name for name in RESIZED if name != "zero0"]
    assert names == {*RESUMED, *(f"{name}.universal" for name in plain)}


@pytest.mark.parametrize("stage", [2, 3])
def test_an_adapter_is_saved_without_its_base(stage: int, resumed: Results) -> None:
    sizes = {
        name: sum(path.stat().st_size for path in (resumed.folder / "saved" / name / "state").iterdir())
        for name in (f"zero{stage}", f"zero{stage}-lora")
    }
    assert sizes[f"zero{stage}-lora"] < 0.5 * sizes[f"zero{stage}"]


def _truncated(folder: Path) -> None:
    path = folder / "state" / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    path.write_bytes(path.read_bytes()[:-100])


def _garbled(folder: Path) -> None:
    path = folder / "state" / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    path.write_bytes(bytes(len(path.read_bytes())))


def _unconvertible(folder: Path) -> None:
    _garbled(folder)
    _rewritten(folder, world_size=3)


def _rewritten(folder: Path, **changes: object) -> None:
    path = folder / "deepspeed.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (_truncated, "zero_pp_rank_1_mp_rank_00_optim_states.pt has"),
    "no-shard": (lambda f: (f / "state" / "zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink(), "is missing"),
    "no-latest": (lambda f: (f / "latest").unlink(), "latest is missing"),
    "no-state": (lambda f: shutil.rmtree(f / "state"), "is missing"),
    "no-list": (lambda f: (f / "deepspeed.json").unlink(), "saving never finished"),
    "torn-list": (lambda f: (f / "deepspeed.json").write_text("{"), "cannot be read"),
    "odd-list": (lambda f: _rewritten(f, num_bytes=3), "cannot be read"),
    "other-stage": (lambda f: _rewritten(f, zero_stage=3), "zero_stage 3, and this run has 2"),
    "other-precision": (lambda f: _rewritten(f, precision="bfloat16"), "precision bfloat16, and this run has"),
    "other-network": (lambda f: _rewritten(f, num_trained={"other.weight": 7}), "another network or adapter"),
    "other-format": (lambda f: _rewritten(f, format=99), "format 99"),
    "y-unconvertible": (_unconvertible, "cannot be converted for 2 processes"),
    "z-garbled": (_garbled, "cannot be loaded"),
}


def test_what_is_torn_is_refused_on_every_rank_with_a_reason(resumed: Results, tmp_path: Path) -> None:
    for name, (damage, _) in DAMAGES.items():
        folder = tmp_path / "torn" / name
        shutil.copytree(resumed.folder / "saved" / "zero2", folder)
        damage(folder)
    launch(2, "torn", str(tmp_path))
    messages = {(name, rank): (tmp_path / f"{name}.message{rank}").read_text() for name in DAMAGES for rank in (0, 1)}
    for name, (_, expected) in DAMAGES.items():
        told = [messages[name, rank] for rank in (0, 1)]
        # A damage that one rank alone meets is told to the other without its details.
        assert all(re.search(f"{expected}|of 2 failed", message) for message in told), (name, told)
        assert any(re.search(expected, message) for message in told), (name, told)
