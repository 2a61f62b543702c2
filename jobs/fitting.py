"""A training job as Ray Train is to run it: the run's folder made ready, and the trainer itself."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray.train import FailureConfig, ScalingConfig
from ray.train import RunConfig as RayRunConfig
from ray.train.torch import TorchConfig, TorchTrainer

from cong.config import RunConfig
from cong.train.checkpoint import committed
from jobs.entry import work
from jobs.task import Task, write_token

logger = logging.getLogger(__name__)

SNAPSHOT = "checkpoint_manager_snapshot.json"
SEEN_WITHIN_S = 90.0
"""Clients of NFS may believe for a minute that a new file is not there."""
_LOOK_S = 0.02
_SHORTEST_LOOK_S, _LONGEST_LOOK_S = 0.3, 2.0


def prepare_folder(config: RunConfig) -> str:
    """Make the run's folder fit for a start; returns what workers must find there. Says what the run goes on from."""
    folder = config.output_dir
    # Ray Train's own list of checkpoints is written in place, so a crash can tear it, and a torn or outdated one stops
    # every later start. Nothing is read from it here.
    (folder / SNAPSHOT).unlink(missing_ok=True)
    steps = [checkpoint.step for checkpoint in committed(folder / "checkpoints")]
    if steps:
        logger.info("%s holds checkpoints up to step %d; each is checked before it is used", folder, max(steps))
    else:
        logger.info("%s holds no checkpoint", folder)
    return write_token(folder)


def say_what_is_there(config: RunConfig) -> None:
    """Log what the workers need and what the cluster has; a cluster may grow, so nothing is refused."""
    needed = {name: amount * config.training_job.num_workers for name, amount in config.training_job.resources.items()}
    there: Mapping[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    lacking = [f"{amount:g} {name} (there: {there.get(name, 0):g})" for name, amount in needed.items()]
    if any(there.get(name, 0.0) < amount for name, amount in needed.items()):
        logger.warning(
            "the cluster must grow before training can start: the workers need %s; waiting up to %.0f s",
            ", ".join(lacking),
            config.training_job.start_timeout_s,
        )


def make_trainer(
    config: RunConfig, board: Any, folder: Path, token: str, *, seen_within_s: float = SEEN_WITHIN_S
) -> TorchTrainer:
    """Ray Train around `work`; sets what Ray Train reads from this process's environment."""
    job, folder_of_run = config.training_job, config.output_dir
    timeout_s = max(1, round(config.train.deepspeed.timeout_s))
    os.environ.setdefault("RAY_TRAIN_COLLECTIVE_TIMEOUT_S", str(timeout_s))
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(job.start_timeout_s))
    # How often Ray Train looks at its workers: a death is seen then, and a checkpoint waits for it. A look costs a call
    # of each worker, so it looks less often where there are many.
    look_s = min(_LONGEST_LOOK_S, max(_SHORTEST_LOOK_S, job.num_workers * _LOOK_S))
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(look_s))
    # Names in a configuration are relative to where the driver was started, not to a folder of Ray Train's.
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    return TorchTrainer(
        work,  # type: ignore[arg-type]
        train_loop_config={"task": Task(config, board, str(folder), token, seen_within_s)},
        torch_config=TorchConfig(backend="nccl" if job.gpus_per_worker else "gloo", timeout_s=timeout_s),
        scaling_config=ScalingConfig(
            num_workers=job.num_workers,
            use_gpu=bool(job.gpus_per_worker),
            resources_per_worker=job.resources,
            placement_strategy=job.placement,
        ),
        run_config=RayRunConfig(
            # Ray Train's folder of a run is ours: only what lies in it can be reported without being copied.
            name=folder_of_run.name,
            storage_path=str(folder_of_run.parent),
            failure_config=FailureConfig(
                max_failures=job.max_failures,
                controller_failure_limit=job.max_failures,  # type: ignore[call-arg]
            ),
        ),
    )
