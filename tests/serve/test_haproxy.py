"""HAProxy's configuration is completed, or refused where it is of another form; what is put in, it understands."""

import contextlib
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from cong.config.service import ServiceConfig
from serve.front import haproxy_environment
from serve.haproxy import completed
from serve.http.context import clean_request_id
from serve.ports import free_ports

from .application import LIMIT_S, eventually

WRITTEN = """\
global
    maxconn 4096
    nbthread 1
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    option splice-request
    option idle-close-on-response
frontend prometheus
    bind :{metrics}
    http-request use-service prometheus-exporter if {{ path /metrics }}
frontend http_frontend
    bind *:{entrance}
    default_backend default_backend
backend default_backend
    http-request return status 404
listen stats
  bind *:{pages}
  stats enable
"""
"""What this program relies on, as Ray writes it. That Ray still does is shown where one is deployed."""


FILES = 20_000
"""That may be open."""


def test_pages_are_for_the_machine_and_the_entrance_strips_headers() -> None:
    given = completed(WRITTEN.format(metrics=1, entrance=2, pages=3), FILES)
    assert "bind 127.0.0.1:1\n" in given
    assert "bind 127.0.0.1:3\n" in given
    assert "bind *:2\n    http-request del-header x-request-timeout-seconds\n" in given
    assert "    http-request del-header x-request-disconnect-disabled\n" in given
    assert "    timeout http-request 30s\n" in given


def test_a_file_that_was_completed_is_left_alone() -> None:
    once = completed(WRITTEN.format(metrics=1, entrance=2, pages=3), FILES)
    assert completed(once, FILES) == once


@pytest.mark.parametrize(
    ("max_files", "num_connections"), [(20_000, 4096), (4096, 1612), (1024, 384), (resource.RLIM_INFINITY, 4096)]
)
def test_no_more_connections_than_files_may_be_open(max_files: int, num_connections: int) -> None:
    given = completed(WRITTEN.format(metrics=1, entrance=2, pages=3), max_files)
    assert f"    maxconn {num_connections}\n" in given


@pytest.mark.parametrize(
    "line", ["frontend prometheus\n", "frontend http_frontend\n", "listen stats\n", "    maxconn 4096\n"]
)
def test_a_configuration_of_another_form_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="RAY_SERVE_ENABLE_HA_PROXY=0"):
        completed(WRITTEN.format(metrics=1, entrance=2, pages=3).replace(line, "frontend other\n"), FILES)


ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="Ray brings HAProxy along on Linux alone")


@ON_LINUX
def test_two_on_one_machine_share_no_file_and_no_port() -> None:
    one = haproxy_environment(Path("/tmp/one"))
    ports = [int(value) for name, value in one.items() if "PORT" in name]
    with contextlib.ExitStack() as running:  # as while the first one runs
        for port in ports:
            running.enter_context(socket.create_server(("127.0.0.1", port)))
        other = haproxy_environment(Path("/tmp/other"))
    own = {name for name, value in one.items() if value != other[name]}
    assert {name for name, value in one.items() if "PORT" in name or value.startswith("/tmp/o")} == own
    assert len({value for each in (one, other) for name, value in each.items() if "PORT" in name}) == 6


@ON_LINUX
@pytest.mark.parametrize("folder", ["/tmp/with space/haproxy", "/tmp/" + 25 * "x"])
def test_where_haproxy_takes_no_path_serve_s_own_proxy_stands_in_and_it_is_told(
    folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert haproxy_environment(Path(folder)) == {"RAY_SERVE_ENABLE_HA_PROXY": "0"}
    assert "set TMPDIR" in caplog.text
    assert haproxy_environment(Path("/tmp/" + 24 * "x"))["RAY_SERVE_ENABLE_HA_PROXY"] == "1"


@ON_LINUX
def test_an_update_cuts_no_stream_that_may_still_flow() -> None:
    assert (
        int(haproxy_environment(Path("/tmp/one"))["RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"])
        >= ServiceConfig().max_deadline_s
    )


def test_it_can_be_turned_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "0")
    assert haproxy_environment(tmp_path) == {}


