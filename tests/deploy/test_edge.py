"""The edge: what it takes away, bounds, lets through as it comes, and says when it must."""

import re
import socket
import subprocess
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path

import pytest

from cong.config.service import ServiceConfig
from cong.wire import ErrorReply
from serve.ports import free_port, free_ports

from .edge import CONFIG, NGINX, Edge, local_config, make_certificate, run_edge

needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed here")
MIB = 1 << 20


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    with run_edge(tmp_path_factory.mktemp("edge")) as running:
        yield running


def directives(name: str) -> list[str]:
    """The arguments of a directive, wherever it stands."""
    text = re.sub(r"#.*", "", CONFIG.read_text())
    return [match.strip() for match in re.findall(rf"(?:^|[;{{}}\s]){name}\s+([^;{{}}]+);", text)]


def test_its_bounds_are_those_of_the_service() -> None:
    service = ServiceConfig()
    assert directives("client_max_body_size") == [f"{service.max_body_bytes // MIB}m"]
    (read_s,) = directives("proxy_read_timeout")
    assert service.max_deadline_s < int(read_s.removesuffix("s")) <= service.max_deadline_s + 120
    assert directives("client_body_timeout") == [f"{service.body_timeout_s:.0f}s"]
    assert directives("proxy_next_upstream") == ["off"], "a sample is never asked for twice by the edge"
    assert directives("proxy_buffering") == ["off"]


@pytest.mark.parametrize(
    "header",
    ["x-request-timeout-seconds", "x-request-disconnect-disabled", "serve_multiplexed_model_id", "X-Ray-Authorization"],
)
def test_headers_that_would_change_the_services_limits_are_emptied(header: str) -> None:
    assert f'{header} ""' in directives("proxy_set_header")


