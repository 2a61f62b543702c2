"""What every worker of a training job does: check that all see the same folder, train, and tell the driver.

Imports Ray; the training itself is `cong.train.run`, which does not.
"""

import errno
import fcntl
import logging
import os
import socket
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

import ray
import ray.train
import torch
from ray.train import Checkpoint, CheckpointUploadMode
from ray.train.collective import barrier, broadcast_from_rank_zero

from cong.config import RunConfig
from cong.errors import CheckpointError, ConfigError, CongError, MissingExtra, ModelError
from cong.files import write_file
from cong.train.backend import BackendFactory
from cong.train.loop import StepReport
from cong.train.progress import Outcome, Progress
from cong.train.run import train
from cong.train.stopping import StopRequest
from jobs.board import ANSWER_LIMIT_S, Messenger, Numbers
from jobs.claim import FOLDER
from jobs.task import TOKEN, Task

logger = logging.getLogger(__name__)

_FREE_WITHIN_S = 60.0
_POLL_S = 0.2


class _Stop(StopRequest):
    """Set by the driver instead of by a signal, which no worker gets."""

    def __init__(self, messenger: Messenger) -> None:
        super().__init__()
        self._messenger = messenger

    @property
    def is_set(self) -> bool:
        return self._messenger.stop_asked.is_set()


class _Speaker:
    """Tells the driver of every step; an observer of the loop on rank 0."""

    def __init__(self, messenger: Messenger, *, is_first: bool) -> None:
        self._messenger = messenger
        self._is_first = is_first
        self.has_stepped = False

    def __call__(self, progress: Progress, report: StepReport) -> None:
        self.has_stepped = True
        if self._is_first:
            self._messenger.show(
                Numbers(
                    progress.step, progress.num_steps, report.loss, report.num_tokens, report.wait_s, report.compute_s
                )
            )


def train_together(task: Task) -> Outcome | None:
    """Train on every worker of a group; None where a person has to put something right first."""
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    if ray.get(task.board.refusal.remote(), timeout=ANSWER_LIMIT_S) is not None:
        return None  # the attempt before this one met it
    messenger = Messenger(task.board, f"rank {rank} of {world_size}: " if rank else "")
    messenger.setLevel(logging.WARNING if rank else logging.INFO)
    ours = [logging.getLogger(name) for name in ("cong", "jobs")]
    for each in ours:
        each.setLevel(logging.INFO)
        each.addHandler(messenger)
    speaker = _Speaker(messenger, is_first=rank == 0)
    messenger.start()
    try:
        return _train(task, rank, world_size, messenger, speaker)
    except CongError as error:
        where = f"rank {rank} of {world_size} on {socket.gethostname()}"
        if is_final(error, has_stepped=speaker.has_stepped):
            reason = f"{error}" if rank == 0 else f"{where}: {error}"
            ray.get(task.board.refuse.remote(reason), timeout=ANSWER_LIMIT_S)
        else:
            logger.warning("%s: %s", where, error)
        raise
    finally:
        messenger.finish()
        for each in ours:
            each.removeHandler(messenger)


def is_final(error: CongError, *, has_stepped: bool) -> bool:
    """Whether starting again must meet the same error; what fails later may have come from a machine or a store."""
    if isinstance(error, CheckpointError):
        return not has_stepped
    return isinstance(error, ConfigError | ModelError | MissingExtra) or type(error) is CongError


def _train(task: Task, rank: int, world_size: int, messenger: Messenger, speaker: _Speaker) -> Outcome:
    config = task.config
    if os.path.isdir(task.folder):
        os.chdir(task.folder)
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    require_same_folder(task, rank, world_size)
    if rank == 0:
        wait_until_free(config.output_dir / "run.lock")
        logger.info("%d worker(s) have started", world_size)
    return train(
        config,
        _backend(config),
        report=_report,
        stop=_Stop(messenger),
        observers=[speaker],
        is_quiet=True,
    )


def _backend(config: RunConfig) -> BackendFactory | None:
    """None: the torch backend, whose device the configuration names."""
    if config.train.backend == "torch":
        return None
    if not config.training_job.gpus_per_worker:
        os.environ["DS_ACCELERATOR"] = "cpu"
    from cong.train.deepspeed_backend import DeepSpeedBackend

    return DeepSpeedBackend


def _report(metrics: Mapping[str, float], folder: Path) -> None:
    """Tell Ray Train of a committed checkpoint: where it lies, and no more. Called on every rank."""
    ray.train.report(
        dict(metrics), checkpoint=Checkpoint(str(folder)), checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD
    )


def require_same_folder(task: Task, rank: int, world_size: int) -> None:
    """Refuse unless this worker can write into the run's folder and sees what all others and the driver have written.

    Whatever is missing is waited for a little: network file systems show new files late.
    """
    folder, token = task.config.output_dir, task.token
    attempt: str = broadcast_from_rank_zero(uuid.uuid4().hex)
    probes = [folder / FOLDER / f"probe-{attempt}-{other:05d}" for other in range(world_size)]
    here = f"rank {rank} on {socket.gethostname()}"
    remedy = "output_dir must be a folder that every machine sees and may write to; set training_job.storage_root"
    try:
        write_file(probes[rank], token.encode())
    except OSError as error:
        raise ConfigError(f"{here} cannot write into {folder}: {error}; {remedy}") from error
    barrier()
    until_s = time.monotonic() + task.seen_within_s
    makers = {folder / FOLDER / TOKEN: "the driver", **{path: f"rank {number}" for number, path in enumerate(probes)}}
    while missing := [maker for path, maker in makers.items() if not _holds(path, token)]:
        if time.monotonic() > until_s:
            raise ConfigError(f"{here} does not see in {folder} what {missing[0]} has written there; {remedy}")
        time.sleep(_POLL_S)
    barrier()
    probes[rank].unlink(missing_ok=True)


def wait_until_free(lock: Path, limit_s: float = _FREE_WITHIN_S) -> None:
    """Wait for a worker of a run that was ended to be gone; the run itself refuses if one is still there."""
    until_s = time.monotonic() + limit_s
    is_announced = False
    while lock.exists() and time.monotonic() < until_s:
        with lock.open("r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    return  # the file system has no locks, and the run says so
        if not is_announced:
            logger.info("waiting for a worker of an earlier start to end")
            is_announced = True
        time.sleep(_POLL_S)


def _holds(path: Path, token: str) -> bool:
    try:
        return path.read_text(encoding="utf-8") == token
    except (FileNotFoundError, OSError):
        return False
