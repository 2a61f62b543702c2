"""The application under test, as an operator handles it: deployed by a Serve file, watched, and hurt."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from ray import serve

from cong.client import Client, Patience
from cong.config.serving import IMPORT_PATH
from cong.service import key_line, new_key
from serve import __main__ as command
from serve.app import DEPLOYMENT
from serve.files import ServeFile, read_serve_file
from serve.local import deploy, drain, wait_answering, wait_running

LIMIT_S = 150.0
"""Longest wait for anything; reached only where something is broken."""
NAME = "cong"


def eventually(is_so: Callable[[], Any], what: str, limit_s: float = LIMIT_S, poll_s: float = 0.1) -> Any:
    """The first true value within the limit."""
    until_s = time.monotonic() + limit_s
    while True:
        found = is_so()
        if found:
            return found
        assert time.monotonic() < until_s, f"not within {limit_s:g} s: {what}"
        time.sleep(poll_s)


class Deployed:
    """One Serve instance, one application of the lab's pair in it."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.url = f"http://127.0.0.1:{port}"
        self.key = new_key()
        self.keys_file = folder / "keys"
        self.keys_file.write_text(key_line("tests", self.key) + "\n")
        self.stream = folder / "stream"
        self.faults = folder / "run" / "faults"
        self.faults.mkdir(parents=True)
        self._port = port
        self._options: dict[str, Any] = {}

    # Deploying.

    def file(self, *overrides: str, import_path: str = IMPORT_PATH, **options: Any) -> ServeFile:
        """The shipped file for laptops, with what a test needs in its arguments and in its deployment's options."""
        source = self.folder / "serve.yaml"
        source.write_text(command.DEFAULT_FILE.read_text().replace(IMPORT_PATH, import_path))
        here = (
            f"service.api_keys_file={self.keys_file}",
            f"stream.location={self.stream}",
            f"output_dir={self.folder / 'run'}",
            "resources.num_cpus=0.2",
            "service.body_timeout_s=5",
            # What changes keys at once is not this.
            "service.api_keys_reload_s=3600",
            "service.max_samples=1024",
            "service.max_waiting=2048",
        )
        found = read_serve_file(source, [*here, *overrides], {"port": self._port}, import_path)
        environment = found.schema.controller_options
        assert environment is not None
        assert environment.runtime_env is not None
        environment.runtime_env["env_vars"] |= {
            "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.5",
            "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.5",
            "RAY_SERVE_MAX_PER_REPLICA_RETRY_COUNT": "1",
        }
        (deployment,) = found.schema.applications[0].deployments
        replaced = deployment.model_dump(exclude_unset=True) | {"graceful_shutdown_wait_loop_s": 0.2} | options
        if "autoscaling_config" in options:
            del replaced["num_replicas"]
        found.schema.applications[0].deployments = [type(deployment).model_validate(replaced)]
        return found

    def deploy(self, *overrides: str, **options: Any) -> None:
        """Deploy and wait until it runs as asked."""
        self.begin(*overrides, **options)
        wait_running(NAME, LIMIT_S)
        num_replicas = options.get("num_replicas", 1)
        if "autoscaling_config" not in options:
            eventually(lambda: len(self.replicas()) == num_replicas, f"{num_replicas} replicas")
        wait_answering(self.url, LIMIT_S)

    def begin(self, *overrides: str, **options: Any) -> None:
        """Deploy and do not wait."""
        deploy(self.file(*overrides, **options))

    def stop(self) -> None:
        """Drain and shut Serve down."""
        drain(NAME, LIMIT_S)
        serve.shutdown()  # type: ignore[no-untyped-call]

    # Watching.

    def details(self) -> dict[str, Any]:
        """All that Serve tells of itself."""
        from ray.serve.context import _get_global_client

        client = _get_global_client()
        assert client is not None
        found: dict[str, Any] = client.get_serve_details()
        return found

    def application(self) -> dict[str, Any]:
        """What Serve tells of the application."""
        found: dict[str, Any] = self.details()["applications"][NAME]
        return found

    def replicas(self, state: str = "RUNNING") -> dict[str, int]:
        """Processes of replicas by replica id."""
        deployments = self.application()["deployments"]
        listed = deployments.get(DEPLOYMENT, {}).get("replicas", ())
        return {one["replica_id"]: one["pid"] for one in listed if one["state"] == state and one["pid"]}

    def is_answering(self) -> bool:
        """Whether a request through the proxy is answered."""
        try:
            return httpx.get(f"{self.url}/health", timeout=30.0).status_code == 200
        except httpx.TransportError:
            return False

    def http(self, **options: Any) -> httpx.Client:
        """A bare client with the key."""
        headers = {"Authorization": f"Bearer {self.key}"} | options.pop("headers", {})
        return httpx.Client(base_url=self.url, headers=headers, timeout=httpx.Timeout(LIMIT_S), **options)

    def client(self, max_tries: int = 6) -> Client:
        """Our own client with the key."""
        return Client(self.url, self.key, patience=Patience(total_s=LIMIT_S, max_tries=max_tries))

    def metric(self, name: str) -> float:
        """A measurement of the only replica, by its name and its labels; 0 before there is one."""
        with self.http() as http:
            page = http.get("/metrics").raise_for_status().text
        values = [float(line.split()[-1]) for line in page.splitlines() if line.startswith(f"{name} ")]
        return values[0] if values else 0.0

    # Hurting.

    def kill(self, pid: int) -> None:
        """End a process of this Serve instance at once."""
        os.kill(pid, signal.SIGKILL)

    def actor(self, name: str) -> Any:
        """One of Serve's own actors, by the beginning of its name."""
        import ray
        from ray.util import list_named_actors

        (found,) = [one["name"] for one in list_named_actors(all_namespaces=True) if one["name"].startswith(name)]
        return ray.get_actor(found, namespace="serve")

    @contextmanager
    def fault(self, name: str) -> Iterator[Path]:
        """A fault that a replica made by `tests.serve.faults` runs into once; gone at the end."""
        path = self.faults / name
        path.touch()
        try:
            yield path
        finally:
            for left in self.faults.iterdir():
                left.unlink(missing_ok=True)
