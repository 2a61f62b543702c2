"""`python -m serve.http`: a process that serves until it is told to stop."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml

from serve.http.__main__ import main
from tests.engine.conftest import World
from tests.serve.http.hosting import wait_until
from tests.service.serving import folder_store, stored
from tests.test_house import ROOT


def settings(world: World, folder: Path) -> Path:
    file = folder / "run.yaml"
    content = {
        "num_threads": 1,
        "models": {
            "aligned": {"source": str(world.folder("llama", 1))},
            "base": {"source": str(world.folder("llama", 2))},
            "dtype": "float32",
        },
        "engine": {"kv_memory_bytes": 1 << 22, "kernel": "torch"},
        "stream": {"location": str(folder / "stream")},
        "service": {"port": 0, "may_store_prompts": True, "drain_s": 10.0},
    }
    file.write_text(yaml.safe_dump(content))
    return file


def test_it_serves_and_stops_cleanly(world: World, tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-m", "serve.http", "--config", str(settings(world, tmp_path))]
    with log.open("wb") as sink:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stderr=sink, stdout=sink, cwd=ROOT, env=environment)
    try:
        wait_until(lambda: "running on http" in log.read_text() or process.poll() is not None, 120.0)
        assert process.poll() is None, log.read_text()
        address = log.read_text().split("running on ")[1].split()[0]
        body = {"prompt": "hello", "store": "local", "parameters": {"max_tokens": 5}}
        assert httpx.post(f"{address}/sample", json=body, timeout=60.0).status_code == 200
        process.send_signal(signal.SIGTERM)
        # As uvicorn does it: it ends by the signal that it was told to end by.
        assert process.wait(60.0) in (0, -signal.SIGTERM), log.read_text()
    finally:
        process.kill()
        process.wait(10.0)
    assert "Traceback" not in log.read_text()
    assert len(stored(folder_store(tmp_path))) == 1


def test_what_is_wrong_is_told_before_anything_is_loaded(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = settings(world, tmp_path)
    assert main(["--config", str(file), "--dry-run"]) == 0
    assert "may_store_prompts: true" in capsys.readouterr().out
    assert main(["--config", str(file), "--set", "service.host=0.0.0.0"]) == 2
    assert "there are no keys" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--config", str(file), "--set", f"service.port={port}"]) == 2
    assert f"port {port} of 127.0.0.1 cannot be listened on" in capsys.readouterr().err
    assert main(["--config", str(file), "--set", "service.api_keys_file=none"]) == 2
    assert "cannot read the API keys" in capsys.readouterr().err
