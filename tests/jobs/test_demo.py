"""`make demo`'s command: the real stack, stopped in the middle, run again to the end, and nothing left either time."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from cong.config import RunConfig
from jobs.demo import EXIT_DONE, EXIT_STOPPED, EXIT_WRONG, main
from tests.client.service_process import ROOT
from tests.jobs.training import LIMIT_S, eventually, workers_of
from tests.processes import alive, below, kill

SMALL = {
    "lab.num_training_prompts": 48,
    "lab.alignment.num_pairs": 320,
    "lab.evaluation.num_prompts": 16,
    "evaluation.num_resamples": 100,
    "train.batches.batch_size": 8,
    "train.checkpoints.every_steps": 5,
    "pipeline.align.batch_size": 2,
    "pipeline.methods": "[cong]",
    "pipeline.gold_answers": "null",
    "stream.read.shuffle_rows": 8,
}


@contextmanager
def demo(folder: Path, screen: Path) -> Iterator["subprocess.Popen[bytes]"]:
    # Where what other tests have compiled lies.
    settings = {**SMALL, "cache_dir": ROOT / RunConfig().cache_dir}
    options = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    with screen.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "jobs.demo", "--output-dir", str(folder / "out"), *options],
            cwd=folder,
            env={**os.environ, "HOME": str(folder), "PYTHONPATH": str(ROOT), "RAY_ADDRESS": "127.0.0.1:1"},
            stdout=file,
            stderr=file,
        )
    try:
        yield process
    finally:
        kill(below(process))
        process.kill()
        process.wait(30.0)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(2000)
def test_stopped_and_run_again_it_ends_with_a_report_and_leaves_nothing_running(
    ray_session: None, tmp_path: Path
) -> None:
    import ray

    out, screen = tmp_path / "out", tmp_path / "screen"
    with demo(tmp_path, screen) as process:
        saved = "stages/align-weak/*/checkpoints/step-*/COMMITTED"
        eventually(lambda: list(out.glob(saved)) or process.poll() is not None, "a checkpoint")
        assert process.poll() is None, screen.read_text()
        started = below(process)
        assert workers_of(psutil.Process(process.pid))
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT_S) == EXIT_STOPPED, screen.read_text()
    said = screen.read_text()
    assert "it saves what it has" in said
    assert "the same command goes on" in said
    eventually(lambda: not alive(started), "what it had started has ended")

    log = out / "demo-pipeline.log"
    with demo(tmp_path, screen) as process:
        trains = "2 worker(s)"
        eventually(lambda: trains in (log.read_text() if log.exists() else "") or process.poll() is not None, trains)
        started = below(process)
        assert process.wait(2 * LIMIT_S) == EXIT_DONE, screen.read_text()
    assert "going on from step" in (out / "demo-align.log").read_text()
    assert "follows sample" in log.read_text()
    said = screen.read_text()
    for word in ("weak aligned", "ConG-S", "gold reward", "nothing that was started is left", "report.html"):
        assert word in said
    assert "<svg" in (out / "report.html").read_text()
    eventually(lambda: not alive(started), "what it had started has ended")
    assert not (tmp_path / ".ray").exists(), "no token in the home folder"
    # Another Ray of this machine, which was here before.
    assert ray.get(ray.remote(lambda: 7).options(num_cpus=0.1).remote(), timeout=60.0) == 7


def test_a_misspelt_setting_is_named_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert main(["--output-dir", str(tmp_path / "out"), "--set", "pipeline.methds=[cong]"]) == EXIT_WRONG
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "nearest known one is 'pipeline.methods'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
