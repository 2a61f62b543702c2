"""A real service: two tiny random networks as a pair, on uvicorn, without Ray, in this process or in one of its own.

`python -m tests.client.service_process CONFIG WRITER` is that process.
"""

import asyncio
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from cong.client import Client
from cong.config import RunConfig, dump_config, load_config
from cong.config.loading import check
from cong.config.stream import ReadSettings
from cong.schemas import SampleRecord
from cong.stream import StreamReader, open_store
from serve.ports import free_port
from tests.engine.conftest import FAMILIES, save_network

if TYPE_CHECKING:
    import uvicorn

CONTEXT = 8192
"""Tokens: long enough that an answer does not end before a test has interrupted it."""
ROOT = Path(__file__).parent.parent.parent
READY_S = 90.0


def serve(config: RunConfig, writer_id: str) -> "uvicorn.Server":
    """A server of the configuration's networks, not started."""
    import uvicorn

    from cong.service import open_service
    from serve.http import create_app

    service = open_service(config, writer_id)
    app = create_app(lambda: service, config.service, owns_service=True)
    return uvicorn.Server(
        uvicorn.Config(app, host=config.service.host, port=config.service.port, log_level="warning", lifespan="on")
    )


def main(config_file: Path, writer_id: str) -> None:
    """Serve until told to stop."""
    import torch

    torch.set_num_threads(1)
    serve(load_config(RunConfig, [config_file]), writer_id).run()


def network(folder: Path, seed: int) -> Path:
    """A random network whose tokens are letters."""
    config = FAMILIES["llama"]()
    config.max_position_embeddings = CONTEXT
    return save_network(folder, config, seed)


class Service:
    """The settings of a service that keeps samples in a folder, and what lies there."""

    def __init__(self, folder: Path, **service: Any) -> None:
        self.stream = folder / "stream"
        self.folder = folder
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.num_starts = 0
        content = {
            "output_dir": str(folder),
            "models": {
                "aligned": {"source": str(network(folder / "aligned", 1))},
                "base": {"source": str(network(folder / "base", 2))},
                "dtype": "float32",
            },
            "sampling": {"max_tokens": 24},
            "engine": {"kv_memory_bytes": 8_000_000, "max_running": 16},
            "stream": {"location": str(self.stream), "write": {"acknowledge_s": 0.0}},
            "service": {"port": port, "may_store_prompts": True, **service},
        }
        self.config = check(RunConfig, content, "test")

    def wait_ready(self) -> Self:
        with Client(self.url) as client:
            client.wait_ready(READY_S)
        return self

    def records(self) -> list[SampleRecord]:
        """Everything that is stored, the same key twice included if it were there."""
        if not self.stream.exists():
            return []
        reader = StreamReader(open_store(str(self.stream)), ReadSettings(is_deduplicated=False))
        return [record for record in reader.records() if isinstance(record, SampleRecord)]


class ServiceThread(Service):
    """A service in this process, which starts quickly and cannot crash."""

    def server(self, writer_id: str) -> "uvicorn.Server":
        """The server that a start makes."""
        return serve(self.config, writer_id)

    def start(self) -> Self:
        """Begin to serve; after a stop at the same address as before."""
        self.num_starts += 1
        self._server = self.server(f"w{self.num_starts}")
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        return self.wait_ready()

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(READY_S)
        assert not self._thread.is_alive(), "the service does not stop"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class HeldService(ServiceThread):
    """Answers requests for samples until so many are stored, and holds whoever asks then until it may go on."""

    max_records: float = math.inf
    """Those that were let in together may bring some more."""

    def server(self, writer_id: str) -> "uvicorn.Server":
        server = super().server(writer_id)
        app: Any = server.config.app

        async def held(scope: Any, receive: Any, send: Any) -> None:
            while scope.get("path") == "/sample" and len(self.records()) >= self.max_records:
                await asyncio.sleep(0.05)
            await app(scope, receive, send)

        server.config.app = held
        return server

    def stop(self) -> None:
        self.max_records = math.inf
        super().stop()


class ServiceProcess(Service):
    """A service in a process of its own, which can be killed."""

    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Begin to serve; after a crash at the same address as before."""
        self.num_starts += 1
        file = self.folder / "service.yaml"
        file.write_text(dump_config(self.config))
        with (self.folder / "service.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.client.service_process", str(file), f"w{self.num_starts}"],
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stderr=log,
                stdout=log,
            )
        return self.wait_ready()

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """As a crash would, and wait until it is gone."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(READY_S)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(READY_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(READY_S)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
