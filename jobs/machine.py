"""A machine of a Ray cluster as a process: `ray start` on ports of its own, whose Ray ends when it ends.

Several on one computer make a cluster, and leave other clusters there alone. Knows no jobs. The environment of a
private Ray (`serve.private`) is set by whoever starts one.
"""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from cong.errors import CongError
from serve.parent import end_with_parent
from serve.ports import free_ports

LOOPBACK = "127.0.0.1"
STORE_BYTES = 150 << 20
_START_S = 120.0
_STOP_S = 10.0
_POLL_S = 0.1
_STARTED = "Ray runtime started"
_MANY = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""On Linux, too, it forbids clusters of several machines where it is set and is not 1."""

_DRAIN = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
"""Who stops a machine has ended what ran there; Ray would wait for whatever else still has a place on it."""


class NoStart(CongError):
    """Ray did not start."""


class Machine:
    """One node; a context manager. `head`: the machine that it joins, None for the first one."""

    def __init__(
        self,
        folder: Path,
        name: str,
        head: "Machine | None" = None,
        *,
        num_cpus: float = 1,
        resources: Mapping[str, float] | None = None,
        has_dashboard: bool = False,
        environment: Mapping[str, str] | None = None,
        options: tuple[str, ...] = (),
    ) -> None:
        """`folder` gets sockets and logs of all machines of a cluster; its path is short, because those of sockets
        must be."""
        self._folder = folder
        self._log = folder / f"{name}.log"
        port, dashboard_port, client_port, agent_port = free_ports(4)
        # A driver talks to the machine whose address it has, and on this computer that must be the head alone.
        host = LOOPBACK if head is None else f"127.{port // 256}.{port % 256}.1"
        self.address: str = f"{LOOPBACK}:{port}" if head is None else head.address
        """Of the cluster."""
        self.dashboard_url = f"http://{LOOPBACK}:{dashboard_port}" if has_dashboard else ""
        place = ["--head", f"--port={port}", f"--temp-dir={folder}", f"--ray-client-server-port={client_port}"]
        self._command = [
            str(Path(sys.executable).parent / "ray"),
            "start",
            *(place if head is None else [f"--address={head.address}"]),
            "--block",
            f"--node-ip-address={host}",
            f"--num-cpus={num_cpus:g}",
            f"--resources={json.dumps(dict(resources or {}))}",
            f"--object-store-memory={STORE_BYTES}",
            "--min-worker-port=0",
            "--max-worker-port=0",
            # Ray's own choice is the same port on every machine, and without this one no job can be submitted.
            f"--dashboard-agent-listen-port={agent_port}",
            "--disable-usage-stats",
            *options,
        ]
        if head is None:
            self._command.append(f"--include-dashboard={str(has_dashboard).lower()}")
        if has_dashboard:
            self._command += [
                f"--dashboard-host={LOOPBACK}",
                f"--dashboard-port={dashboard_port}",
            ]
        given = {"RAY_TMPDIR": str(folder), _MANY: "1", _DRAIN: "0"}
        self._environment = {**os.environ, **given, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the process whose children are this machine's Ray."""
        assert self._process is not None, "it has started"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """It has started and not ended."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Start it, and wait until it is there."""
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C is for whoever started it; but it does not outlive that process.
                start_new_session=True,
                preexec_fn=partial(end_with_parent, signal.SIGTERM),
            )
        until_s = time.monotonic() + _START_S
        while _STARTED not in (said := self._log.read_text(encoding="utf-8", errors="replace")):
            if not self.is_running or time.monotonic() > until_s:
                self.lose()
                raise NoStart(f"`ray start` has failed, or took more than {_START_S:g} s: {said.strip()[-2000:]}")
            time.sleep(_POLL_S)
        return self

    def stop(self) -> None:
        """End it in order."""
        process = self._process
        if process is None:
            return
        below = _below(process.pid)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_S)
        self._kill(below)

    def lose(self) -> None:
        """As if its power failed: nothing of it runs on, and nobody is told."""
        if self._process is not None:
            self._kill(_below(self._process.pid))

    def _kill(self, below: Mapping[int, str]) -> None:
        assert self._process is not None, "it has started"
        self._process.kill()
        self._process.wait(_STOP_S)
        # Most of Ray's processes die with it, and its agents some time later.
        for pid, started in below.items():
            if started and _started(pid) == started:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _below(root: int) -> dict[int, str]:
    """Processes that descend from one, each with the moment at which it began: a number may be used again."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _fields(int(entry.name))):
            parents[int(entry.name)] = int(fields[1])
    found, queue = dict[int, str](), [root]
    while queue:
        parent = queue.pop()
        for pid in [pid for pid, its in parents.items() if its == parent]:
            found[pid] = _started(pid)
            queue.append(pid)
    return found


def _started(pid: int) -> str:
    """Empty where there is none, and where it has ended and waits to be asked for its result."""
    fields = _fields(pid)
    return fields[19] if fields and fields[0] != "Z" else ""


def _fields(pid: int) -> list[str]:
    """What the kernel says of a process, behind its name."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


@contextlib.contextmanager
def joined(address: str) -> Iterator[None]:
    """This process as a driver of a cluster, one that may deploy to its Serve."""
    # Ray reads its environment when it is imported, and Serve's logging is set up then.
    import ray
    import ray.serve

    try:
        ray.init(address, namespace="serve", log_to_driver=False, logging_level=logging.WARNING)
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        yield
    finally:
        ray.shutdown()