@needs_nginx
def test_nginx_takes_the_configuration(tmp_path: Path) -> None:
    assert NGINX is not None
    make_certificate(tmp_path)
    config = local_config(tmp_path, *free_ports(3))
    done = subprocess.run(
        [NGINX, "-t", "-p", str(tmp_path), "-c", str(config)], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "warn" not in done.stderr


@needs_nginx
def test_dangerous_headers_do_not_arrive_and_others_do(edge: Edge) -> None:
    taken = {
        "x-request-timeout-seconds": "0",
        "X-Request-Disconnect-Disabled": "?1",
        "serve_multiplexed_model_id": "other",
        "X-Ray-Authorization": "Bearer control",
        "Cookie": "ray-authentication-token=control",
    }
    kept = {"Authorization": "Bearer cong-a", "Idempotency-Key": "k-1", "X-Request-Id": "my.id-1"}
    status, _, body = edge.ask("POST", "/sample?x=1", b"{}", {**taken, **kept, "X-Forwarded-For": "6.6.6.6"})
    assert (status, body) == (200, b"ok")
    path, headers, length = edge.backend.requests[-1]
    assert (path, length) == ("/sample?x=1", 2)
    assert not {name.lower() for name in taken} & set(headers)
    assert all(headers[name.lower()] == value for name, value in kept.items())
    assert headers["x-forwarded-for"] == "127.0.0.1", "what the caller says of itself is no evidence"


@needs_nginx
@pytest.mark.parametrize("given", ["a" * 65, "with space", "semi;colon"])
def test_a_strange_request_id_is_replaced(edge: Edge, given: str) -> None:
    edge.ask("GET", "/info", headers={"X-Request-Id": given, "Authorization": "id"})
    assert re.fullmatch(r"[0-9a-f]{32}", edge.backend.requests[-1][1]["x-request-id"])


@needs_nginx
def test_a_body_at_the_limit_passes_and_a_larger_one_is_told_so(edge: Edge) -> None:
    status, _, _ = edge.ask("POST", "/sample", b" " * (8 * MIB), {"Authorization": "size"})
    assert status == 200
    assert edge.backend.requests[-1][2] == 8 * MIB
    num_seen = len(edge.backend.requests)
    with edge.open_tls() as tls:
        head = f"POST /sample HTTP/1.1\r\nHost: edge\r\nContent-Length: {8 * MIB + 1}\r\nConnection: close\r\n\r\n"
        tls.sendall(head.encode())
        reply = HTTPResponse(tls)
        reply.begin()
        error = ErrorReply.model_validate_json(reply.read()).error
    assert (reply.status, error.code, error.type) == (413, "body_too_large", "invalid_request_error")
    assert len(edge.backend.requests) == num_seen, "nothing of it reached the service"


@needs_nginx
def test_an_answer_passes_as_it_comes(edge: Edge) -> None:
    edge.backend.gate.clear()
    connection = edge.connect()
    try:
        connection.request("POST", "/stream", b"{}", {"Authorization": "stream"})
        reply = connection.getresponse()
        # The backend sends no more before the gate opens, so this would wait for ever behind a buffer.
        assert reply.read(5) == b"first"
        edge.backend.gate.set()
        assert reply.read() == b"last"
    finally:
        edge.backend.gate.set()
        connection.close()


@needs_nginx
def test_a_hasty_caller_is_slowed_down_and_the_others_are_not(edge: Edge) -> None:
    # Sent in one go on one connection, so that a slow machine asks fast, too.
    one = b"GET /info HTTP/1.1\r\nHost: edge\r\nAuthorization: Bearer hasty\r\n"
    with edge.open_tls() as tls:
        tls.sendall((one + b"\r\n") * 399 + one + b"Connection: close\r\n\r\n")
        received = b"".join(iter(lambda: tls.recv(65536), b""))
    replies = received.split(b"HTTP/1.1 ")[1:]
    assert len(replies) == 400
    assert {reply[:3] for reply in replies[:40]} == {b"200"}, "a burst of 40 passes"
    refused = [reply for reply in replies if not reply.startswith(b"200")]
    assert refused, "400 requests at once are more than 20 a second with a burst of 40"
    for reply in refused:
        assert reply.startswith(b"429 ")
        assert b"\r\nRetry-After: 2\r\n" in reply
        error = ErrorReply.model_validate_json(reply.partition(b"\r\n\r\n")[2]).error
        assert (error.type, error.retry_after_s) == ("rate_limit_error", 2)
    assert edge.ask("GET", "/info", headers={"Authorization": "Bearer calm"})[0] == 200


@needs_nginx
def test_whoever_makes_up_keys_is_slowed_down_as_an_address(tmp_path: Path) -> None:
    # At a rate that no machine is too slow for.
    with run_edge(tmp_path, {"rate=200r/s": "rate=1r/s", "burst=400": "burst=4"}) as alone:
        found = [alone.ask("GET", "/info", headers={"Authorization": f"Bearer {number}"}) for number in range(40)]
    statuses = [status for status, _, _ in found]
    assert statuses[:5] == [200] * 5
    assert 429 in statuses
    error = ErrorReply.model_validate_json(found[statuses.index(429)][2]).error
    assert (error.type, error.retry_after_s) == ("rate_limit_error", 2)


@needs_nginx
@pytest.mark.parametrize("path", ["/-/healthz", "/-/routes", "/metrics", "//metrics", "/%2d/healthz", "/x/../-/routes"])
def test_pages_for_the_inside_stay_inside(edge: Edge, path: str) -> None:
    num_seen = len(edge.backend.requests)
    assert edge.ask("GET", path)[0] == 404
    assert len(edge.backend.requests) == num_seen


@needs_nginx
def test_plain_http_is_sent_to_https(edge: Edge) -> None:
    with socket.create_connection(("127.0.0.1", edge.http_port), timeout=15) as plain:
        plain.sendall(
            b"POST /sample HTTP/1.1\r\nHost: cong.example.com\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        )
        reply = b"".join(iter(lambda: plain.recv(65536), b""))
    assert reply.startswith(b"HTTP/1.1 308 ")
    assert b"Location: https://cong.example.com/sample\r\n" in reply


@needs_nginx
def test_a_service_that_is_away_is_told_with_the_time_to_come_back(tmp_path: Path) -> None:
    with run_edge(tmp_path) as alone:
        config = local_config(tmp_path, free_port(), alone.http_port, alone.https_port)
        assert NGINX is not None
        subprocess.run([NGINX, "-p", str(tmp_path), "-c", str(config), "-s", "reload"], check=True, timeout=30)
        for _ in range(100):
            status, headers, body = alone.ask("GET", "/info", headers={"Connection": "close"})
            if status == 503:
                break
        error = ErrorReply.model_validate_json(body).error
        assert (status, headers["retry-after"], error.type) == (503, "5", "unavailable_error")


@needs_nginx
def test_the_log_holds_no_key_no_query_and_no_body(edge: Edge) -> None:
    edge.ask("POST", "/sample?secret-query=1", b"secret-body", {"Authorization": "Bearer secret-key"})
    # The line is written when the request ends, which is before the reply of the next one.
    edge.ask("GET", "/info", headers={"Authorization": "log"})
    text = (edge.folder / "access.log").read_text()
    assert "POST /sample " in text
    assert "secret" not in text
