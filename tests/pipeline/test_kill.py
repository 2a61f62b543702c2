"""`cong pipeline run` as a process: killed at any moment and run again, it ends where an undisturbed run ends."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cong.config import RunConfig, dump_config
from cong.pipeline import Board
from cong.stream import StreamReader, open_store
from tests.pipeline.conftest import Configure, rewards, states

LIMIT_S = 240.0


def start(config: RunConfig, folder: Path) -> subprocess.Popen[bytes]:
    file = folder / "run.yaml"
    file.write_text(dump_config(config))
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "cong.cli", "pipeline", "run", "--config", str(file)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
        )


def num_files(config: RunConfig) -> int:
    """Grows with every segment and mark; files that vanish while it looks do not matter."""
    return sum(len(files) for folder, _, files in os.walk(config.output_dir / "stages") if "checkpoints" not in folder)


def kill_at(config: RunConfig, process: subprocess.Popen[bytes], goal: int, pause_s: float) -> bool:
    """Kill once so many files are there; False where it ended before."""
    until_s = time.monotonic() + LIMIT_S
    while num_files(config) < goal and process.poll() is None:
        assert time.monotonic() < until_s, "nothing happens"
        time.sleep(0.005)
    time.sleep(pause_s)
    is_alive = process.poll() is None
    process.kill()
    process.wait(30.0)
    return is_alive


def run_to_the_end(config: RunConfig, folder: Path) -> None:
    process = start(config, folder)
    try:
        assert process.wait(LIMIT_S) == 0, (folder / "log").read_text()[-4000:]
    finally:
        process.kill()


def stream_keys(config: RunConfig) -> dict[str, list[str]]:
    """Keys of every stream in order, by stage; the same record twice would be there twice."""
    return {
        one.stage.name: [record.key for record in StreamReader(open_store(str(one.folder / "stream"))).records()]
        for one in Board(config).survey()
        if one.stage.kind == "sample" and one.folder is not None
    }


def network_fingerprints(config: RunConfig) -> dict[str, str]:
    return {
        one.stage.name: one.marker.fingerprint
        for one in Board(config).survey()
        if one.stage.kind == "train" and one.marker is not None
    }


def require_same(config: RunConfig, undisturbed: RunConfig) -> None:
    assert set(states(config).values()) == {"done"}
    assert stream_keys(config) == stream_keys(undisturbed)
    assert network_fingerprints(config) == network_fingerprints(undisturbed)
    assert rewards(config) == rewards(undisturbed)


def kill_and_run_again(config: RunConfig, undisturbed: RunConfig, folder: Path, num_kills: int, seed: int) -> None:
    rng = random.Random(seed)
    num_killed = 0
    # Somewhere in each part of the way.
    most = 0.95 * num_files(undisturbed)
    for number in range(num_kills):
        process = start(config, folder)
        try:
            goal = round(most * (number + rng.random()) / num_kills)
            num_killed += kill_at(config, process, goal, rng.random() * 0.05)
        finally:
            process.kill()
            process.wait(30.0)
    assert num_killed >= num_kills - 1, "the run was too quick to be killed"
    run_to_the_end(config, folder)
    require_same(config, undisturbed)


@pytest.mark.slow
def test_three_kills_change_nothing(configure: Configure, undisturbed: RunConfig, tmp_path: Path) -> None:
    kill_and_run_again(configure(), undisturbed, tmp_path, num_kills=3, seed=1)


@pytest.mark.slow
def test_kills_of_a_run_with_a_process_per_stage_change_nothing(
    configure: Configure, undisturbed: RunConfig, tmp_path: Path
) -> None:
    config = configure({"pipeline": {"executor": "subprocess", "overlaps": True}})
    kill_and_run_again(config, undisturbed, tmp_path, num_kills=2, seed=2)


@pytest.mark.slow
def test_a_run_that_is_asked_to_stop_goes_on_where_it_was(
    configure: Configure, undisturbed: RunConfig, tmp_path: Path
) -> None:
    config = configure()
    process = start(config, tmp_path)
    try:
        goal, until_s = 12, time.monotonic() + LIMIT_S
        while num_files(config) < goal:
            assert time.monotonic() < until_s
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60.0) == 75
    finally:
        process.kill()
    assert "the same command goes on" in (tmp_path / "log").read_text()
    run_to_the_end(config, tmp_path)
    require_same(config, undisturbed)
