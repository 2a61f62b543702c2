"""The environment of a Ray that nobody else may use: a token of its own, no reports, our code on the path.

Knows no Ray, because Ray reads its environment when it is imported.
"""

import os
import secrets
from pathlib import Path

from serve.front import haproxy_environment

_ROOT = Path(__file__).parent.parent
TOKEN = "auth_token"


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
