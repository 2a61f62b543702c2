"""Jobs of the command line, `ray job submit`, each followed to its end on a screen."""

import contextlib
import json
import re
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cong.config import RunConfig, dump_config
from cong.errors import CongError
from jobs import connection
from jobs.screen import Screen

_LIMIT_S = 1800.0
_READY_S = 90.0
_SAVE_S = 60.0
"""So long may a job take to save what it has when it is stopped."""
_NUM_TAIL = 25


class JobFailed(CongError):
    """A job did not succeed."""


class Jobs:
    """`ray job submit` and what it prints."""

    def __init__(self, url: str, folder: Path, screen: Screen) -> None:
        self._url = url
        self._folder = folder
        self._screen = screen

    def run(self, name: str, config: RunConfig, *options: str) -> None:
        """Submit the pipeline and follow it to its end; stopped with whoever waits for it."""
        log = config.output_dir / f"{name}.log"
        package = self._folder / name
        package.mkdir()
        (package / "run.yaml").write_text(dump_config(config), encoding="utf-8")
        wait_s = str(round(config.training_job.grace_s + _SAVE_S))
        # Nobody takes this machine back, so that no process needs to watch for it.
        environment = {"env_vars": {connection.STOP_WAIT_VARIABLE: wait_s, "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}}
        command = ["ray", "job", "submit", "--address", self._url, "--submission-id", name, "--no-wait"]
        command += ["--working-dir", str(package), "--runtime-env-json", json.dumps(environment)]
        command += ["--", "python", "-m", "jobs.pipeline", "--config", "run.yaml", *options]
        self._screen.say(f"$ ray job submit --submission-id {name} -- {' '.join(command[command.index('--') + 1 :])}")
        try:
            self._submit(command)
            with log.open("w", encoding="utf-8") as file:
                for line in self._lines(name):
                    file.write(line)
                    self._show(line.rstrip().replace(f"{config.output_dir}/", ""))
            self._require_success(name, log)
        except BaseException:
            self._stop(name)
            raise
        finally:
            self._screen.watch("")

    def _submit(self, command: Sequence[str]) -> None:
        until_s = time.monotonic() + _READY_S
        while True:
            # A session of its own: Ctrl-C is for whoever submits, which then ends its jobs in order.
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_READY_S, check=False, start_new_session=True
            )
            if not done.returncode:
                return
            # A Ray that has just started says so.
            if connection.TRY_AGAIN not in done.stderr or time.monotonic() > until_s:
                raise JobFailed(f"`{' '.join(command[:3])}` failed: {(done.stderr or done.stdout).strip()[-2000:]}")
            time.sleep(1.0)

    def _lines(self, name: str) -> Iterator[str]:
        """What the job says, until its end."""
        command = ["ray", "job", "logs", "--address", self._url, "--follow", name]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        guard = threading.Timer(_LIMIT_S, process.kill)
        guard.start()
        try:
            assert process.stdout is not None
            yield from process.stdout
        finally:
            guard.cancel()
            process.kill()
            process.communicate()

    def _show(self, line: str) -> None:
        """A line of a job's log, for people."""
        if found := re.fullmatch(r"\S+ \S+ (INFO|WARNING|ERROR) (cong|jobs)\.\S+: (.*)", line):
            if found[1] == "INFO":
                self._screen.say(f"  {found[3]}", "" if ": complete after" in line else "dim")
            else:
                self._screen.say(f"  {found[3]}", "yellow")
        elif re.match(r"[\w -]+: (started|done|[\d,]+ of )", line):
            self._screen.watch(line)

    def _require_success(self, name: str, log: Path) -> None:
        status = self._status(name)
        until_s = time.monotonic() + _SAVE_S
        while not status.is_terminal() and time.monotonic() < until_s:
            time.sleep(0.2)
            status = self._status(name)
        if status.value != "SUCCEEDED":
            tail = "\n".join(f"  | {line}" for line in log.read_text(encoding="utf-8").splitlines()[-_NUM_TAIL:])
            raise JobFailed(f"job {name} has {status.value.lower()}; its log is {log} and ends\n{tail}")

    def _stop(self, name: str) -> None:
        """Let it save, and wait for that."""
        from ray.job_submission import JobSubmissionClient

        with contextlib.suppress(RuntimeError, ConnectionError):
            client = JobSubmissionClient(self._url)
            if not client.get_job_status(name).is_terminal():
                self._screen.say(f"stopping job {name}; it saves what it has")
                client.stop_job(name)
            until_s = time.monotonic() + _SAVE_S
            while not client.get_job_status(name).is_terminal() and time.monotonic() < until_s:
                time.sleep(0.2)

    def _status(self, name: str) -> Any:
        from ray.job_submission import JobSubmissionClient

        return JobSubmissionClient(self._url).get_job_status(name)
