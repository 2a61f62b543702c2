"""The shipped edge on this machine: nginx with the shipped configuration, and a backend that says what reaches it."""

import datetime
import os
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPSConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from serve.ports import free_ports

CONFIG = Path(__file__).parent.parent.parent / "deploy" / "edge" / "nginx.conf"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
_START_S = 20.0


@dataclass
class Backend:
    """What reached it, and a gate that its streams wait at."""

    port: int
    requests: list[tuple[str, dict[str, str], int]] = field(default_factory=list)
    """Path, headers in lower case, length of the body."""
    gate: threading.Event = field(default_factory=threading.Event)


@contextmanager
def run_backend() -> Iterator[Backend]:
    """A server that answers everything, and /stream in two parts with the gate between them."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def answer(self) -> None:
            length = int(self.headers.get("content-length", 0))
            self.rfile.read(length)
            headers = {name.lower(): value for name, value in self.headers.items()}
            backend.requests.append((self.path, headers, length))
            self.send_response(200)
            if self.path == "/stream":
                self.send_header("transfer-encoding", "chunked")
                self.end_headers()
                self.wfile.write(b"5\r\nfirst\r\n")
                self.wfile.flush()
                backend.gate.wait(10)
                self.wfile.write(b"4\r\nlast\r\n0\r\n\r\n")
            else:
                self.send_header("content-length", "2")
                self.end_headers()
                self.wfile.write(b"ok")

        do_GET = do_POST = answer

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    backend = Backend(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield backend
    finally:
        backend.gate.set()
        server.shutdown()
        server.server_close()
        thread.join(10)


def make_certificate(folder: Path) -> None:
    """A key and a certificate for itself, good for an hour."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .sign(key, hashes.SHA256())
    )
    (folder / "tls.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    (folder / "tls.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))


def local_config(folder: Path, backend_port: int, http_port: int, https_port: int) -> Path:
    """The shipped configuration with ports, addresses and folders of this machine, and nothing else changed."""
    text = CONFIG.read_text()
    for old, new in (
        ("server 127.0.0.1:8000;", f"server 127.0.0.1:{backend_port};"),
        ("listen 80;", f"listen 127.0.0.1:{http_port};"),
        ("listen 443 ssl;", f"listen 127.0.0.1:{https_port} ssl;"),
        ("/etc/nginx/tls/", f"{folder}/"),
        ("/run/nginx.pid", f"{folder}/nginx.pid"),
        ("/var/log/nginx/", f"{folder}/"),
    ):
        assert old in text, old
        text = text.replace(old, new)
    places = "".join(
        f"    {kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    text = text.replace("http {\n", f"http {{\n{places}", 1)
    # Workers of a master that is root would change to a user who may not read the test's folder.
    text = ("user root;\n" if os.geteuid() == 0 else "") + re.sub(r"worker_processes auto", "worker_processes 1", text)
    path = folder / "nginx.conf"
    path.write_text(text)
    return path


def _trusting() -> ssl.SSLContext:
    """Any certificate will do."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@dataclass(frozen=True)
class Edge:
    """A running edge."""

    http_port: int
    https_port: int
    backend: Backend
    folder: Path

    def connect(self) -> HTTPSConnection:
        """A connection for HTTP."""
        return HTTPSConnection("127.0.0.1", self.https_port, timeout=15, context=_trusting())

    @contextmanager
    def open_tls(self) -> Iterator[ssl.SSLSocket]:
        """A connection for bytes as they are."""
        with (
            socket.create_connection(("127.0.0.1", self.https_port), timeout=30) as plain,
            _trusting().wrap_socket(plain) as tls,
        ):
            yield tls

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """One request on a connection of its own."""
        connection = self.connect()
        try:
            connection.request(method, path, body, headers or {})
            reply = connection.getresponse()
            return reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read()
        finally:
            connection.close()


@contextmanager
def run_edge(folder: Path, changes: Mapping[str, str] | None = None) -> Iterator[Edge]:
    """The edge in front of a backend, until the block ends; some words of its configuration may be others."""
    assert NGINX is not None
    make_certificate(folder)
    http_port, https_port = free_ports(2)
    with run_backend() as backend:
        config = local_config(folder, backend.port, http_port, https_port)
        for old, new in (changes or {}).items():
            assert old in config.read_text(), old
            config.write_text(config.read_text().replace(old, new))
        command = [NGINX, "-p", str(folder), "-c", str(config), "-g", "daemon off;"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            _wait_until_open(https_port, process)
            yield Edge(http_port, https_port, backend, folder)
        finally:
            process.terminate()
            process.communicate(timeout=20)


def _wait_until_open(port: int, process: "subprocess.Popen[str]") -> None:
    until_s = time.monotonic() + _START_S
    while time.monotonic() < until_s:
        assert process.poll() is None, process.communicate()[1]
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError(f"nginx has not opened port {port} in {_START_S} s")
