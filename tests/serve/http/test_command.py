"""`python -m serve.http`: a process that serves until it is told to stop."""

import re
import signal
import socket
from pathlib import Path

import httpx
import pytest

from serve.http.__main__ import main
from tests.engine.conftest import World
from tests.serve.http.hosting import command, settings_file
from tests.service.serving import folder_store, stored


def test_it_serves_and_stops_cleanly(world: World, tmp_path: Path) -> None:
    with command(settings_file(world, tmp_path)) as (address, process, log):
        body = {"prompt": "hello", "store": "local", "parameters": {"max_tokens": 5}}
        assert httpx.post(f"{address}/sample", json=body, timeout=60.0).status_code == 200
        process.send_signal(signal.SIGTERM)
        # As uvicorn does it: it ends by the signal that it was told to end by.
        assert process.wait(60.0) in (0, -signal.SIGTERM), log.read_text()
    said = log.read_text()
    assert "Traceback" not in said
    assert re.search(r"loading aligned \S+, base \S+; dtype float32, device cpu", said)
    assert len(stored(folder_store(tmp_path))) == 1


def test_what_is_wrong_is_told_before_anything_is_loaded(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = settings_file(world, tmp_path)
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
    (tmp_path / "file").touch()
    for place, said in (
        ("location={}/file", "/file/stream.json: Not a directory; check the path"),
        ("location={}/file/stream", "/file/stream/stream.json: Not a directory; check the path"),
        ("location=/proc/cong", "cannot make folders of /proc/cong: No such file or directory; check the path"),
        ("location=memory://stream", "set journal_dir or has_journal=false"),
        ("write.journal_dir={}/file/journal", "cannot make the journal's folder "),
    ):
        override = f"stream.{place.format(tmp_path)}"
        assert main(["--config", str(file), "--set", override, "--set", "stream.write.has_journal=true"]) == 2
        told = capsys.readouterr().err
        assert said in told
        assert "loading" not in told, override
    assert main(["--config", str(file), "--writer", "../elsewhere"]) == 2
    assert "writer id '../elsewhere' must match" in capsys.readouterr().err
