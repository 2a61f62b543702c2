"""The training job on Ray: workers, drivers and notes die or are torn, and every record is still trained once."""

import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch

from cong.config import RunConfig
from cong.train.progress import Outcome
from cong.train.stopping import StopRequest
from jobs.claim import RunIsTaken
from jobs.train import EXIT_DONE, Failed, Fit, Job, Refused
from tests.jobs.training import (
    CHECKPOINTS_MIDWAY,
    LIMIT_S,
    NUM_RECORDS_MIDWAY,
    NUM_STEPS,
    GrowingStream,
    arguments,
    eventually,
    is_waiting_midway,
    job_config,
    last_step,
    require_exact,
    workers_of,
)
from tests.train.worlds import final_weights

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    # Ray's data library warns of its own settings.
    pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning:ray"),
]

SNAPSHOT = "checkpoint_manager_snapshot.json"
QUICK = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process that no test here needs
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
"""Ray Train looks at its workers more often and starts less."""


@pytest.fixture(autouse=True)
def quick_ray_train(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Train looks at its workers more often; and what the job sets in this process's environment goes again."""
    for name, value in QUICK.items():
        monkeypatch.setenv(name, value)
    for name in ("RAY_TRAIN_COLLECTIVE_TIMEOUT_S", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"):
        monkeypatch.setenv(name, "300")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("training")


@pytest.fixture(scope="module")
def undisturbed(ray_session: None, root: Path) -> RunConfig:
    """A run over a finished stream that nobody has touched."""
    stream = GrowingStream(root / "finished")
    stream.finish()
    config = job_config(root, "undisturbed", stream.location)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUICK.items():
            patch.setenv(name, value)
        outcome = run(config)
    assert outcome is not None
    assert outcome.is_finished
    return config


def run(config: RunConfig, stop: StopRequest | None = None) -> Outcome | None:
    """The job, driven by this process."""
    return Job(config, config.output_dir.parent).run(stop or StopRequest())


class Running:
    """The job in a thread."""

    def __init__(self, config: RunConfig) -> None:
        self.stop = StopRequest()
        self.outcome: Outcome | None = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(config,))
        self._thread.start()

    def _run(self, config: RunConfig) -> None:
        try:
            self.outcome = run(config, self.stop)
        except BaseException as error:  # noqa: BLE001 - judged by the test
            self.error = error

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is not None:
            self.stop.set()
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive()
        if error[0] is None and self.error is not None:
            raise self.error


def require_same_weights(config: RunConfig, undisturbed: RunConfig) -> None:
    ours, theirs = final_weights(config), final_weights(undisturbed)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())


def two_of(workers: list[psutil.Process]) -> list[psutil.Process]:
    return workers if len(workers) == 2 else []


def test_a_killed_worker_is_replaced_and_the_run_ends_as_the_undisturbed_one(
    root: Path, undisturbed: RunConfig, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    stream = GrowingStream(root / "killed-stream")
    stream.grow(NUM_RECORDS_MIDWAY)
    config = job_config(root, "killed", stream.location)
    with Running(config) as running:
        eventually(lambda: is_waiting_midway(config), "a step behind the checkpoints")
        random.choice(eventually(lambda: two_of(workers_of(psutil.Process())), "no other workers")).kill()
        stream.finish()
    outcome = running.outcome
    assert outcome is not None
    assert outcome.is_finished
    assert "going on from step" in caplog.text
    require_exact(config, stream.location)
    require_same_weights(config, undisturbed)
    shown = capfd.readouterr().err
    assert "training sft: done, 24" in shown
    assert "tokens_per_s=" in shown
    assert "bottleneck=" in shown


def driver(config: RunConfig, folder: Path) -> "subprocess.Popen[bytes]":
    import ray

    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "jobs.train", *arguments(config, folder)]
    return subprocess.Popen(command, env={**os.environ, "RAY_ADDRESS": address}, cwd=folder)


