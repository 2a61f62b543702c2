"""Whether an address can be listened on, asked before minutes go into loading. Knows neither Ray nor HTTP."""

import socket

from cong.errors import ConfigError


def require_free(host: str, port: int, remedy: str) -> None:
    """Refuse an address that cannot be listened on; `remedy` is what gives another one."""
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        raise ConfigError(f"port {port} of {host} cannot be listened on ({error.strerror}); {remedy}") from error
