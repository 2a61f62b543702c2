"""A machine of the cluster vanishes in the middle of training: the run goes on elsewhere and loses nothing."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from jobs.machine import Machine
from jobs.train import EXIT_DONE
from tests.jobs.training import (
    LIMIT_S,
    NUM_RECORDS_MIDWAY,
    NUM_STEPS,
    GrowingStream,
    arguments,
    eventually,
    is_waiting_midway,
    job_config,
    require_exact,
)

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(not os.environ.get("CONG_LONG_TESTS"), reason="three raylets; set CONG_LONG_TESTS=1"),
]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Of sockets and logs; its path is short."""
    made = Path(tempfile.mkdtemp(prefix="cl-", dir="/tmp"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


def test_a_lost_machine_is_survived(folder: Path, tmp_path: Path) -> None:
    with Machine(folder, "head", num_cpus=0) as head, ExitStack() as others:

        def add(name: str) -> Machine:
            return others.enter_context(Machine(folder, name, head, resources={"trainer": 1}))

        lose_one(head, [add("first"), add("second")], add, tmp_path)


def lose_one(head: Machine, machines: list[Machine], add: Callable[[str], Machine], tmp_path: Path) -> None:
    stream = GrowingStream(tmp_path / "stream")
    stream.grow(NUM_RECORDS_MIDWAY)
    job = {"resources_per_worker": {"trainer": 1.0}, "cpus_per_worker": 1.0, "placement": "STRICT_SPREAD"}
    config = job_config(tmp_path, "run", stream.location, training_job=job)
    command = [sys.executable, "-m", "jobs.train", *arguments(config, tmp_path)]
    process = subprocess.Popen(
        command, env={**os.environ, "RAY_ADDRESS": head.address}, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        eventually(lambda: is_waiting_midway(config) or process.poll() is not None, "a step behind the checkpoints")
        machines[0].lose()
        add("third")
        stream.finish()
        _, errors = process.communicate(timeout=LIMIT_S)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == EXIT_DONE, errors
    assert f"of {NUM_STEPS}" in errors.partition("going on from step")[2]
    require_exact(config, stream.location)
