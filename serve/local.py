"""An application on a Ray of its own on this machine: started, waited for, looked at, drained and stopped.

Whatever runs here listens on loopback and ends with the process that started it. Its environment must have been made
private before this module is imported.
"""

import logging
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import ray
from ray import serve
from ray.serve._private.api import serve_start

from cong.client import Client
from cong.errors import ConfigError, CongError
from serve.files import ServeFile

POLL_S = 0.2
LOOPBACK = "127.0.0.1"
DASHBOARD_PORT = 8265
OBJECT_STORE_BYTES = 150 << 20
_OURS = re.compile(r"^cong\.errors\.\w+: (.*?)(?:\n\n|\Z)", re.MULTILINE | re.DOTALL)
_SPARE_S = 15.0
"""For Serve to note that a replica has stopped."""


class DeployFailed(CongError):
    """Serve could not bring the application up."""


class LocalRay:
    """A Ray cluster of one node, used as a context manager."""

    def __init__(
        self, folder: Path, *, num_cpus: int | None = None, has_dashboard: bool = False, is_verbose: bool = False
    ) -> None:
        """`folder` gets sockets and logs; its path is short, because those of sockets must be."""
        self._folder = folder
        self._num_cpus = num_cpus
        self._has_dashboard = has_dashboard
        self._is_verbose = is_verbose

    def __enter__(self) -> Self:
        ray.init(
            "local",
            num_cpus=self._num_cpus,
            include_dashboard=self._has_dashboard,
            dashboard_host=LOOPBACK,
            dashboard_port=DASHBOARD_PORT if self._has_dashboard else None,
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=self._is_verbose,
            logging_level=logging.INFO if self._is_verbose else logging.WARNING,
            namespace="serve",
            _node_ip_address=LOOPBACK,
            _temp_dir=str(self._folder),
        )
        if not self._is_verbose:
            logging.getLogger("ray.serve").setLevel(logging.WARNING)  # of this process; replicas have their own
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ray.shutdown()


def deploy(file: ServeFile) -> None:
    """Start Serve where it does not run yet, and hand it the file, as `serve deploy` does; returns at once."""
    # What `serve run` does with a file. The public way, over REST, would need a dashboard.
    schema = file.schema
    client = serve_start(
        proxy_location=schema.proxy_location,
        http_options=schema.http_options.model_dump(),
        global_logging_config=schema.logging_config,
        controller_options=schema.controller_options,
    )
    client.deploy_apps(schema)


def there() -> dict[str, float]:
    """What this machine has for replicas, by Ray's names."""
    found: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return found


def require_room(options: Mapping[str, Any], there: Mapping[str, float]) -> None:
    """Refuse what Serve would wait for without an end: a replica that asks for more than there is."""
    wanted = {"CPU": options["num_cpus"], "GPU": options["num_gpus"], **options.get("resources", {})}
    short = [name for name, amount in wanted.items() if amount > there.get(name, 0.0)]
    if short:
        asked = ", ".join(f"{wanted[name]:g} {name} and there are {there.get(name, 0.0):g}" for name in short)
        raise ConfigError(f"a replica asks for {asked} on this machine; set resources to what it has, or --num-cpus")


def cause_of(reason: str) -> str:
    """Of what Serve says of a failure: our own words where it ends in them, without the traceback before them."""
    named = list(_OURS.finditer(reason))
    return named[-1][1].strip() if named else reason.strip()


def wait_running(name: str, timeout_s: float, on_wait: Callable[[str], None] = lambda _: None) -> None:
    """Until the application takes requests; what Serve says of a failure is said on."""
    until_s = time.monotonic() + timeout_s
    while True:
        application = serve.status().applications.get(name)
        status = "NOT_STARTED" if application is None else application.status.value
        if status == "RUNNING":
            return
        if application is not None and status in ("DEPLOY_FAILED", "UNHEALTHY"):
            reasons = [application.message, *(one.message for one in application.deployments.values())]
            raise DeployFailed("\n".join(dict.fromkeys(cause_of(reason) for reason in reasons if reason.strip())))
        if time.monotonic() > until_s:
            raise DeployFailed(f"{name} is {status} after {timeout_s:g} s; look into its logs")
        on_wait(status)
        time.sleep(POLL_S)


def wait_answering(url: str, timeout_s: float, on_wait: Callable[[str], None] = lambda _: None) -> None:
    """Until requests reach the application: what stands in front of it learns of it after Serve calls it running."""

    def pause(seconds: float) -> None:
        on_wait("RUNNING")
        time.sleep(seconds)

    # Its certificate is for whoever asks by its name.
    with Client(url, transport=httpx.HTTPTransport(verify=False), sleep=pause) as client:
        client.wait_ready(timeout_s)


def describe(name: str, timeout_s: float = 30.0) -> dict[str, Any]:
    """What one of the application's replicas says of itself."""
    found: dict[str, Any] = serve.get_app_handle(name).describe.remote().result(timeout_s=timeout_s)
    return found


def drain(name: str, timeout_s: float) -> bool:
    """Let requests finish and end the application, on a Ray that ends next; whether they all did within the time."""
    serve.delete(name, _blocking=False)
    until_s = time.monotonic() + timeout_s + _SPARE_S
    while name in serve.status().applications and time.monotonic() < until_s:
        time.sleep(POLL_S)
    return name not in serve.status().applications
