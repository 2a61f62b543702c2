"""Jobs as `ray job submit` runs them: once however often they are submitted, saved when they are stopped."""

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.job_submission import JobStatus, JobSubmissionClient

from cong.evaluation import EvaluationResult
from cong.lab.bases import SHIPPED
from jobs.machine import Machine
from jobs.train import EXIT_DONE, main
from tests.client.service_process import ROOT, HeldService
from tests.jobs.training import (
    LIMIT_S,
    NUM_RECORDS_MIDWAY,
    NUM_STEPS,
    GrowingStream,
    arguments,
    checkpoints,
    eventually,
    job_config,
    last_step,
    require_exact,
)

pytestmark = [pytest.mark.ray, pytest.mark.slow]

CLONED = "this is the clone"


@pytest.fixture(scope="module")
def dashboard() -> Iterator[str]:
    """The address of a cluster's dashboard."""
    folder = Path(tempfile.mkdtemp(prefix="cj-", dir="/tmp"))
    environment = {
        "HOME": str(folder),
        "OMP_NUM_THREADS": "1",
        # A job's own `python` is this one.
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",
    }
    try:
        with Machine(folder, "head", num_cpus=4, has_dashboard=True, environment=environment) as machine:
            yield machine.dashboard_url
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree as somebody gets it who clones it now, with a word of its own."""
    folder = tmp_path_factory.mktemp("clone")
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", "cong", "jobs", "serve"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    with (folder / "jobs" / "__init__.py").open("a") as file:
        file.write(f"import sys\n\nprint({CLONED!r}, file=sys.stderr)\n")
    return folder


def ray_job(folder: Path, dashboard: str, *words: str) -> "subprocess.CompletedProcess[str]":
    """Ray's own command, in a folder."""
    ray = str(Path(sys.executable).parent / "ray")
    command = [ray, "job", words[0], "--address", dashboard, *words[1:]]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=LIMIT_S)


def submit_as_documented(folder: Path, dashboard: str, name: str, module: str) -> "subprocess.CompletedProcess[str]":
    """The line of docs/jobs.md."""
    environment = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}})
    options = ["--submission-id", name, "--no-wait", "--working-dir", ".", "--runtime-env-json", environment]
    return ray_job(folder, dashboard, "submit", *options, "--", "python", "-m", module, "--config", "run.yaml")


def ended(client: JobSubmissionClient, name: str) -> tuple[JobStatus, str]:
    """How a job has ended, and what it has said."""
    eventually(lambda: client.get_job_status(name).is_terminal(), f"the end of {name}")
    return client.get_job_status(name), client.get_job_logs(name)


