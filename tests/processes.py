"""Processes that a test has started, and those below them, as they end."""

import subprocess
from collections.abc import Iterable
from contextlib import suppress

import psutil


def below(process: "subprocess.Popen[bytes] | subprocess.Popen[str]") -> list[psutil.Process]:
    """Those that it has started, directly or not; none once it has ended."""
    found: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        if process.poll() is None:
            found = psutil.Process(process.pid).children(recursive=True)
    return found


def alive(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those that have not ended; who started them may not have asked for their result yet."""
    found = []
    for one in processes:
        with suppress(psutil.NoSuchProcess):
            if one.is_running() and one.status() != psutil.STATUS_ZOMBIE:
                found.append(one)
    return found


def kill(processes: Iterable[psutil.Process]) -> None:
    """All at once, those that have ended meanwhile included."""
    for one in processes:
        with suppress(psutil.NoSuchProcess):
            one.kill()
