"""The service as a benchmark runs it: on a bare ASGI server or on a Ray of its own, in processes that end with it."""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from load import Target

from cong.client import Client
from cong.config.serving import IMPORT_PATH
from cong.errors import Unavailable

ROOT = Path(__file__).parent.parent
SEATS = 64
READY_S = 180.0
STOP_S = 90.0


@dataclass(frozen=True)
class Running:
    """A service that was started here."""

    url: str
    pid: int

    @property
    def target(self) -> Target:
        """Where load goes."""
        return Target.at(self.url)


def settings(pair: tuple[Path, Path], options: argparse.Namespace) -> dict[str, Any]:
    """The same for the engine alone and for the service."""
    return {
        # Said outright: Ray gives a process as many as the processors that it is promised.
        "num_threads": options.threads or torch.get_num_threads(),
        "models": {
            "aligned": {"source": str(pair[0])},
            "base": {"source": str(pair[1])},
            "dtype": options.dtype,
            "device": options.device,
        },
        "engine": {"max_running": SEATS, "kv_memory_bytes": 2**29},
        # So many wait as one can serve in a few seconds; the rest is refused.
        "service": {
            "max_waiting": options.max_waiting,
            "max_samples": 1,
            "max_concurrent_per_key": 4096,
            "engine_niceness": options.niceness,
            "stream_writes_per_s": options.stream_writes,
        },
    }


def serve_file(config: dict[str, Any], options: argparse.Namespace, import_path: str) -> dict[str, Any]:
    """The shipped file for laptops with these settings: the replica holds little more than its seats."""
    content: dict[str, Any] = yaml.safe_load((ROOT / "serve" / "config-lab.yaml").read_text())
    (application,) = content["applications"]
    application["import_path"] = import_path
    application["args"] = {**config, "resources": {"num_cpus": 1}}
    (deployment,) = application["deployments"]
    deployment |= {
        "max_ongoing_requests": options.max_ongoing,
        "max_queued_requests": options.max_queued,
        "graceful_shutdown_timeout_s": 3700,
    }
    content["http_options"]["request_timeout_s"] = 3600
    return content


def is_ready(url: str, process: subprocess.Popen[bytes]) -> bool:
    """Whether a service answers within the time; one whose process has ended is not waited for."""
    until_s = time.monotonic() + READY_S
    with Client(url, "") as client:
        while process.poll() is None and time.monotonic() < until_s:
            with contextlib.suppress(Unavailable):
                client.wait_ready(2.0)
                return True
    return False


@contextlib.contextmanager
def start_service(
    launcher: str, config: dict[str, Any], options: argparse.Namespace, import_path: str = IMPORT_PATH
) -> Iterator[Running]:
    """The application on a bare ASGI server, or on a Ray of its own, in processes of their own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as name:
        file, log = Path(name) / "service.yaml", Path(name) / "log"
        if launcher == "uvicorn":
            content = {**config, "service": {**config["service"], "port": port}}
            command = [sys.executable, "-m", "bench.uvicorn_process", str(file)]
        else:
            content = serve_file(config, options, import_path)
            command = [sys.executable, "-m", "serve", "--config", str(file), "--application", import_path]
            command += ["--port", str(port), "--num-cpus", "2"]
        file.write_text(yaml.safe_dump(content))
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        with log.open("wb") as written:
            process = subprocess.Popen(command, cwd=ROOT, stdout=written, stderr=written, env=environment)
        url = f"http://127.0.0.1:{port}"
        try:
            if not is_ready(url, process):
                sys.stderr.write(log.read_text()[-4000:])
                raise SystemExit("the service has ended, or is not ready; what it said is above")
            yield Running(url, process.pid)
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(STOP_S)
