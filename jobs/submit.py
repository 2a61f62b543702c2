"""A run as a job of a cluster: submitted once, however often it is asked for.

The id of a submission is made of the kind of job, the run's folder and a number, and a cluster takes an id once: while
a run's job is waiting or running, submitting it again only says so.
"""

import hashlib
import math
import os
import re
import shlex
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cong.config import RunConfig, dump_config
from cong.errors import ConfigError
from cong.wording import brought_by
from jobs.connection import STOP_WAIT_VARIABLE, TRY_AGAIN
from jobs.planning import placed

with brought_by("train"):
    from ray.job_submission import JobDetails, JobSubmissionClient

_URL_VARIABLE = "RAY_API_SERVER_ADDRESS"
_READY_S = 90.0
_POLL_S = 1.0
_SPARE_S = 30.0
"""What `ray job stop` waits beyond the time that saving may take."""


def submit(config: RunConfig, url: str, job: str, grace_s: float, options: Sequence[str] = ()) -> int:
    """Submit a run of `jobs.<job>` to the cluster behind a dashboard, unless it is there; returns the exit code.

    `grace_s`: so long it may take to save its work when it is stopped.
    """
    folder = placed(config, Path(), is_unpacked=True).output_dir
    try:
        client = _client(url)
        former = _submissions(client.list_jobs(), job, folder)
        if alive := [one for _, one in former if not one.status.is_terminal()]:
            return _say(
                alive[-1].submission_id or "", url, f"is {alive[-1].status.value.lower()}; nothing was submitted"
            )
        name = f"{_prefix(job, folder)}-{former[-1][0] + 1 if former else 1}"
        with tempfile.TemporaryDirectory() as package:
            (Path(package) / "run.yaml").write_text(dump_config(config), encoding="utf-8")
            wait_s = math.ceil(grace_s + _SPARE_S)
            _submit(
                client,
                entrypoint=shlex.join(["python", "-m", f"jobs.{job}", "--config", "run.yaml", *options]),
                submission_id=name,
                runtime_env={"working_dir": package, "env_vars": {STOP_WAIT_VARIABLE: str(wait_s)}},
                metadata={"output_dir": str(folder)},
            )
    except ConnectionError as error:
        raise ConfigError(f"no dashboard of a cluster answers at {url}: {error}") from error
    except RuntimeError as error:
        if "already exists" not in str(error):
            raise ConfigError(f"{url} does not take the job: {error}") from error
        return _say(name, url, "has been submitted a moment ago")
    return _say(name, url, "is submitted")


def _submit(client: JobSubmissionClient, **job: Any) -> None:
    """Submit, and again while a cluster that has just started asks for that; an id makes sure that it counts once."""
    until_s = time.monotonic() + _READY_S
    while True:
        try:
            client.submit_job(**job)
            return
        except RuntimeError as error:
            if TRY_AGAIN not in str(error) or time.monotonic() > until_s:
                raise
        time.sleep(_POLL_S)


def _client(url: str) -> JobSubmissionClient:
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"--submit is {url!r}; give the dashboard's address, such as http://127.0.0.1:8265")
    # Ray prefers an address in the environment to one that it is given.
    former = os.environ.get(_URL_VARIABLE)
    os.environ[_URL_VARIABLE] = url
    try:
        return JobSubmissionClient(url)
    finally:
        if former is None:
            del os.environ[_URL_VARIABLE]
        else:
            os.environ[_URL_VARIABLE] = former


def _say(name: str, url: str, what: str) -> int:
    print(f"job {name} {what}")
    print(f"  ray job logs --address {url} --follow {name}")
    print(f"  ray job stop --address {url} {name}     saves; the same submission goes on")
    return 0


def _prefix(job: str, folder: Path) -> str:
    """The same for every submission of a run, and for no other run."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", folder.name).strip("-")
    return f"cong-{job}-{name}-{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"


def _submissions(jobs: Sequence[JobDetails], job: str, folder: Path) -> list[tuple[int, JobDetails]]:
    """Every submission of a run that the cluster remembers, by its number."""
    pattern = re.compile(f"{re.escape(_prefix(job, folder))}-(\\d+)")
    matches = ((pattern.fullmatch(one.submission_id or ""), one) for one in jobs)
    return sorted(((int(match[1]), one) for match, one in matches if match), key=lambda found: found[0])