def test_a_sampling_job_from_a_clone_runs_once_saves_when_stopped_and_goes_on(
    dashboard: str, clone: Path, tmp_path: Path
) -> None:
    words = ["abcdefghij"[number // 10] + "klmnopqrst"[number % 10] for number in range(60)]
    rows = [{"prompt": f"say {word}", "prompt_id": f"p{number}"} for number, word in enumerate(words)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    client = JobSubmissionClient(dashboard)
    with HeldService(tmp_path) as service, ThreadPoolExecutor(1) as pool:
        content = {
            "output_dir": str(tmp_path / "run"),
            "sampling": {"max_tokens": 8},
            "sampling_job": {
                "url": service.url,
                "prompts": {"source": str(tmp_path / "prompts.jsonl")},
                "store": "local",
                "in_flight": 1,
                "grace_s": 50,
            },
        }
        (clone / "run.yaml").write_text(yaml.safe_dump(content))
        service.max_records = 4
        eventually(lambda: submit_as_documented(clone, dashboard, "sample-1", "jobs.sample").returncode == 0, "a job")
        again = submit_as_documented(clone, dashboard, "sample-1", "jobs.sample")
        assert again.returncode != 0
        assert "already exists" in again.stdout + again.stderr
        eventually(lambda: len(service.records()) == 4, "samples")
        stopping = pool.submit(ray_job, clone, dashboard, "stop", "sample-1")
        eventually(lambda: "asked to stop by SIGTERM" in client.get_job_logs("sample-1"), "the job hears of it")
        service.max_records = math.inf
        assert stopping.result().returncode == 0
        status, logs = ended(client, "sample-1")
        assert status == JobStatus.STOPPED, logs
        assert "stopped by SIGTERM; 0 prompts were cut off" in logs
        assert CLONED in logs
        num_saved = len(service.records())
        assert 0 < num_saved < len(rows)
        assert submit_as_documented(clone, dashboard, "sample-2", "jobs.sample").returncode == 0
        status, logs = ended(client, "sample-2")
        assert status == JobStatus.SUCCEEDED, logs
        assert f"{len(rows) - num_saved} prompts done" in logs
        records = service.records()
    assert sorted(record.prompt.prompt_id for record in records) == sorted(str(row["prompt_id"]) for row in rows)


def test_a_pipeline_and_an_evaluation_are_submitted_once(
    dashboard: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from jobs import evaluate, pipeline

    said = {"good": ">abdfg.", "bad": "!dbgaf;ab"}
    (tmp_path / "held-out.jsonl").write_text('{"prompt": "Sdbgaf=", "prompt_id": "p"}\n')
    for name, text in said.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt_id": "p", "answer": text}) + "\n")
    base = {"source": str(SHIPPED / "weak_base")}
    content: dict[str, Any] = {
        "output_dir": str(tmp_path / "out"),
        "num_threads": 1,
        "models": {"aligned": base, "base": {"source": str(SHIPPED / "strong_base")}, "strong": base},
        "sampling": {"max_tokens": 4},
        "pipeline": {"methods": ["cong"], "prompts": {"source": str(tmp_path / "held-out.jsonl")}},
        "evaluation": {
            "prompts": str(tmp_path / "held-out.jsonl"),
            "candidates": {name: {"answers": str(tmp_path / f"{name}.jsonl")} for name in said},
            "judges": {"gold": {"kind": "program", "function": "cong.lab.world:gold_reward"}},
            "num_resamples": 100,
        },
    }
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(content))
    client = JobSubmissionClient(dashboard)
    names = []
    until = ["--until", "sample"]
    for run, options in ((evaluate.main, []), (pipeline.main, until)):
        command = ["--config", str(file), *options, "--submit", dashboard]
        assert run(command) == EXIT_DONE
        names.append(capsys.readouterr().out.split()[1])
        assert run(command) == EXIT_DONE
        assert "nothing was submitted" in (told := capsys.readouterr().out) or f"job {names[-1][:-1]}2" in told
    for name in names:
        status, logs = ended(client, name)
        assert status == JobStatus.SUCCEEDED, logs
    assert EvaluationResult.model_validate_json((tmp_path / "out" / "evaluation.json").read_text()).num_prompts == 1
    assert len(list((tmp_path / "out" / "stages" / "sample").glob("*/complete.json"))) == 1


def test_a_submitted_run_runs_once_saves_when_stopped_and_goes_on_with_fewer_workers(
    dashboard: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = GrowingStream(tmp_path / "stream")
    stream.grow(NUM_RECORDS_MIDWAY)
    config = job_config(tmp_path, "run", stream.location, train={"checkpoints": {"every_steps": 0}})
    submit = ["--submit", dashboard]
    client = JobSubmissionClient(dashboard)

    assert main([*arguments(config, tmp_path), *submit]) == EXIT_DONE
    name = capsys.readouterr().out.split()[1]
    assert name.startswith("cong-train-run-")
    assert name.endswith("-1")
    assert main([*arguments(config, tmp_path), *submit]) == EXIT_DONE
    assert f"job {name} is " in capsys.readouterr().out
    names = [job.submission_id for job in client.list_jobs() if job.submission_id]
    assert [each for each in names if each.startswith("cong-train")] == [name]

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
