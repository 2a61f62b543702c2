"""The application with a real engine behind it: in process, or on a real server on this machine."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn
import yaml

from cong.config.service import ServiceConfig
from cong.engine import Engine, EngineProtocol
from cong.schemas import SamplingParameters
from cong.service import Archive, SampleService, facts_of
from serve.http import create_app
from tests.engine.conftest import World
from tests.service.serving import CHAT_TEMPLATE, DEFAULTS, ENGINE, LIMIT_S, pair, serving, until
from tests.test_house import ROOT

BASE_URL = "http://cong.test"


@dataclass
class Hosted:
    """An application and ways to it."""

    client: httpx.AsyncClient
    service: SampleService
    app: Any


@asynccontextmanager
async def hosting(
    world: World,
    engine: EngineProtocol | None = None,
    archive: Archive | None = None,
    defaults: SamplingParameters = DEFAULTS,
    headers: dict[str, str] | None = None,
    **config: Any,
) -> AsyncIterator[Hosted]:
    """The application in this process."""
    async with serving(world, engine, archive, defaults, **config) as service:
        app = create_app(lambda: service, service.config)
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url=BASE_URL, headers=headers, timeout=30.0) as client:
            yield Hosted(client, service, app)


@contextmanager
def server(
    world: World,
    engine: EngineProtocol | None = None,
    archive: Archive | None = None,
    defaults: SamplingParameters = DEFAULTS,
    **config: Any,
) -> Iterator[tuple[str, SampleService]]:
    """The application on a real server on this machine; its address and its service."""
    networks = pair(world)
    inner = engine or Engine(networks, ENGINE, writer="test")
    settings = ServiceConfig(**({"drain_s": LIMIT_S, "may_store_prompts": archive is not None} | config))
    service = SampleService(inner, facts_of(networks, 160, defaults), settings, archive)
    app = create_app(lambda: service, settings, owns_service=True)
    listening = socket.create_server(("127.0.0.1", 0))
    running = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on", timeout_graceful_shutdown=60))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        started_s = time.monotonic()
        while not running.started:
            assert time.monotonic() - started_s < LIMIT_S, "the server does not start"
            assert thread.is_alive(), "the server has failed"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", service
    finally:
        running.should_exit = True
        thread.join(2 * LIMIT_S)
        listening.close()
        assert not thread.is_alive(), "the server does not stop"


def settings_file(world: World, folder: Path, sampling: dict[str, Any] | None = None, **service: Any) -> Path:
    """What `python -m serve.http` is given for a tiny pair."""
    template = folder / "template.jinja"
    template.write_text(CHAT_TEMPLATE)
    content = {
        "num_threads": 1,
        "models": {
            "aligned": {"source": str(world.folder("llama", 1))},
            "base": {"source": str(world.folder("llama", 2))},
            "dtype": "float32",
            "chat_template": str(template),
        },
        "engine": {"kv_memory_bytes": 1 << 22, "kernel": "torch"},
        "stream": {"location": str(folder / "stream")},
        "sampling": sampling or {},
        "service": {"port": 0, "may_store_prompts": True, "drain_s": 10.0} | service,
    }
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


@contextmanager
def command(settings: Path) -> Iterator[tuple[str, subprocess.Popen[bytes], Path]]:
    """`python -m serve.http` as a process of its own; its address, the process and its log."""
    log = settings.with_name("log")
    words = [sys.executable, "-m", "serve.http", "--config", str(settings)]
    with log.open("wb") as sink:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(words, stderr=sink, stdout=sink, cwd=ROOT, env=environment)
    try:
        wait_until(lambda: "running on http" in log.read_text() or process.poll() is not None, 2 * LIMIT_S)
        assert process.poll() is None, log.read_text()
        yield log.read_text().split("running on ")[1].split()[0], process, log
    finally:
        process.kill()
        process.wait(LIMIT_S)


def wait_until(is_so: Any, limit_s: float = LIMIT_S) -> None:
    """Wait until something is so in a server's process, which then stays so."""
    until_s = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < until_s, f"not so within {limit_s:g} s"
        time.sleep(0.005)


def lines(text: str) -> list[dict[str, Any]]:
    """Events of an answer in lines."""
    return [json.loads(line) for line in text.splitlines() if line]


def sse(text: str) -> list[str]:
    """Data of server-sent events."""
    return [part.removeprefix("data: ") for part in text.split("\n\n") if part.startswith("data: ")]


async def nothing_left(service: SampleService) -> None:
    """Every seat is free again."""
    await until(lambda: service.health().num_running == service.health().num_waiting == 0)
