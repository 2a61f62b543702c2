"""A real server on a real socket that ends the connection at every place of its reply."""

import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cong.client import Client, Patience
from cong.errors import StreamCut, Unreachable
from tests.client.replies import Event, end, ndjson, record, reply, sample_event, token

GOOD = reply([record(1)])
EVENTS: list[Event] = [token(1, 0), token(1, 1), sample_event(1), end(1)]
QUICK = Patience(total_s=20.0, max_tries=3, first_pause_s=0.0, max_pause_s=0.0)


def with_length(body: bytes, kind: str) -> bytes:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def until_closed(body: bytes, kind: str) -> bytes:
    """Without a length: only the content can tell that it was cut."""
    return f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\nconnection: close\r\n\r\n".encode() + body


def chunked(body: bytes, kind: str) -> bytes:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n"
    lines = body.splitlines(keepends=True)
    return head.encode() + b"".join(f"{len(line):x}\r\n".encode() + line + b"\r\n" for line in lines) + b"0\r\n\r\n"


FRAMINGS = pytest.mark.parametrize("frame", [with_length, until_closed, chunked])


class CuttingServer(socketserver.ThreadingTCPServer):
    """Sends the first bytes of one reply and ends the connection, by closing or by a reset; then the whole reply."""

    allow_reuse_address = True
    daemon_threads = True
    whole = b""
    cuts: list[int]
    resets = False
    keys: list[bytes]


class Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        server = self.server
        assert isinstance(server, CuttingServer)
        received = b""
        while b"\r\n\r\n" not in received:
            received += self.request.recv(65536) or b"\r\n\r\n"
        head, _, body = received.partition(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if line)
        left = int(fields.get(b"content-length", b"0")) - len(body)
        while left > 0:
            left -= len(self.request.recv(65536)) or left
        server.keys.append(fields.get(b"idempotency-key", b""))
        self.request.sendall(server.whole[: server.cuts.pop(0)] if server.cuts else server.whole)
        if server.resets:
            # Zero linger: closing sends a reset, and what the other side has not read may be lost.
            self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


@contextmanager
def serving(whole: bytes) -> Iterator[tuple[CuttingServer, str]]:
    with CuttingServer(("127.0.0.1", 0), Handler) as server:
        server.whole, server.cuts, server.keys = whole, [], []
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server, f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join(5.0)


def positions(whole: bytes) -> list[int]:
    """Every byte of the head and of the end, and every seventh between them."""
    head = whole.index(b"\r\n\r\n") + 8
    return [at for at in range(len(whole)) if at < head or at % 7 == 0 or at > len(whole) - 60]


@FRAMINGS
@pytest.mark.parametrize("resets", [False, True], ids=["closed", "reset"])
def test_a_document_that_is_cut_at_any_place_is_asked_for_again(frame: object, resets: bool) -> None:
    assert callable(frame)
    whole = frame(GOOD.model_dump_json().encode(), "application/json")
    with serving(whole) as (server, url), Client(url, patience=QUICK) as client:
        server.resets = resets
        for position in positions(whole)[:: 3 if resets else 1]:
            server.cuts, server.keys = [position], []
            assert client.sample("hello") == GOOD
            assert len(server.keys) == 2, f"cut after {position} bytes was not noticed"
            assert len({*server.keys}) == 1


def test_a_service_that_always_cuts_is_given_up() -> None:
    whole = with_length(GOOD.model_dump_json().encode(), "application/json")
    with serving(whole) as (server, url), Client(url, patience=QUICK) as client:
        server.cuts = [len(whole) - 1] * 10
        with pytest.raises(Unreachable, match="given up after 3 tries"):
            client.sample("hello")
        assert len(server.keys) == 3


@FRAMINGS
def test_a_stream_that_is_cut_at_any_place_is_never_mistaken_for_a_whole_one(frame: object) -> None:
    assert callable(frame)
    body = ndjson(EVENTS)
    whole = frame(body, "application/x-ndjson")
    outcomes = set()
    with serving(whole) as (server, url), Client(url, patience=QUICK) as client:
        for position in positions(whole):
            server.cuts, server.keys = [position], []
            events: list[Event] = []
            try:
                for event in client.stream("hello", form="tokens"):
                    events.append(event)
            except StreamCut:
                outcomes.add("cut")
                assert 0 < len(events) < len(EVENTS)
                assert len(server.keys) == 1
            else:
                outcomes.add("whole")
                assert len({*server.keys}) == 1
            assert events == EVENTS[: len(events)]
            # The last event ends a stream, whether or not the bytes that frame it come.
            if len(server.keys) == 1 and events == EVENTS:
                assert position >= whole.index(ndjson(EVENTS[-1:]).strip()) + len(ndjson(EVENTS[-1:])) - 1
    assert outcomes == {"cut", "whole"}


@FRAMINGS
def test_a_stream_that_resumes_brings_every_event_once_wherever_it_is_cut(frame: object) -> None:
    assert callable(frame)
    whole = frame(ndjson(EVENTS), "application/x-ndjson")
    with serving(whole) as (server, url), Client(url, patience=QUICK) as client:
        for position in positions(whole)[::2]:
            server.cuts, server.keys = [position, position // 2], []
            assert list(client.stream("hello", form="tokens", resumes=True)) == EVENTS
            assert len({*server.keys}) == 1
