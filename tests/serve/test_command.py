"""`python -m serve`: checks without starting, starts what it says, stops all that it started."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread, Timer

import pytest

from cong.client import Client
from cong.errors import ConfigError, Unavailable
from cong.schemas import SamplingParameters
from serve.__main__ import DEFAULT_FILE, build_parser, main
from serve.local import cause_of, require_room, wait_answering
from serve.ports import free_port

from ..processes import alive, below, kill
from ..test_house import ROOT
from .application import LIMIT_S, eventually

LAB = str(DEFAULT_FILE)
CLUSTER = str(DEFAULT_FILE.with_name("config.yaml"))


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """The command sets this process's environment for a Ray of its own; tests that follow have theirs."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.parametrize("path", [LAB, CLUSTER])
def test_a_dry_run_shows_what_it_resolves_to(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", path, "--dry-run", "--set", "engine.max_running=33", "--port", "8111"]) == 0
    shown = capsys.readouterr().out
    assert "http://127.0.0.1:8111" in shown
    assert "max_running: 33" in shown


def test_a_builder_of_one_s_own_is_named_in_the_file_and_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(DEFAULT_FILE.read_text().replace("serve.app:build", "mine.app:build"))
    command = ["--config", str(file), "--dry-run"]
    assert main([*command, "--application", "mine.app:build"]) == 0
    assert main(command) == 2
    assert "0 of 1 applications have serve.app:build" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "there are no keys"),
        (["--set", "engine.max_runing=3"], "the nearest known one is 'engine.max_running'"),
        (["--config", "no/such.yaml"], "cannot read no/such.yaml"),
        (["--set", "nonsense"], "write it as section.key=value"),
        (["--port", "70000"], "ports are 1 to 65535"),
        (["--start-timeout", "0"], "--start-timeout is 0; give more than 0 seconds"),
        (["--set", "uses_lab_pair=false"], "models.aligned.source names no network"),
        (
            ["--set", "models.base.source=mine"],
            "models.base.source is 'mine', and uses_lab_pair serves the models of the",
        ),
    ],
)
def test_what_is_wrong_is_told_before_anything_starts(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--dry-run"]) == 2
    assert message in capsys.readouterr().err
    assert main(arguments) == 2
    assert "starting" not in capsys.readouterr().out


def test_ctrl_c_while_ray_starts_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("serve.__main__.run", interrupted)
    assert main([]) == 130
    assert capsys.readouterr().err == "serve: interrupted\n"


def test_a_port_that_is_taken_is_told_before_anything_starts(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["--port", str(taken.getsockname()[1])]) == 2
    shown = capsys.readouterr()
    assert "give another with --port" in shown.err
    assert "starting" not in shown.out


def test_a_replica_that_this_machine_has_no_room_for_is_refused_and_not_waited_for() -> None:
    machine = {"CPU": 2.0, "memory": 1e9}
    require_room({"num_cpus": 2.0, "num_gpus": 0.0}, machine)
    with pytest.raises(ConfigError, match=r"asks for 1 GPU and there are 0, 1 sampler and there are 0 on this machine"):
        require_room({"num_cpus": 2.0, "num_gpus": 1.0, "resources": {"sampler": 1.0}}, machine)
    with pytest.raises(ConfigError, match="asks for 1 CPU and there are 0"):
        require_room({"num_cpus": 1.0, "num_gpus": 0.0}, {})


@contextmanager
def answering(*replies: tuple[int, str]) -> Iterator[str]:
    """A server that gives these answers one after the other, and the last again and again."""
    left = list(replies)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, text = left.pop(0) if len(left) > 1 else left[0]
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


OF_A_PROXY = (404, "Path '/health' not found. Ping http://.../-/routes for available routes.")


def test_it_is_ready_once_requests_reach_the_application() -> None:
    with answering(OF_A_PROXY, (503, "no server"), (200, '{"status": "ok"}')) as url:
        wait_answering(url, 60.0)
    with pytest.raises(Unavailable, match=r"is not ready after 0\.1 s: .*no connection"):
        wait_answering(url, 0.1)


def test_waiting_for_an_application_that_no_proxy_knows_of_ends_and_can_be_ended() -> None:
    def leave(_: str) -> None:
        raise KeyboardInterrupt

    with answering(OF_A_PROXY) as url:
        with pytest.raises(Unavailable, match=r"after 3 s: .*status 404, \"Path '/health' not found"):
            wait_answering(url, 3.0)
        with pytest.raises(KeyboardInterrupt):
            wait_answering(url, 60.0, leave)


def test_of_a_start_that_failed_our_own_words_are_told_without_the_traceback() -> None:
    said = (
        "The deployment failed to start 3 times in a row. Error:\nRuntimeError: Traceback (most recent call last):\n"
        '  File "serve/deployment.py", line 72\ncong.errors.ArtefactMissing: /nope does not exist; give a folder\n\n'
    )
    assert cause_of(said) == "/nope does not exist; give a folder"
    assert cause_of("the node died\n") == "the node died"


def test_a_host_that_others_reach_is_taken_with_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--host", "0.0.0.0", "--set", f"service.api_keys_file={tmp_path / 'keys'}", "--dry-run"]) == 0
    assert "0.0.0.0" not in capsys.readouterr().out.splitlines()[0], "the address shown is one to connect to"


def test_the_help_names_every_option_and_the_cluster_s_way(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["--help"])
    shown = capsys.readouterr().out
    for word in ("--config", "--set", "--host", "--dry-run", "Ctrl-C", "serve deploy serve/config.yaml"):
        assert word in shown


@contextmanager
def running(*arguments: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The command in a process and a folder of its own, ended with all that it started whatever happens."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HOME": str(folder)}
    process = subprocess.Popen(
        [sys.executable, "-m", "serve", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    # Reading waits for lines; this ends the wait where none comes.
    guard = Timer(2 * LIMIT_S, process.kill)
    guard.start()
    try:
        yield process
    finally:
        guard.cancel()
        kill(below(process))
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def lines_until(process: subprocess.Popen[str], beginning: str) -> list[str]:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(beginning):
            return lines
    pytest.fail(f"it ended without {beginning!r}:\n{''.join(lines)}")


@pytest.mark.ray
@pytest.mark.slow
def test_it_serves_until_ctrl_c_and_leaves_nothing_behind(tmp_path: Path) -> None:
    port = free_port()
    with running("--port", str(port), "--num-cpus", "2", folder=tmp_path) as process:
        told = "".join(lines_until(process, "ready"))
        assert "INFO" not in told
        assert re.search(r"aligned +strong_base .*0\.34 million parameters, fingerprint w1-\w+", told)
        assert re.search(r"memory +[\d,]+ MiB", told)
        assert f"curl -s http://127.0.0.1:{port}/sample" in told
        started = below(process)
        assert len(started) > 3
        with Client(f"http://127.0.0.1:{port}") as client:
            reply = client.sample("Sdbgaf=", parameters=SamplingParameters(max_tokens=4), store="local")
        assert reply.samples[0].stored == "local"
        process.send_signal(signal.SIGINT)
        said = lines_until(process, "stopped")
        own = [line for line in said if line.startswith(("draining", "stopped"))]
        assert own == ["draining; Ctrl-C again stops at once\n", "stopped\n"], "nothing was in flight"
        assert process.wait(timeout=LIMIT_S) == 0
    eventually(lambda: not alive(started), "every process that it started has ended")
    # Draining closes the stream: its lane says that it is complete.
    assert list((tmp_path / "runs" / "serve" / "stream" / "writers").glob("*.closed"))
    assert not list(tmp_path.glob(".ray/*")), "no token in the home folder"