@ON_LINUX
def test_the_program_becomes_haproxy_and_says_what_it_refuses(tmp_path: Path) -> None:
    file = tmp_path / "haproxy.cfg"
    file.write_text(WRITTEN.format(metrics=10001, entrance=10002, pages=10003))
    command = [sys.executable, "-c", "from serve.haproxy import main; main()", "-c", "-V", "-f", str(file)]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert checked.returncode == 0, checked.stderr
    assert "Configuration file is valid" in checked.stdout
    file.write_text("defaults\n")
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 1
    assert f"{file}: 0 pages, 0 entrances and 0 limits" in refused.stderr
    file.unlink()
    missing = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert missing.returncode == 1
    assert missing.stderr == f"{file}: No such file or directory; check the path\n"


@ON_LINUX
def test_it_starts_where_few_files_may_be_open(tmp_path: Path) -> None:
    file = tmp_path / "haproxy.cfg"
    metrics, entrance, pages = free_ports(3)
    file.write_text(WRITTEN.format(metrics=metrics, entrance=entrance, pages=pages))
    program = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024)); "
    command = [sys.executable, "-c", program + "from serve.haproxy import main; main()", "-db", "-f", str(file)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            eventually(lambda: process.poll() is not None or listens(entrance), "it listens or has ended")
            assert process.poll() is None
        finally:
            process.kill()


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 5.0).close()
    except OSError:
        return False
    return True


@ON_LINUX
def test_before_it_knows_of_an_application_callers_are_asked_to_come_back(tmp_path: Path) -> None:
    with running(tmp_path, WRITTEN) as url:
        reply = httpx.get(url, timeout=LIMIT_S)
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")


@ON_LINUX
def test_a_path_of_no_application_is_not_found(tmp_path: Path) -> None:
    routed = "    use_backend default_backend if FALSE\n    default_backend default_backend\n"
    with running(tmp_path, WRITTEN.replace("    default_backend default_backend\n", routed)) as url:
        assert httpx.get(url, timeout=LIMIT_S).status_code == 404


SHOWN = "    http-request return status 200 content-type text/plain lf-string <%[req.fhdr(x-request-id)]>\n"


@ON_LINUX
@pytest.mark.parametrize(
    ("given", "passed"), [(["a.B_1-2"], "a.B_1-2"), (["a b"], ""), (["<x>"], ""), (["x" * 65], ""), (["a", "b"], "")]
)
def test_an_id_that_would_be_changed_is_taken_away(tmp_path: Path, given: list[str], passed: str) -> None:
    """So that what Serve repeats in the reply is what stands in the document and in the log."""
    assert bool(passed) == (len(given) == 1 and clean_request_id(given[0]) == given[0]), "as the service takes it"
    written = WRITTEN.replace("    default_backend default_backend\n", SHOWN + "    default_backend default_backend\n")
    with running(tmp_path, written) as url:
        assert httpx.get(url, headers=[("x-request-id", one) for one in given], timeout=LIMIT_S).text == f"<{passed}>"


@ON_LINUX
def test_it_does_not_outlive_the_process_that_started_it(tmp_path: Path) -> None:
    """It would hold the port and answer 500 for ever where whole Ray was killed."""
    file = tmp_path / "haproxy.cfg"
    metrics, entrance, pages = free_ports(3)
    file.write_text(WRITTEN.format(metrics=metrics, entrance=entrance, pages=pages))
    command = [sys.executable, "-c", "from serve.haproxy import main; main()", "-db", "-f", str(file)]
    program = f"import subprocess; subprocess.run({command!r}, check=False)"
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: listens(entrance), "it listens")
        (haproxy,) = psutil.Process(parent.pid).children()
    finally:
        parent.kill()
        parent.wait()
    try:
        haproxy.wait(LIMIT_S)
    finally:
        if haproxy.is_running():
            haproxy.kill()


