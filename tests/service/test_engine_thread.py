"""The engine's thread and what computes with it: given way as asked, and nobody else's helpers beside it."""

import gc
import os
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from cong.config import RunConfig
from cong.config.service import ServiceConfig
from cong.engine import Engine, Generate, LocalEngine, open_engine
from cong.errors import ArtefactMissing, ConfigError, CongError, StreamError
from cong.schemas import Prompt
from cong.service import Archive, SampleService, building, facts_of
from cong.service.building import in_a_thread_that_ends
from cong.service.engine_thread import EngineThread, waited_for_processor_s
from cong.stream import list_stream
from cong.wire import SampleCall
from tests.engine.conftest import World
from tests.service.serving import DEFAULTS, LIMIT_S, Troubled, folder_store, make_engine, pair, run, serving, until


@pytest.mark.parametrize("niceness", [0, 3])
def test_the_engine_gives_way_by_as_much_as_it_was_told(world: World, niceness: int) -> None:
    async def main() -> None:
        async with serving(world, engine_niceness=niceness):
            (thread,) = [one for one in threading.enumerate() if one.name == "engine" and one.is_alive()]
            assert thread.native_id is not None
            own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
            number = thread.native_id
            await until(lambda: os.getpriority(os.PRIO_PROCESS, number) == own + niceness)
            assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == own

    run(main())


def test_time_without_a_processor_makes_no_engine_stuck(world: World) -> None:
    engine = Troubled(make_engine(world))
    engine.may_go_on.clear()
    now_s, waited_s = 100.0, 7.0
    thread = EngineThread(engine, lambda _: None, clock=lambda: now_s, waited_s=lambda _: waited_s)
    thread.start()
    thread.put([Generate("r", Prompt(text="abc"), DEFAULTS)])
    until_s = time.monotonic() + LIMIT_S
    while thread._busy_since is None:
        assert time.monotonic() < until_s
    assert thread.busy_s() == 0.0
    now_s, waited_s = 120.0, 26.0
    assert thread.busy_s() == 1.0
    now_s = 130.0
    assert thread.busy_s() == 11.0, "it has its processor and does not come to an end"
    engine.may_go_on.set()
    assert thread.stop(LIMIT_S)
    assert thread.busy_s() == 0.0


BESIDE_ANOTHER = """
import os, threading, time
from cong.service.engine_thread import waited_for_processor_s
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
other = os.fork()
while other == 0:
    pass
until_s = time.monotonic() + 60
while waited_for_processor_s(threading.get_native_id()) < 0.2 and time.monotonic() < until_s:
    pass
os.kill(other, 9)
print(waited_for_processor_s(threading.get_native_id()) >= 0.2)
"""


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="this system does not tell")
def test_a_thread_that_shares_its_processor_is_known_to_wait() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BESIDE_ANOTHER], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout == "True\n"
    assert waited_for_processor_s(-1) == 0.0


@pytest.mark.parametrize("fails", [False, True])
def test_a_service_that_closes_has_closed_its_engine_in_the_engine_s_own_thread(world: World, fails: bool) -> None:
    engine = Troubled(make_engine(world))

    async def main() -> None:
        async with serving(world, engine) as service:
            engine.failure = ArithmeticError("no more") if fails else None
            call = SampleCall(prompts=(Prompt(text="abc"),), parameters=DEFAULTS)
            with pytest.raises(CongError) if fails else nullcontext():
                await service.sample(call)
        assert engine.closed_in == ["engine"]

    run(main())


def test_a_service_that_was_never_started_closes_its_engine_too(world: World) -> None:
    engine = Troubled(make_engine(world))
    facts = facts_of(pair(world), 100, DEFAULTS)
    run(SampleService(engine, facts, ServiceConfig(may_store_prompts=False)).close())
    assert len(engine.closed_in) == 1


def num_threads() -> int:
    return len(os.listdir("/proc/self/task"))


def test_tensor_work_in_a_thread_that_ends_leaves_no_helpers() -> None:
    before, threads = torch.get_num_threads(), 5
    torch.set_num_threads(threads)
    try:
        num_before, num_within = num_threads(), 0

        def work() -> float:
            nonlocal num_within
            matrix = torch.ones(512, 512)
            found = float((matrix @ matrix).exp().sum() + matrix.add(1.0).sum())
            num_within = num_threads()
            return found

        assert in_a_thread_that_ends(work) > 0.0
        assert num_within > num_before + 1, "there were helpers"
        until_s = time.monotonic() + LIMIT_S
        while num_threads() > num_before:
            assert time.monotonic() < until_s, "helpers are left"
            time.sleep(0.01)
    finally:
        torch.set_num_threads(before)


def test_an_error_in_such_a_thread_is_raised_by_who_asked() -> None:
    def fail() -> None:
        raise KeyError("gone")

    with pytest.raises(KeyError, match="gone"):
        in_a_thread_that_ends(fail)


def test_a_service_loads_its_networks_in_such_a_thread(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[threading.Thread] = []
    load = open_engine

    def note(*arguments: Any, **options: Any) -> LocalEngine:
        found.append(threading.current_thread())
        return load(*arguments, **options)

    monkeypatch.setattr(building, "open_engine", note)
    models = {role: {"source": str(world.folder("llama", seed))} for role, seed in (("aligned", 1), ("base", 2))}
    building.open_service(RunConfig.model_validate({"models": models}), "w")
    assert gc.get_freeze_count(), "the engine is as old as its process"
    gc.unfreeze()
    (thread,) = found
    assert thread is not threading.current_thread()
    assert not thread.is_alive()


def test_a_service_whose_own_weights_fit_no_request_is_refused_before_it_loads_anything(tmp_path: Path) -> None:
    alone = {"models": {"strong": {"source": str(tmp_path / "none")}}}
    with pytest.raises(
        ConfigError, match=r"sampling\.weights are .*, and models names 1 network\(s\): strong; give one"
    ):
        building.open_service(RunConfig.model_validate(alone), "w")


def test_a_service_that_cannot_be_made_leaves_nothing_behind(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Least of all a lane: one that was claimed and closed would tell readers that the stream has ended."""
    store = folder_store(tmp_path)
    models = {role: {"source": str(world.folder("llama", seed))} for role, seed in (("aligned", 1), ("base", 2))}
    content = {"models": models, "stream": {"location": store.root}, "service": {"may_store_prompts": True}}

    def fail(*_: Any) -> Archive:
        raise StreamError("the disk is gone")

    missing = {**content, "models": {**models, "base": {"source": str(tmp_path / "none")}}}
    with pytest.raises(ArtefactMissing):
        building.open_service(RunConfig.model_validate(missing), "w")
    closed: list[Engine] = []
    monkeypatch.setattr(Engine, "close", lambda engine: closed.append(engine))
    monkeypatch.setattr(Archive, "open", fail)
    with pytest.raises(StreamError, match="the disk is gone"):
        building.open_service(RunConfig.model_validate(content), "w")
    gc.unfreeze()
    assert len(closed) == 1
    assert not list_stream(store).lanes
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
