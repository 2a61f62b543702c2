"""Callers that leave or do not read, on a real server: their seats are free at once."""

import asyncio
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.engine.conftest import World
from tests.serve.http.hosting import server, wait_until
from tests.service.serving import Troubled, make_engine, run

LONG: dict[str, Any] = {"prompt": "hello", "parameters": {"max_tokens": 140, "ignore_eos": True}}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/sample", LONG),
        ("/sample", {**LONG, "stream": "tokens"}),
        ("/v1/completions", {"model": "cong", "prompt": "hello", "max_tokens": 140, "ignore_eos": True}),
        (
            "/v1/completions",
            {"model": "cong", "prompt": "hello", "max_tokens": 140, "ignore_eos": True, "stream": True},
        ),
        ("/score", {"items": [{"prompt": {"text": "a"}, "completion_text": "b" * 150}] * 200}),
    ],
    ids=["document", "stream", "completion", "completion-stream", "score"],
)
def test_fifty_who_leave_running_or_waiting_free_their_seats(world: World, path: str, body: dict[str, Any]) -> None:
    engine = Troubled(make_engine(world))
    engine.step_s = 0.02
    with server(world, engine, max_samples=200) as (address, service):

        async def leave() -> None:
            async with httpx.AsyncClient(base_url=address, timeout=10.0) as client:
                headers = {"x-request-disconnect-disabled": "?1"}
                asking = [asyncio.ensure_future(client.post(path, json=body, headers=headers)) for _ in range(50)]
                while service.health().num_running < (1 if path == "/score" else 16):
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.1)
                for one in asking:
                    one.cancel()
                await asyncio.gather(*asking, return_exceptions=True)

        run(leave())
        took_s = wait_until(lambda: service.health().num_running == 0 and service.health().num_waiting == 0)
        assert took_s < 2.0
        engine.step_s = 0.0
        assert httpx.post(f"{address}/sample", json={"prompt": "hello"}).status_code == 200


def test_a_caller_that_reads_nothing_is_given_up(world: World) -> None:
    with server(world, write_timeout_s=0.3) as (address, service):
        host, _, port = address.removeprefix("http://").partition(":")
        body = json.dumps({**LONG, "num_samples": 500, "stream": "tokens"}).encode()
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect((host, int(port)))
            head = f"POST /sample HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
            connection.sendall(f"{head}\r\n\r\n".encode() + body)
            wait_until(lambda: service.health().num_running > 0)
            wait_until(lambda: service.health().num_running == service.health().num_waiting == 0, 30.0)
            assert service.meter.value("cong_request_finished_total", "cancelled") > 0
        assert httpx.get(f"{address}/health").json()["status"] == "ok"


def test_tokens_come_one_by_one_and_an_idle_stream_shows_that_it_lives(world: World) -> None:
    engine = Troubled(make_engine(world))
    with server(world, engine, keep_alive_s=0.1) as (address, _):
        started_s = time.monotonic()
        arrived_s: list[float] = []
        body = {"prompt": "hello", "stream": "tokens", "parameters": {"max_tokens": 10, "ignore_eos": True}}
        engine.may_go_on.clear()
        headers = {"accept": "text/event-stream"}
        with httpx.stream("POST", f"{address}/sample", json=body, headers=headers, timeout=10.0) as response:
            assert response.status_code == 200
            for line in response.iter_lines():
                if line == ": alive" and not arrived_s:
                    engine.step_s = 0.05
                    engine.may_go_on.set()
                    assert time.monotonic() - started_s < 5.0
                elif '"event":"token"' in line:
                    arrived_s.append(time.monotonic())
        assert len(arrived_s) == 10
        assert arrived_s[-1] - arrived_s[0] > 0.3, "they were not kept back"


def test_closing_the_server_lets_what_runs_finish(world: World) -> None:
    engine = Troubled(make_engine(world))
    engine.step_s = 0.02
    body = {"prompt": "hello", "parameters": {"max_tokens": 30, "ignore_eos": True}}
    with ThreadPoolExecutor(1) as threads:
        with server(world, engine) as (address, service):
            asking = threads.submit(httpx.post, f"{address}/sample", json=body, timeout=10.0)
            wait_until(lambda: service.health().num_running == 1)
        assert asking.result().json()["samples"][0]["record"]["finish_reason"] == "length"
    assert service.health().status == "draining"
