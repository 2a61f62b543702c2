"""Callers that leave or do not read, on a real server: their seats are free at once."""

import asyncio
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.engine.conftest import World
from tests.serve.http.hosting import server, wait_until
from tests.service.serving import LIMIT_S, StepByStep, Troubled, make_engine, run, until

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
    engine.step_s = 0.05
    with server(world, engine, max_samples=200) as (address, service):

        async def leave() -> None:
            async with httpx.AsyncClient(base_url=address, timeout=LIMIT_S) as client:
                headers = {"x-request-disconnect-disabled": "?1"}
                asking = [asyncio.ensure_future(client.post(path, json=body, headers=headers)) for _ in range(50)]
                num_running, num_inside = (1, 1) if path == "/score" else (16, 50)
                await until(lambda: service.health().num_running >= num_running)
                await until(lambda: service.health().num_running + service.health().num_waiting >= num_inside)
                for one in asking:
                    one.cancel()
                await asyncio.gather(*asking, return_exceptions=True)

        run(leave())
        wait_until(lambda: service.health().num_running == 0 and service.health().num_waiting == 0)
        if path != "/score":
            assert service.meter.value("cong_request_finished_total", "cancelled") == 50
        engine.step_s = 0.0
        assert httpx.post(f"{address}/sample", json={"prompt": "hello"}, timeout=LIMIT_S).status_code == 200


def test_a_caller_that_reads_nothing_is_given_up(world: World) -> None:
    with server(world, write_timeout_s=0.3) as (address, service):
        host, _, port = address.removeprefix("http://").partition(":")
        body = json.dumps({**LONG, "num_samples": 500, "stream": "tokens"}).encode()
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect((host, int(port)))
            head = f"POST /sample HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
            connection.sendall(f"{head}\r\n\r\n".encode() + body)
            wait_until(lambda: service.meter.value("cong_request_finished_total", "cancelled") > 0)
            wait_until(lambda: service.health().num_running == service.health().num_waiting == 0)
        assert httpx.get(f"{address}/health", timeout=LIMIT_S).json()["status"] == "ok"


def test_tokens_come_one_by_one_and_an_idle_stream_shows_that_it_lives(world: World) -> None:
    engine = StepByStep(make_engine(world))
    with server(world, engine, keep_alive_s=0.1) as (address, _):
        num_alive = num_tokens = 0
        body = {"prompt": "hello", "stream": "tokens", "parameters": {"max_tokens": 10, "ignore_eos": True}}
        headers = {"accept": "text/event-stream"}
        with httpx.stream("POST", f"{address}/sample", json=body, headers=headers, timeout=LIMIT_S) as response:
            assert response.status_code == 200
            for line in response.iter_lines():
                is_token, is_alive = '"event":"token"' in line, line == ": alive"
                if is_token or (is_alive and not num_alive):
                    # No step is done before what the last one drew has come.
                    engine.num_steps_allowed.release()
                num_tokens, num_alive = num_tokens + is_token, num_alive + is_alive
        assert num_tokens == 10


def test_closing_the_server_lets_what_runs_finish(world: World) -> None:
    engine = Troubled(make_engine(world))
    engine.may_go_on.clear()
    body = {"prompt": "hello", "parameters": {"max_tokens": 30, "ignore_eos": True}}
    with ThreadPoolExecutor(1) as threads:
        with server(world, engine) as (address, service):
            asking = threads.submit(httpx.post, f"{address}/sample", json=body, timeout=LIMIT_S)
            wait_until(lambda: service.health().num_waiting == 1)
            # Once the server has been told to close.
            threading.Timer(0.3, engine.may_go_on.set).start()
        assert asking.result().json()["samples"][0]["record"]["finish_reason"] == "length"
    assert service.health().status == "draining"
