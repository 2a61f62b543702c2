"""What a job's configuration means on a cluster, and what in it cannot be; knows no Ray, and loads no torch."""

import re
from pathlib import Path

from cong.config import RunConfig
from cong.errors import ConfigError


def require_backend(config: RunConfig) -> None:
    """Refuse settings of `train` and `training_job` that contradict each other."""
    train, job, device = config.train, config.training_job, config.models.device
    if train.backend == "torch":
        if job.num_workers > 1:
            raise ConfigError(
                f"training_job.num_workers is {job.num_workers} and train.backend is 'torch', which trains in one "
                "process; set train.backend to deepspeed"
            )
        if bool(job.gpus_per_worker) != device.startswith("cuda"):
            raise ConfigError(
                f"training_job.gpus_per_worker is {job.gpus_per_worker} and models.device is {device!r}; set models."
                f"device to {'cuda' if job.gpus_per_worker else 'cpu'}, or change the number of GPUs"
            )
        if job.gpus_per_worker > 1:
            raise ConfigError(f"training_job.gpus_per_worker is {job.gpus_per_worker}; the torch backend uses one")
    elif job.gpus_per_worker > 1:
        raise ConfigError(
            f"training_job.gpus_per_worker is {job.gpus_per_worker}; each worker trains on one, so raise num_workers"
        )


def placed(config: RunConfig, folder: Path, *, is_unpacked: bool = False) -> RunConfig:
    """The configuration with absolute folders for what a run writes.

    `is_unpacked`: `folder` is Ray's copy of a submitted folder, which goes when the job is forgotten.
    """
    for name, path in (("output_dir", config.output_dir), ("cache_dir", config.cache_dir)):
        if re.match(r"[A-Za-z0-9+]+:/", str(path)):
            raise ConfigError(
                f"{name} is {path}; it must be a folder. train.checkpoints.upload copies checkpoints to a store"
            )
    root = config.training_job.storage_root
    if root is not None and not root.is_absolute():
        raise ConfigError(f"training_job.storage_root is {root}; give an absolute path")
    if root is None and is_unpacked and not config.output_dir.is_absolute():
        raise ConfigError(
            f"output_dir is {config.output_dir}, which would lie in the job's unpacked working_dir and vanish with it; "
            "give an absolute path, or set training_job.storage_root"
        )
    base = root or folder
    return config.model_copy(
        update={"output_dir": base / config.output_dir, "cache_dir": base / config.cache_dir},
    )


def require_storage(config: RunConfig) -> None:
    """Refuse a folder that this machine cannot write into, and a store of checkpoints that does not answer."""
    from cong.files import write_file
    from cong.train.remote import RemoteCheckpoints

    folder, settings = config.output_dir, config.train.checkpoints
    try:
        probe = folder / ".writable"
        write_file(probe, b"")
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(
            f"output_dir is {folder}, which cannot be written: {error}; give a folder that every machine sees, or set "
            "training_job.storage_root"
        ) from error
    if settings.upload:
        RemoteCheckpoints(settings.upload, settings.storage_options).steps()
