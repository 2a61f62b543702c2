"""How threads wait: as the cores are, with a team of OpenMP's that is really there and really gone."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cong.config.engine import EngineConfig
from cong.engine import Engine, Generate
from cong.engine.cpu.waiting import Waiting, gives_way, seconds_without_a_core
from cong.schemas import Prompt, SamplingParameters
from tests.engine.conftest import World

PROGRAM = """
import os, time
from cong.config.engine import EngineConfig
from cong.engine import Engine, Generate
from cong.engine.cpu.waiting import Waiting

now, delay_s = 0.0, 0.0
waiting = Waiting(clock=lambda: now, delayed_s=lambda: delay_s)
num_tasks = lambda: len(os.listdir("/proc/self/task"))
before = num_tasks()

def see(at, delayed_s):
    global now, delay_s
    now, delay_s = at, delayed_s
    waiting.look()
    return waiting.is_brief, num_tasks() - before

assert see(1.0, 0.1) == (False, 0), "a tenth of the time is no contention"
assert see(2.0, 0.6) == (True, 2), "an idle thread, and the other one of its team"
assert see(2.1, 0.6) == (True, 2), "it does not look so often"
assert see(3.0, 1.6) == (True, 2), "one team is enough"
assert not see(4.0, 1.6)[0]
deadline = time.monotonic() + 20
while num_tasks() > before and time.monotonic() < deadline:
    time.sleep(0.01)
assert num_tasks() == before, "it is gone, a moment later"
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads as Linux shows them")
def test_threads_wait_briefly_while_cores_are_contended_and_long_again_afterwards() -> None:
    """In a process of its own, where no other thread comes or goes."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]


def test_closing_sends_the_idle_team_away() -> None:
    delays = iter((0.0, 0.5))
    times = iter((0.0, 1.0, 1.0))
    waiting = Waiting(clock=lambda: next(times), delayed_s=lambda: next(delays))
    waiting.look()
    was_brief = waiting.is_brief
    waiting.close()
    waiting.close()
    assert (was_brief, waiting.is_brief) == (True, False)


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="the kernel keeps no account")
def test_the_time_without_a_core_is_the_kernels_account() -> None:
    first = seconds_without_a_core()
    own = int(Path("/proc/self/schedstat").read_text().split()[1]) / 1e9
    assert first > 0.0
    assert own <= seconds_without_a_core()


def test_the_engine_looks_after_each_step_and_sends_the_team_away_when_it_closes(world: World) -> None:
    engine = Engine(world.networks(world.folder("llama", 1)), EngineConfig(kv_memory_bytes=2**20))
    now = iter(range(1_000))
    delay_s = iter(range(1_000))
    waiting = engine._waiting = Waiting(clock=lambda: next(now), delayed_s=lambda: next(delay_s))
    engine.submit(Generate("a", Prompt(token_ids=(3, 4)), SamplingParameters(weights=(1.0,), max_tokens=2)))
    seen = [waiting.is_brief]
    engine.events()
    seen.append(waiting.is_brief)
    engine.close()
    seen.append(waiting.is_brief)
    assert seen == [False, True, False], "no core for as long as the clock went; nobody left behind"


@pytest.mark.skipif(sys.platform != "linux", reason="Linux keeps priorities by thread")
def test_a_thread_that_gives_way_is_left_alone() -> None:
    found: list[bool] = []

    def look() -> None:
        own = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, own, os.getpriority(os.PRIO_PROCESS, own) + 1)
        times, delays = iter((0.0, 1.0, 1.0)), iter((0.0, 1.0))
        waiting = Waiting(clock=lambda: next(times), delayed_s=lambda: next(delays))
        waiting.look()
        found.append(waiting.is_brief)

    assert not gives_way()
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [False]
