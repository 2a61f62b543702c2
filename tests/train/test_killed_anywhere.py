"""A run that is killed before any one of its changes to the disk, and once more on its way on, is the unbroken run."""

import os
import random
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from cong.train.run import train
from tests.killing import Killed, count_changes, killed_after
from tests.train.runs import require_equal_runs
from tests.train.worlds import run_config

STRIDE = 1 if os.environ.get("CONG_LONG_TESTS") else 6
"""Of how many moments one is tried."""


@pytest.mark.slow
def test_killed_before_any_change_a_run_goes_on_as_if_nothing_had_been(root: Path) -> None:
    settings = {
        "checkpoints": {"every_steps": 3, "num_kept": 1},
        "evaluation": {"held_out_share": 0.2, "every_steps": 2},
    }
    unbroken, config = run_config(root, settings, output_dir=root / "unbroken"), run_config(root, settings)
    num_changes = count_changes(lambda: train(unbroken, is_quiet=True), unbroken.output_dir)
    assert num_changes > 50
    rng = random.Random(0)
    for number in range(0, num_changes, STRIDE):
        for moment in (number, rng.randrange(num_changes)):
            with suppress(Killed), killed_after(moment, config.output_dir):
                train(config, is_quiet=True)
        assert train(config, is_quiet=True).is_finished, number
        require_equal_runs(unbroken, config)
        assert [path.name for path in (config.output_dir / "checkpoints").glob(".*")] == [], number
        shutil.rmtree(config.output_dir)
