"""The pipeline on a cluster of several machines that are lost while it runs, against the same pipeline left alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.client.service_process import ROOT

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not os.environ.get("CONG_LONG_TESTS"), reason="five raylets; set CONG_LONG_TESTS=1"),
]

ANSWERS_WITHIN_S = 30.0
"""What operators are promised."""


def test_machines_that_are_lost_under_a_pipeline_change_nothing(tmp_path: Path) -> None:
    out = tmp_path / "chaos.json"
    command = [sys.executable, "-m", "bench.chaos", "--plan", "sampler", "trainer", "--json", str(out)]
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1000.0, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    result = json.loads(out.read_text())
    sampler, trainer = result["kills"]
    assert sampler["during"] == ["cong-s", "sample"], "sampling and training are both under way"
    assert 0.0 < sampler["answered_again_s"] < ANSWERS_WITHIN_S
    assert not sampler["was_resubmitted"]
    assert not trainer["was_resubmitted"]
    assert result["num_resumed_trainings"] > 0
    assert result["problems_of_streams"] == []
    assert set(result["same_keys"].values()) == {True}
    assert result["same_networks"]
    assert result["same_rewards"]
