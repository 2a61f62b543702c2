"""Who does the work of a task: this process, or a process of its own; a cluster's executor lies with the jobs.

An executor starts a task and is asked for its end. Knows no order of stages.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from cong.errors import PipelineError
from cong.pipeline.stopping import StoppedEarly
from cong.pipeline.task import Task
from cong.pipeline.work import perform
from cong.train.stopping import STOPPED_EXIT_CODE, StopRequest

_LOOK_S = 0.1
_STDIN = 0
STOP_GRACE_S = 600.0
"""So long may a process take to save its work after it was asked to stop."""


class Running(Protocol):
    """A task at work."""

    def wait(self) -> None:
        """Return at its end; raises its failure, or `StoppedEarly`."""
        ...

    def end(self) -> None:
        """End it at once; what it has kept stays."""
        ...


class Executor(Protocol):
    """Whoever does tasks."""

    def start(self, task: Task, stop: StopRequest) -> Running:
        """Begin a task."""
        ...

    def can_do_together(self, tasks: Sequence[Task]) -> bool:
        """Whether these can all be at work at the same time."""
        ...


class InProcess:
    """Does a task in this process, when it is waited for."""

    def start(self, task: Task, stop: StopRequest) -> Running:
        """Nothing yet."""
        return _Later(task, stop)

    def can_do_together(self, tasks: Sequence[Task]) -> bool:
        """One after another."""
        return len(tasks) == 1


class _Later:
    def __init__(self, task: Task, stop: StopRequest) -> None:
        self._task = task
        self._stop = stop

    def wait(self) -> None:
        perform(self._task, self._stop)

    def end(self) -> None:
        """It runs only while it is waited for."""


class Subprocess:
    """Does each task in a process of its own, which dies with this one."""

    def can_do_together(self, tasks: Sequence[Task]) -> bool:
        """Each has a process."""
        return True

    def start(self, task: Task, stop: StopRequest) -> Running:
        """Start the process."""
        task.save()
        command = [sys.executable, "-m", "cong.pipeline.child", str(task.folder)]
        # A session of its own: a signal from the terminal reaches it through this process, and once only.
        process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        return _Process(task.stage, process, stop)


class _Process:
    def __init__(self, name: str, process: "subprocess.Popen[bytes]", stop: StopRequest) -> None:
        self._name = name
        self._process = process
        self._stop = stop

    def wait(self) -> None:
        process, waited_s, is_told = self._process, 0.0, False
        while True:
            try:
                code = process.wait(_LOOK_S)
                break
            except subprocess.TimeoutExpired:
                if not self._stop.is_set:
                    continue
            if not is_told:
                process.send_signal(signal.SIGTERM)
                is_told = True
            waited_s += _LOOK_S
            if waited_s > STOP_GRACE_S:
                self.end()
                raise PipelineError(f"{self._name} did not stop within {STOP_GRACE_S:g} s and was ended") from None
        if process.stdin is not None:
            process.stdin.close()
        if code == STOPPED_EXIT_CODE:
            raise StoppedEarly
        if code:
            reason = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}, for the reason above"
            raise PipelineError(f"{self._name} ended by {reason}; what it had made is kept, run the pipeline again")

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()


def die_with_parent() -> None:
    """End this process once the one that started it is gone: its end of the pipe closes then."""

    def watch() -> None:
        # Past Python's buffer, whose lock a thread would still hold when the interpreter ends.
        while os.read(_STDIN, 1):
            pass
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def folder_argument(arguments: list[str]) -> Path:
    """The task's folder, the only argument of a child."""
    if len(arguments) != 1:
        raise PipelineError(f"a child takes one folder, and {len(arguments)} arguments are given")
    return Path(arguments[0])