def test_a_killed_driver_is_followed_by_another_whatever_it_has_left(
    root: Path, undisturbed: RunConfig, caplog: pytest.LogCaptureFixture
) -> None:
    stream = GrowingStream(root / "orphaned-stream")
    stream.grow(NUM_RECORDS_MIDWAY)
    config = job_config(root, "orphaned", stream.location)
    first = driver(config, root)
    try:
        eventually(lambda: is_waiting_midway(config), "a step behind the checkpoints")
        eventually((config.output_dir / SNAPSHOT).exists, "Ray Train's list of checkpoints")
        # A second driver is told so and starts nothing.
        with pytest.raises(RunIsTaken, match=f"being trained by process {first.pid} "):
            run(config)
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait(30)
    eventually(lambda: not workers_of(psutil.Process()), "workers ending with their driver")
    older, newest = CHECKPOINTS_MIDWAY
    shutil.rmtree(config.output_dir / "checkpoints" / f"step-{newest:08d}")
    listed = config.output_dir / SNAPSHOT
    listed.write_bytes(listed.read_bytes()[:40])
    stream.finish()
    with caplog.at_level(logging.INFO):
        outcome = run(config)
    assert outcome is not None
    assert outcome.is_finished
    assert f"taking over from process {first.pid}" in caplog.text
    assert f"stepping back to step {older}" in caplog.text
    assert f"going on from step {older} of {NUM_STEPS}" in caplog.text
    require_exact(config, stream.location)
    require_same_weights(config, undisturbed)


def by_one_worker(config: RunConfig, **job: int) -> RunConfig:
    """What one finds, two find as well, and take longer to start."""
    alone = config.training_job.model_copy(update={"num_workers": 1, **job})
    return config.model_copy(update={"training_job": alone})


def test_a_finished_run_is_not_trained_again_whatever_ray_train_has_noted(undisturbed: RunConfig) -> None:
    (undisturbed.output_dir / SNAPSHOT).write_text("")
    before = (undisturbed.output_dir / "metrics.jsonl").read_bytes()
    outcome = run(by_one_worker(undisturbed))
    assert outcome is not None
    assert outcome.is_finished
    assert (undisturbed.output_dir / "metrics.jsonl").read_bytes() == before


def test_another_recipe_is_refused_by_name_and_not_tried_again(undisturbed: RunConfig) -> None:
    changed = undisturbed.model_copy(update={"train": undisturbed.train.model_copy(update={"seed": 5})})
    with pytest.raises(Refused, match=r"made by another recipe:\n  train.seed was 0 and is 5"):
        run(by_one_worker(changed))


def test_a_folder_that_a_worker_does_not_share_is_refused_with_its_name(root: Path, undisturbed: RunConfig) -> None:
    import ray

    from jobs.board import open_board
    from jobs.fitting import make_trainer

    config = by_one_worker(undisturbed, max_failures=0).model_copy(update={"output_dir": root / "unshared"})
    board = open_board()
    fit = Fit(make_trainer(config, board, root, "what nobody has written", seen_within_s=1.0))
    fit.wait(LIMIT_S)
    with pytest.raises(Failed):
        fit.outcome()
    refusal = ray.get(board.refusal.remote(), timeout=LIMIT_S)
    assert f"does not see in {config.output_dir} what the driver has written there" in refusal
    assert not (config.output_dir / "metrics.jsonl").exists()


def has_reached(config: RunConfig, process: "subprocess.Popen[bytes]", step: int) -> bool:
    assert process.poll() is None, "the driver has ended"
    return last_step(config) >= step


@pytest.mark.timeout(3600)
@pytest.mark.skipif(not os.environ.get("CONG_LONG_TESTS"), reason="many minutes; set CONG_LONG_TESTS=1")
def test_twenty_kills_of_workers_and_drivers_lose_and_repeat_nothing(root: Path, ray_session: None) -> None:
    num_kills, num_records = 20, 320
    rng = random.Random(11)
    stream = GrowingStream(root / "many-stream", num_records)
    job = {"max_failures": num_kills}
    train = {"checkpoints": {"every_steps": 2}}
    config = job_config(root, "many", stream.location, num_records, train=train, training_job=job)
    process = driver(config, root)
    try:
        for number in range(num_kills):
            stream.grow(num_records // (num_kills + 1))
            goal = (number + 1) * (num_records // (num_kills + 1)) // 2 - 1
            eventually(partial(has_reached, config, process, goal), f"step {goal}")
            if number % 5 == 4:
                process.kill()
                process.wait(30)
                process = driver(config, root)
            else:
                rng.choice(eventually(lambda: two_of(workers_of(psutil.Process())), "two workers")).kill()
        stream.finish()
        assert process.wait(LIMIT_S) == EXIT_DONE
    finally:
        process.kill()
        process.wait(30)
    require_exact(config, stream.location, num_records // 2)
