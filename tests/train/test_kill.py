"""`cong train` as a process: killed at any moment it goes on, and trains every record of a growing stream once."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from cong.config import RunConfig, dump_config
from cong.train.ledger import read_ledger
from cong.train.metrics import read_metrics
from cong.train.stopping import STOPPED_EXIT_CODE
from tests.train.runs import ledger_keys
from tests.train.worlds import network_folder, run_config, sample, stream_keys, write_samples

LIMIT_S = 120.0


def start(config: RunConfig, folder: Path) -> subprocess.Popen[str]:
    file = folder / "run.yaml"
    file.write_text(dump_config(config))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "cong.cli", "train", "--config", str(file)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def num_steps_logged(config: RunConfig) -> int:
    steps = [int(line["step"]) for line in read_metrics(config.output_dir / "metrics.jsonl")]
    return max(steps, default=0)


def wait_for_steps(config: RunConfig, process: subprocess.Popen[str], num_steps: int) -> None:
    """Until the run has done so many steps more, or ends."""
    until_s = time.monotonic() + LIMIT_S
    goal = num_steps_logged(config) + num_steps
    while num_steps_logged(config) < goal and process.poll() is None:
        assert time.monotonic() < until_s, "no step was done in time"
        time.sleep(0.01)


def kill_and_resume(root: Path, num_kills: int, num_records: int) -> None:
    network_folder(root / "network")
    location = root / "stream"
    write_samples(location, [sample(0)], "live000", is_closed=False)
    read = {"follow": {"poll_s": 0.02, "idle_timeout_s": LIMIT_S}, "max_records": num_records, "shuffle_rows": 0}
    config = run_config(
        root,
        {"batches": {"batch_size": 2}, "checkpoints": {"every_steps": 3, "every_s": 0.5}},
        stream={"location": str(location), "read": read},
    )
    rng = random.Random(7)
    is_over = threading.Event()

    def sampler() -> None:
        for number in range(1, num_records, 4):
            records = [
                sample(each % 200, sample_index=each // 200) for each in range(number, min(num_records, number + 4))
            ]
            write_samples(location, records, f"live{number:03d}")
            if is_over.wait(0.1):
                return

    thread = threading.Thread(target=sampler)
    thread.start()
    try:
        for _ in range(num_kills):
            process = start(config, root)
            wait_for_steps(config, process, rng.randint(1, 8))
            time.sleep(rng.random() * 0.2)
            process.kill()
            process.communicate(timeout=LIMIT_S)
            assert process.returncode in (-signal.SIGKILL, 0)
        process = start(config, root)
        _, errors = process.communicate(timeout=LIMIT_S)
    finally:
        is_over.set()
        thread.join(timeout=30)
    assert process.returncode == 0, errors
    trained = ledger_keys(config)
    assert trained == Counter(stream_keys(location))
    assert set(trained.values()) == {1}
    steps = [step for step, _ in read_ledger(config.output_dir / "ledger")]
    assert steps == list(range(1, len(steps) + 1))
    summary = json.loads((config.output_dir / "summary.json").read_text())
    assert summary["step"] == len(steps)


@pytest.mark.slow
def test_three_kills_lose_and_repeat_nothing(tmp_path: Path) -> None:
    kill_and_resume(tmp_path, num_kills=3, num_records=80)


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("CONG_LONG_TESTS"), reason="several minutes; set CONG_LONG_TESTS=1")
def test_twenty_kills_lose_and_repeat_nothing(tmp_path: Path) -> None:
    kill_and_resume(tmp_path, num_kills=20, num_records=320)


@pytest.mark.slow
def test_a_signal_saves_and_the_same_command_goes_on(tmp_path: Path) -> None:
    network_folder(tmp_path / "network")
    # The run waits for the other half of its samples until it is asked to stop.
    write_samples(tmp_path / "stream", (sample(number) for number in range(60)), "w", is_closed=False)
    read = {"follow": {"poll_s": 0.02, "idle_timeout_s": LIMIT_S}, "max_records": 120, "shuffle_rows": 0}
    config = run_config(
        tmp_path,
        {"batches": {"batch_size": 1}, "checkpoints": {"every_steps": 0}},
        stream={"location": str(tmp_path / "stream"), "read": read},
    )
    process = start(config, tmp_path)
    wait_for_steps(config, process, 5)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == STOPPED_EXIT_CODE, errors
    assert "the same command goes on" in errors
    saved = [step for step, _ in read_ledger(config.output_dir / "ledger")]
    assert len(saved) >= 5
    (checkpoint,) = (config.output_dir / "checkpoints").glob("step-*")
    assert checkpoint.name == f"step-{saved[-1]:08d}"
    write_samples(tmp_path / "stream", (sample(number) for number in range(60, 120)), "w2")
    process = start(config, tmp_path)
    _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, errors
    assert f"going on from step {saved[-1]} of 120" in errors
    trained = [key for _, keys in read_ledger(config.output_dir / "ledger") for key in keys]
    assert sorted(trained) == sorted(stream_keys(tmp_path / "stream"))
    assert len(trained) == 120
