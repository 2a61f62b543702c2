"""Machines follow the work: none, two, none, under a service and under a training job, and nothing is lost by it."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.client.service_process import ROOT
from tests.processes import below, kill

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(not os.environ.get("CONG_LONG_TESTS"), reason="minutes; set CONG_LONG_TESTS=1"),
]


@contextmanager
def ended_with_its_machines(process: "subprocess.Popen[str]") -> Iterator[None]:
    """Machines of the fake provider outlive a cluster that is killed."""
    started: set[psutil.Process] = set()
    try:
        while process.poll() is None:
            started |= set(below(process))
            with suppress(subprocess.TimeoutExpired):
                process.wait(1.0)
        yield
    finally:
        process.kill()
        kill(started)
        psutil.wait_procs(started, timeout=20)


def work(name: str) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp(prefix="ca-", dir="/tmp"))
    environment = {**os.environ, "HOME": str(folder), "OMP_NUM_THREADS": "1"}
    try:
        with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
            command = [sys.executable, "-m", "tests.jobs.autoscaled_process", str(folder), name]
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=err, text=True)
        with ended_with_its_machines(process):
            assert process.returncode == 0, (folder / "err").read_text()[-4000:]
            found: dict[str, Any] = json.loads((folder / "out").read_text().splitlines()[-1])
            return found
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_machines_come_with_requests_and_go_with_them() -> None:
    found = work("serve")
    assert found["machines"] == [0, 2, 0]
    assert found["answers"] >= 16
    assert found["failures"] == []


def test_machines_come_for_a_training_job_and_go_after_it() -> None:
    found = work("train")
    assert found["machines"] == [0, 2, 0]
    assert found["exit_code"] == 0
    assert found["steps"] == found["wanted_steps"]
