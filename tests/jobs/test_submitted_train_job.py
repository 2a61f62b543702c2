"""The training job as `ray job submit` runs it: once however often it is submitted, saved when it is stopped."""

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
from ray.job_submission import JobStatus, JobSubmissionClient

from jobs.train import EXIT_DONE, main
from tests.client.service_process import ROOT, free_port
from tests.jobs.training import (
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

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def dashboard() -> Iterator[str]:
    """The address of a cluster's dashboard."""
    folder = Path(tempfile.mkdtemp(prefix="cj-"))
    environment = {
        **os.environ,
        "HOME": str(folder),
        "OMP_NUM_THREADS": "1",
        # A job's own `python` is this one.
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.jobs.cluster_process", str(folder), str(free_port())],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())["url"]
    finally:
        below = psutil.Process(process.pid).children(recursive=True)
        process.stdin.close()
        try:
            process.wait(60)
        finally:
            process.kill()
            for left in psutil.wait_procs(below, timeout=20)[1]:
                left.kill()
            process.stdout.close()
            shutil.rmtree(folder, ignore_errors=True)


def test_a_submitted_run_runs_once_saves_when_stopped_and_goes_on_with_fewer_workers(
    dashboard: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = GrowingStream(tmp_path / "stream")
    stream.grow(NUM_RECORDS // 2)
    config = job_config(tmp_path, "run", stream.location, train={"checkpoints": {"every_steps": 0}})
    submit = ["--submit", dashboard]
    client = JobSubmissionClient(dashboard)

    assert main([*arguments(config, tmp_path), *submit]) == EXIT_DONE
    name = capsys.readouterr().out.split()[1]
    assert name.startswith("cong-train-run-")
    assert name.endswith("-1")
    assert main([*arguments(config, tmp_path), *submit]) == EXIT_DONE
    assert f"job {name} is " in capsys.readouterr().out
    assert [job.submission_id for job in client.list_jobs() if job.submission_id] == [name]

    eventually(lambda: last_step(config) >= 3 or client.get_job_status(name).is_terminal(), "three steps")
    assert client.get_job_status(name) == JobStatus.RUNNING, client.get_job_logs(name)
    client.stop_job(name)
    eventually(lambda: client.get_job_status(name).is_terminal(), "the job's end")
    logs = client.get_job_logs(name)
    assert client.get_job_status(name) == JobStatus.STOPPED, logs
    saved = last_step(config)
    assert checkpoints(config) == [saved]
    assert f"stopped and saved at step {saved} of {NUM_STEPS}; run it again to go on" in logs
    assert "kills this job after" not in logs

    stream.finish()
    alone = ["--set", "training_job.num_workers=1"]
    assert main([*arguments(config, tmp_path), *alone, *submit]) == EXIT_DONE
    name = capsys.readouterr().out.split()[1]
    assert name.endswith("-2")
    eventually(lambda: client.get_job_status(name).is_terminal(), "the job's end")
    logs = client.get_job_logs(name)
    assert client.get_job_status(name) == JobStatus.SUCCEEDED, logs
    assert f"going on from step {saved} of {NUM_STEPS}" in logs
    assert "was saved by another number of processes; converting it once" in logs
    assert f"model: {config.output_dir / 'model'}" in logs
    require_exact(config, stream.location)
