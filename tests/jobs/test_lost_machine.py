"""A machine of the cluster vanishes in the middle of training: the run goes on elsewhere and loses nothing."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from jobs.train import EXIT_DONE
from tests.client.service_process import ROOT
from tests.jobs.training import (
    LIMIT_S,
    NUM_RECORDS,
    NUM_STEPS,
    GrowingStream,
    arguments,
    checkpoints,
    eventually,
    job_config,
    last_step,
    require_exact,
)

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not os.environ.get("CONG_LONG_TESTS"), reason="three raylets; set CONG_LONG_TESTS=1"),
]


class Machines:
    """A cluster in a process of its own: a head, and machines that come and go when told."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.address = self.tell("address")

    def tell(self, command: str) -> str:
        """One command, and its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        found: str = json.loads(self._process.stdout.readline())
        return found


@pytest.fixture
def machines() -> Iterator[Machines]:
    folder = Path(tempfile.mkdtemp(prefix="cl-"))
    environment = {
        **os.environ,
        "HOME": str(folder),
        "OMP_NUM_THREADS": "1",
        # Where the cluster notes its address, and everything else.
        "RAY_TMPDIR": str(folder),
    }
    (folder / "ray").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.jobs.machines_process", str(folder)],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    below: list[psutil.Process] = []
    try:
        found = Machines(process)
        yield found
        below = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.stdin.close()
        try:
            process.wait(60)
        finally:
            process.kill()
            for left in psutil.wait_procs(below, timeout=20)[1]:
                left.kill()
            process.stdout.close()
            shutil.rmtree(folder, ignore_errors=True)


def test_a_lost_machine_is_survived(machines: Machines, tmp_path: Path) -> None:
    stream = GrowingStream(tmp_path / "stream")
    stream.grow(NUM_RECORDS // 2)
    job = {"resources_per_worker": {"trainer": 1.0}, "cpus_per_worker": 1.0, "placement": "STRICT_SPREAD"}
    config = job_config(tmp_path, "run", stream.location, training_job=job)
    command = [sys.executable, "-m", "jobs.train", *arguments(config, tmp_path)]
    process = subprocess.Popen(
        command, env={**os.environ, "RAY_ADDRESS": machines.address}, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        eventually(lambda: checkpoints(config) or process.poll() is not None, "a checkpoint")
        eventually(lambda: last_step(config) > max(checkpoints(config)), "a step behind it")
        machines.tell("lose")
        machines.tell("add")
        stream.finish()
        _, errors = process.communicate(timeout=LIMIT_S)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == EXIT_DONE, errors
    assert f"of {NUM_STEPS}" in errors.partition("going on from step")[2]
    require_exact(config, stream.location)
