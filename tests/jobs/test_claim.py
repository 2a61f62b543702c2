"""Of two drivers one trains a run: the other is told so at once, and takes over only from one that is dead."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.claim import FOLDER, Claim, Driver, Interrupted, RunIsTaken

HOLD = """
import sys, time
from pathlib import Path
from jobs.claim import Claim, Driver
with Claim(Path(sys.argv[1]), Driver.this("job-1"), 20.0) as claim:
    print("held", flush=True)
    while claim.loss is None:
        time.sleep(0.05)
    print(claim.loss, flush=True)
"""

TAKEOVER_S = 20.0
"""It gives a sign of life every tenth of this, and believes in its loss after half of it."""


def elsewhere() -> Driver:
    """As a driver on another machine, whose processes cannot be looked at."""
    return replace(Driver.this(), machine="another", host="another")


def test_a_claim_is_given_back_and_taken_again(tmp_path: Path) -> None:
    for _ in range(3):
        with Claim(tmp_path, Driver.this(), TAKEOVER_S) as claim:
            assert claim.loss is None
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == ["claim-00000003.json"]


def test_a_living_driver_keeps_its_run(tmp_path: Path) -> None:
    with Claim(tmp_path, elsewhere(), TAKEOVER_S) as claim:
        with pytest.raises(RunIsTaken, match=r"being trained by process \d+ on another; nothing was started"):
            Claim(tmp_path, Driver.this(), 60.0).__enter__()
        assert claim.loss is None


def test_of_many_that_begin_at_once_one_gets_the_run(tmp_path: Path) -> None:
    claims = [Claim(tmp_path, elsewhere(), 20.0) for _ in range(8)]

    def enter(claim: Claim) -> bool:
        try:
            claim.__enter__()
        except RunIsTaken:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(enter, claims))
    assert sum(got) == 1
    claims[got.index(True)].__exit__(None, None, None)


def hold(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait(30)
    assert process.stdout is not None
    process.stdout.close()


def test_a_killed_driver_of_this_machine_is_known_to_be_dead(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    process = hold(tmp_path)
    try:
        with pytest.raises(RunIsTaken, match=f"process {process.pid} on .*, job job-1"):
            Claim(tmp_path, Driver.this(), 60.0).__enter__()
    finally:
        end(process)
    # Looking whether it is alive would take longer than a test may.
    with Claim(tmp_path, Driver.this(), 3600.0):
        pass
    assert f"taking over from process {process.pid}" in caplog.text


def test_a_silent_driver_loses_its_run_and_hears_of_it(tmp_path: Path) -> None:
    process = hold(tmp_path)
    try:
        os.kill(process.pid, signal.SIGSTOP)
        with Claim(tmp_path, elsewhere(), 2.0):
            os.kill(process.pid, signal.SIGCONT)
            assert process.stdout is not None
            assert process.stdout.readline().strip()
            assert [path.name for path in (tmp_path / FOLDER).iterdir()] == ["claim-00000002.json"]
    finally:
        end(process)


def test_a_driver_whose_run_was_taken_over_says_by_whom(tmp_path: Path) -> None:
    with Claim(tmp_path, elsewhere(), TAKEOVER_S) as former:
        # What a driver does that has found this one silent for long enough.
        (tmp_path / FOLDER / "claim-00000007.json").write_text("{}")
        until_s = time.monotonic() + 60.0
        while former.loss is None:
            assert time.monotonic() < until_s, "it never hears of it"
            time.sleep(0.05)
        assert "has taken the run over" in former.loss
    with Claim(tmp_path, Driver.this(), 0.5):
        assert (tmp_path / FOLDER / "claim-00000008.json").exists()


def test_waiting_for_a_silent_driver_can_be_stopped(tmp_path: Path) -> None:
    process = hold(tmp_path)
    try:
        os.kill(process.pid, signal.SIGSTOP)
        with pytest.raises(Interrupted):
            Claim(tmp_path, Driver.this(), 600.0, lambda: True).__enter__()
    finally:
        end(process)
