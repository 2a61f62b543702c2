"""An object store behind a proxy that drops, delays, truncates and fails: what is acknowledged is stored, once."""

import http.client
import random
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from cong.config.stream import ReadSettings, WriteSettings
from cong.errors import StreamError, StreamFenced
from cong.stream import Lane, Store, StreamReader, StreamWriter, compact, open_store, retain, verify
from tests.stream.streams import SMALL, keys, read_keys, records, write

Fault = Callable[[str, str], str | None]
"""Of a request's method and path: what goes wrong with it, if anything."""


class Proxy:
    """Forwards to a server, and does to each request what `fault` says."""

    def __init__(self, target: str) -> None:
        self.fault: Fault = lambda method, path: None
        self.num_faults = 0
        host = target.removeprefix("http://")
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                trouble = proxy.fault(self.command, self.path)
                proxy.num_faults += trouble is not None
                if trouble == "drop":
                    return self.hang_up()
                if trouble == "delay":
                    time.sleep(0.7)
                    return self.hang_up()
                if trouble == "500":
                    self.send_response(500)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return None
                if trouble == "cut" and self.command == "PUT":
                    # Half of the body arrives as if it were all of it.
                    body = body[: len(body) // 2]
                connection = http.client.HTTPConnection(host, timeout=10)
                dropped = {"content-length", "transfer-encoding", "connection", "expect"}
                if trouble == "cut":
                    dropped |= {"content-md5"} | {name.lower() for name in self.headers if "checksum" in name.lower()}
                headers = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
                connection.request(self.command, self.path, body=body, headers=headers)
                reply = connection.getresponse()
                content = reply.read()
                connection.close()
                if trouble == "lose reply":
                    return self.hang_up()
                self.send_response(reply.status)
                length = reply.getheader("Content-Length") or str(len(content))
                for name, value in reply.getheaders():
                    if name.lower() not in {"content-length", "transfer-encoding", "connection"}:
                        self.send_header(name, value)
                self.send_header("Content-Length", length)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content[: len(content) // 2] if trouble == "cut" else content)
                if trouble == "cut":
                    return self.hang_up()
                return None

            def hang_up(self) -> None:
                self.close_connection = True
                self.connection.close()

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = handle_any

            def finish(self) -> None:
                try:
                    super().finish()
                except (OSError, ValueError):
                    # The connection was cut on purpose.
                    self.close_connection = True

        class Server(ThreadingHTTPServer):
            def handle_error(self, request: Any, client_address: Any) -> None:
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    made = Proxy(f"http://{host}:{port}")
    yield made
    made.server.shutdown()
    made.server.server_close()
    server.stop()


@pytest.fixture
def bucket(proxy: Proxy, request: pytest.FixtureRequest) -> str:
    proxy.fault = lambda method, path: None
    name = f"bucket-{zlib.crc32(request.node.name.encode())}"
    client = boto3.client(
        "s3", endpoint_url=proxy.url, aws_access_key_id="k", aws_secret_access_key="s", region_name="us-east-1"
    )
    client.create_bucket(Bucket=name)
    client.close()
    return name


def store(proxy: Proxy, bucket: str) -> Store:
    return open_store(
        f"s3://{bucket}/runs/stream",
        {
            "endpoint_url": proxy.url,
            "key": "k",
            "secret": "s",
            "client_kwargs": {"region_name": "us-east-1"},
            "config_kwargs": {"retries": {"max_attempts": 1}, "connect_timeout": 0.5, "read_timeout": 0.5},
        },
    )


def test_an_object_store_keeps_the_same_promises(proxy: Proxy, bucket: str) -> None:
    there = store(proxy, bucket)
    with StreamWriter(there, SMALL, "w") as writer:
        acks = writer.append_many(records(range(12)), "shared")
        assert {ack.level for ack in acks} == {"shared"}
        assert writer.append(records([3])[0], "shared").is_duplicate
    write(there, range(10, 15), "v")
    expected = keys([12, 13, 14, *range(12)])
    drawn = StreamReader(there, ReadSettings(shuffle_rows=4)).draw(6)
    assert drawn is not None
    assert read_keys(there) == expected
    assert verify(there).problems == []
    compact(there)
    assert read_keys(there) == expected
    rest = read_keys(there, ReadSettings(shuffle_rows=4), drawn.cursor)
    assert len(rest) == 9
    ended = StreamReader(there)
    last = ended.draw(100)
    assert last is not None
    assert retain(there, [last.cursor]).num_rows == 15
    assert read_keys(there) == []


def test_an_identity_is_claimed_by_put_if_absent_and_the_older_owner_is_fenced(proxy: Proxy, bucket: str) -> None:
    there = store(proxy, bucket)
    older, newer = (StreamWriter(there, SMALL, "w") for _ in range(2))
    assert (older.lane, newer.lane) == (Lane("w", 1), Lane("w", 2))
    with pytest.raises(StreamFenced):
        older.append(records([0])[0], "shared")
    older.abandon()
    newer.close()


@pytest.mark.parametrize("trouble", ["drop", "delay", "500", "cut", "lose reply"])
def test_faults_on_the_way_lose_nothing_and_double_nothing(proxy: Proxy, bucket: str, trouble: str) -> None:
    chance = random.Random(trouble)
    guard = threading.Lock()

    def fault(method: str, path: str) -> str | None:
        with guard:
            return trouble if "parquet" in path and chance.random() < 0.35 else None

    there = store(proxy, bucket)
    acknowledged: list[str] = []
    before = proxy.num_faults
    settings = SMALL.model_copy(update={"rows_per_segment": 3})
    writer = StreamWriter(there, settings, "w")
    proxy.fault = fault
    for record in records(range(9)):
        for _ in range(12):
            try:
                ack = writer.append(record, "shared")
            except StreamError:
                # Told that it may not be stored; tried again with the same key.
                continue
            assert ack.level == "shared"
            acknowledged.append(ack.key)
            break
    proxy.fault = lambda method, path: None
    # Acknowledged means stored, now, with nothing more to come from the writer.
    stored = read_keys(there, ReadSettings(is_deduplicated=False))
    assert set(acknowledged) <= set(stored)
    writer.close()
    assert proxy.num_faults > before
    assert sorted(read_keys(there, ReadSettings(is_deduplicated=False))) == sorted(keys(range(9)))
    assert verify(there).problems == []


def test_an_object_store_can_keep_a_journal_on_the_local_disk(proxy: Proxy, bucket: str, tmp_path: Path) -> None:
    there = store(proxy, bucket)
    with pytest.raises(StreamError, match="set journal_dir"):
        StreamWriter(there, WriteSettings(has_journal=True), "w")
    settings = SMALL.model_copy(update={"has_journal": True, "journal_dir": str(tmp_path / "journal")})
    writer = StreamWriter(there, settings, "w")
    assert writer.append(records([0])[0], "local").level == "local"
    assert read_keys(there) == []
    assert writer.append(records([1])[0], "shared").level == "shared"
    assert writer.append(records([2])[0], "local").level == "local"
    writer.abandon()
    StreamWriter(there, settings, "w").close()
    assert sorted(read_keys(there)) == sorted(keys(range(3)))


def test_an_object_that_does_not_show_yet_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    there = open_store("memory://lagging/stream")
    writer = StreamWriter(there, SMALL, "w")
    hidden = iter([True])
    size = type(there).size

    def lagging(self: Store, path: str) -> int:
        if next(hidden, False):
            raise FileNotFoundError(path)
        return size(self, path)

    monkeypatch.setattr(type(there), "size", lagging)
    with pytest.raises(StreamError, match=r"^cannot publish .*FileNotFoundError"):
        writer.append(records([0])[0], "shared")
    assert writer.append(records([0])[0], "shared").level == "shared"
    writer.close()
    assert read_keys(there) == keys([0])


def test_a_bucket_that_is_not_there_is_told(proxy: Proxy, bucket: str) -> None:
    there = open_store("s3://no-such-bucket/stream", store(proxy, bucket).files.storage_options)  # type: ignore[attr-defined]
    with pytest.raises(StreamError, match=r"^cannot create no-such-bucket/stream/stream.json: .*bucket"):
        StreamWriter(there, SMALL, "w")


def test_another_back_end_of_fsspec_works_too() -> None:
    there = open_store("memory://some/stream")
    write(there, range(8))
    assert read_keys(there) == keys(range(8))
    assert verify(there).problems == []
    with pytest.raises(StreamError, match="cannot open nonsense://x"):
        open_store("nonsense://x")
