"""Which Ray a job's driver talks to: the one that it was submitted to, the one that runs here, or a private one.

Ray reads its environment when it is imported, so this module imports it only in functions.
"""

import json
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from cong.config import RunConfig
from cong.errors import ConfigError
from cong.wording import brought_by
from serve.private import make_private

JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
STOP_WAIT_VARIABLE = "RAY_JOB_STOP_WAIT_TIME_S"
TRY_AGAIN = "try again later"
"""What a cluster says that has just started and cannot take a job yet."""
_STOP_WAIT_S = 3.0
_OBJECT_STORE_BYTES = 150 << 20

logger = logging.getLogger("jobs")


@contextmanager
def connected(config: RunConfig, *, is_local: bool) -> Iterator[None]:
    """Ray for as long as the context lasts; leaving it ends everything that the driver has started."""
    with _private_folder() if is_local else nullcontext() as folder:
        with brought_by("train"):
            import ray

        try:
            if folder is not None:
                job = config.training_job
                ray.init(
                    "local",
                    num_cpus=max(os.cpu_count() or 1, round(job.num_workers * job.cpus_per_worker + 0.5)),
                    resources={name: amount * job.num_workers for name, amount in job.resources_per_worker.items()},
                    include_dashboard=False,
                    log_to_driver=False,
                    object_store_memory=_OBJECT_STORE_BYTES,
                    logging_level=logging.WARNING,
                    _node_ip_address="127.0.0.1",
                    _temp_dir=str(folder),
                )
            else:
                try:
                    # What workers say comes over the board; what Ray's own processes say stays in their logs.
                    ray.init(os.environ.get("RAY_ADDRESS", "auto"), log_to_driver=False, logging_level=logging.WARNING)
                except ConnectionError as error:
                    raise ConfigError(
                        f"no Ray cluster can be reached ({error}); submit this as a job, start a cluster with "
                        "`ray start --head`, or give --local"
                    ) from error
            yield
        finally:
            ray.shutdown()


@contextmanager
def _private_folder() -> Iterator[Path]:
    """With the token of a Ray that nobody else may use; its path is short, because those of sockets must be."""
    name = f"cong-ray-{os.getpid()}-"
    with tempfile.TemporaryDirectory(prefix=name, dir="/tmp", ignore_cleanup_errors=True) as folder:
        make_private(Path(folder))
        yield Path(folder)


def add_submit(parser: Any) -> None:
    """`--submit`, the same for every job; `parser` may also be a group of options."""
    parser.add_argument(
        "--submit", metavar="URL", help="submit as a job to this dashboard, unless it runs there already"
    )


def submission() -> str:
    """The id under which this process was submitted; empty where it was not."""
    try:
        return str(json.loads(os.environ[JOB_VARIABLE])["metadata"]["job_submission_id"])
    except (KeyError, ValueError):
        return ""


def stop_wait_s() -> float | None:
    """So long `ray job stop` waits before it kills this process; None where it was not submitted."""
    if JOB_VARIABLE not in os.environ:
        return None
    return float(os.environ.get(STOP_WAIT_VARIABLE) or _STOP_WAIT_S)


def warn_of_early_kill(setting: str, grace_s: float) -> None:
    """Say so where `ray job stop` would kill this process while it still saves its work."""
    wait_s = stop_wait_s()
    if wait_s is not None and wait_s < grace_s:
        logger.warning(
            "`ray job stop` kills this job after %g s, and saving may take %s = %g s; submit with %s in the runtime "
            "environment's env_vars",
            wait_s,
            setting,
            grace_s,
            STOP_WAIT_VARIABLE,
        )


def is_unpacked(folder: Path) -> bool:
    """Whether a folder is Ray's copy of one that was submitted."""
    return "runtime_resources" in folder.parts
