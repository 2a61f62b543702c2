"""HAProxy's configuration is completed, or refused where it is of another form; what is put in, it understands."""

import subprocess
import sys
from pathlib import Path

import pytest

from serve.haproxy import completed
from serve.private import haproxy_environment

WRITTEN = """\
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    option splice-request
frontend prometheus
    bind :{metrics}
    http-request use-service prometheus-exporter if {{ path /metrics }}
frontend http_frontend
    bind *:{entrance}
    default_backend default_backend
backend default_backend
    http-request return status 404
listen stats
  bind *:{pages}
  stats enable
"""
"""What this program relies on, as Ray writes it. That Ray still does is shown where one is deployed."""


def test_pages_are_for_the_machine_and_the_entrance_strips_headers() -> None:
    given = completed(WRITTEN.format(metrics=1, entrance=2, pages=3))
    assert "bind 127.0.0.1:1\n" in given
    assert "bind 127.0.0.1:3\n" in given
    assert "bind *:2\n    http-request del-header x-request-timeout-seconds\n" in given
    assert "    http-request del-header x-request-disconnect-disabled\n    default_backend" in given


def test_a_file_that_was_completed_is_left_alone() -> None:
    once = completed(WRITTEN.format(metrics=1, entrance=2, pages=3))
    assert completed(once) == once


@pytest.mark.parametrize("line", ["frontend prometheus\n", "frontend http_frontend\n", "listen stats\n"])
def test_a_configuration_of_another_form_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="RAY_SERVE_ENABLE_HA_PROXY=0"):
        completed(WRITTEN.format(metrics=1, entrance=2, pages=3).replace(line, "frontend other\n"))


ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="Ray brings HAProxy along on Linux alone")


@ON_LINUX
def test_two_on_one_machine_share_no_file_and_no_port(tmp_path: Path) -> None:
    one, other = (haproxy_environment(tmp_path / name) for name in ("one", "other"))
    own = {name for name, value in one.items() if value != other[name]}
    assert {name for name, value in one.items() if "PORT" in name or str(tmp_path) in value} == own
    assert len({value for each in (one, other) for name, value in each.items() if "PORT" in name}) == 6


def test_it_can_be_turned_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "0")
    assert haproxy_environment(tmp_path) == {}


@ON_LINUX
def test_the_program_becomes_haproxy_and_says_what_it_refuses(tmp_path: Path) -> None:
    file = tmp_path / "haproxy.cfg"
    file.write_text(WRITTEN.format(metrics=10001, entrance=10002, pages=10003))
    command = [sys.executable, "-c", "from serve.haproxy import main; main()", "-c", "-V", "-f", str(file)]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert checked.returncode == 0, checked.stderr
    assert "Configuration file is valid" in checked.stdout
    file.write_text("defaults\n")
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 1
    assert f"{file}: 0 pages and 0 entrances" in refused.stderr