@ON_LINUX
@pytest.mark.parametrize("starts_late", [False, True])
def test_what_comes_on_an_idle_connection_after_an_update_is_answered_by_the_one_that_listens(
    tmp_path: Path, starts_late: bool
) -> None:
    """Those behind the former one are gone by then."""
    ports = free_ports(3)
    url = f"http://127.0.0.1:{ports[1]}/sample"
    for name in ("former", "latter"):
        (tmp_path / name).mkdir()
    former, latter = (haproxy(tmp_path / name, showing(name), ports) for name in ("former", "latter"))
    kept = httpx.Limits(keepalive_expiry=None)
    with former as process, httpx.Client(timeout=LIMIT_S, limits=kept) as idle, ThreadPoolExecutor(1) as pool:
        assert idle.get(url).text == "former"
        stop_listening(process)
        early = pool.submit(idle.get, url) if starts_late else None
        with latter:
            reply = early.result() if early else idle.get(url)
            assert (reply.text, reply.headers["connection"]) == ("latter", "close")
        eventually(lambda: process.poll() is not None, "the former has ended with its last connection")


@ON_LINUX
def test_what_is_handed_on_is_counted_once(tmp_path: Path) -> None:
    """Serve's metrics of requests are made of what HAProxy logs."""
    ports = free_ports(3)
    url = f"http://127.0.0.1:{ports[1]}/sample"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as log, httpx.Client(timeout=LIMIT_S) as idle:
        log.bind(("127.0.0.1", 0))
        log.settimeout(LIMIT_S)
        lines = f"    log 127.0.0.1:{log.getsockname()[1]} local1 debug\n    option httplog\n"
        way_out = "    default_backend default_backend\n"

        def told() -> str:
            """The next request of which is told."""
            received = iter(lambda: log.recv(65536).decode(), "")
            return next(line.split("/sample?")[1].split()[0] for line in received if "/sample?" in line)

        for name in ("former", "latter"):
            (tmp_path / name).mkdir()
        former, latter = (
            haproxy(tmp_path / name, showing(name).replace(way_out, lines + way_out), ports)
            for name in ("former", "latter")
        )
        with former as process:
            assert idle.get(f"{url}?first").text == "former"
            assert told() == "first"
            stop_listening(process)
            with latter:
                assert idle.get(f"{url}?second").text == "latter"
                assert told() == "second"
                assert httpx.get(f"{url}?third", timeout=LIMIT_S).text == "latter"
                assert told() == "third", "the second was told of once"


def stop_listening(process: "subprocess.Popen[bytes]") -> None:
    """As an update tells it to."""
    process.send_signal(signal.SIGUSR1)
    eventually(lambda: not has_listener(process.pid), "it listens no more")
    assert process.poll() is None, "it has a connection yet"


def has_listener(pid: int) -> bool:
    return any(one.status == psutil.CONN_LISTEN for one in psutil.Process(pid).net_connections("inet"))


def showing(name: str) -> str:
    told = f"    http-request return status 200 content-type text/plain string {name}\n"
    return WRITTEN.replace("    http-request return status 404\n", told)


@contextlib.contextmanager
def running(folder: Path, written: str) -> Iterator[str]:
    """HAProxy with a configuration, and an address at its entrance."""
    ports = free_ports(3)
    with haproxy(folder, written, ports):
        yield f"http://127.0.0.1:{ports[1]}/sample"


@contextlib.contextmanager
def haproxy(folder: Path, written: str, ports: Sequence[int]) -> "Iterator[subprocess.Popen[bytes]]":
    """Its process, which listens."""
    file = folder / "haproxy.cfg"
    metrics, entrance, pages = ports
    written = written.replace("bind *:{entrance}", "bind 127.0.0.1:{entrance}")
    file.write_text(written.format(metrics=metrics, entrance=entrance, pages=pages))
    command = [sys.executable, "-c", "from serve.haproxy import main; main()", "-db", "-f", str(file)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            eventually(lambda: process.poll() is not None or listens(entrance), "it listens or has ended")
            assert process.poll() is None
            yield process
        finally:
            process.kill()
