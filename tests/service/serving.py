"""A service over a real engine with tiny networks, and an engine that is slow, stuck or broken on command."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from cong.config.engine import EngineConfig
from cong.config.service import ServiceConfig
from cong.config.stream import ReadSettings, WriteSettings
from cong.engine import Engine, EngineProtocol, EngineStats, Event, Generate, Rate
from cong.models import Network, NetworkSet, join_networks, load_network
from cong.schemas import NetworkIdentity, Role, SampleRecord, SampleRequest, SamplingParameters
from cong.service import Archive, SampleService, facts_of
from cong.stream import StreamReader, StreamWriter
from cong.stream.filesystem import FileSystem, LocalFileSystem
from cong.stream.store import LocalStore, Store
from cong.wire import SampleCall
from tests.engine.conftest import World

T = TypeVar("T")

ENGINE = EngineConfig(max_running=16, max_step_tokens=64, block_size=4, kv_memory_bytes=2**22, kernel="torch")
DEFAULTS = SamplingParameters(max_tokens=12)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}. {{ message.content }}! {% endfor %}"
    "{% if add_generation_prompt %}assistant. {% endif %}"
)
LIMIT_S = 60.0
"""Longest wait for anything; reached only where something is broken."""


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run to the end, within a limit."""

    async def limited() -> T:
        async with asyncio.timeout(2 * LIMIT_S):
            return await main

    return asyncio.run(limited())


async def until(is_so: Callable[[], bool]) -> None:
    """Wait until something is so, which then stays so."""
    until_s = time.monotonic() + LIMIT_S
    while not is_so():
        assert time.monotonic() < until_s, f"not so within {LIMIT_S:g} s"
        await asyncio.sleep(0.005)


def pair(world: World) -> NetworkSet:
    """A freshly loaded pair whose tokenizer has a chat template."""

    def load(role: Role, seed: int) -> Network:
        folder = str(world.folder("llama", seed))
        return load_network(folder, role=role, dtype="float32", device="cpu", chat_template=CHAT_TEMPLATE)

    return join_networks([load("aligned", 1), load("base", 2)])


def make_engine(world: World, max_running: int = ENGINE.max_running) -> Engine:
    """An engine of that pair."""
    return Engine(pair(world), ENGINE.model_copy(update={"max_running": max_running}), writer="test")


def expected(world: World, call: SampleCall) -> list[SampleRecord]:
    """What the engine alone makes of a request, in the order of a reply."""
    engine = make_engine(world)
    parameters = call.parameters or DEFAULTS
    records = {}
    for number, prompt in enumerate(call.prompts):
        request = SampleRequest(prompt=prompt, parameters=parameters, num_samples=call.num_samples)
        records.update({(number, record.sample_index): record for record in engine.generate([request])})
    return [records[place] for place in sorted(records)]


class Troubled:
    """An engine with something in its way."""

    def __init__(self, engine: EngineProtocol) -> None:
        self._engine = engine
        self.step_s = 0.0
        """Every step takes at least so long."""
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.failure: BaseException | None = None
        """Raised by the next step."""
        self.num_steps_before_failure = 0
        """So many steps more are done before it."""
        self.refusal: Exception | None = None
        """Raised by the next request."""
        self.closed_in: list[str] = []
        """Names of the threads that have closed it."""

    @property
    def identities(self) -> tuple[NetworkIdentity, ...]:
        return self._engine.identities

    @property
    def has_work(self) -> bool:
        return self._engine.has_work

    def submit(self, request: Generate) -> None:
        refusal, self.refusal = self.refusal, None
        if refusal is not None:
            raise refusal
        self._engine.submit(request)

    def score(self, request: Rate) -> None:
        self._engine.score(request)

    def cancel(self, request_id: str) -> None:
        self._engine.cancel(request_id)

    def events(self) -> Sequence[Event]:
        assert self.may_go_on.wait(2 * LIMIT_S)
        time.sleep(self.step_s)
        if self.failure is not None:
            if self.num_steps_before_failure == 0:
                raise self.failure
            self.num_steps_before_failure -= 1
        return self._engine.events()

    def stats(self) -> EngineStats:
        return self._engine.stats()

    def close(self) -> None:
        self.closed_in.append(threading.current_thread().name)
        self._engine.close()


class StepByStep(Troubled):
    """An engine that does as many steps as it is allowed."""

    def __init__(self, engine: EngineProtocol) -> None:
        super().__init__(engine)
        self.num_steps_allowed = threading.Semaphore(0)

    def events(self) -> Sequence[Event]:
        assert self.num_steps_allowed.acquire(timeout=2 * LIMIT_S)
        return super().events()


def folder_store(path: Path, files: FileSystem | None = None) -> LocalStore:
    return LocalStore(str(path / "stream"), files or LocalFileSystem())


def open_archive(store: Store, timeout_s: float = LIMIT_S, writer_id: str = "w", **write: Any) -> Archive:
    settings = WriteSettings(**{"acknowledge_s": 0.0, "timeout_s": LIMIT_S, **write})
    return Archive(store, StreamWriter(store, settings, writer_id), timeout_s)


def stored(store: Store) -> list[SampleRecord]:
    """Every row of a stream, repeated keys included."""
    return list(StreamReader(store, ReadSettings(is_deduplicated=False)).records())


@asynccontextmanager
async def serving(
    world: World,
    engine: EngineProtocol | None = None,
    archive: Archive | None = None,
    defaults: SamplingParameters = DEFAULTS,
    **config: Any,
) -> AsyncIterator[SampleService]:
    """A service that has been started, closed at the end."""
    networks = pair(world)
    inner = engine or Engine(networks, ENGINE, writer="test")
    settings = ServiceConfig(**({"drain_s": LIMIT_S, "may_store_prompts": archive is not None} | config))
    max_tokens = inner.max_tokens if isinstance(inner, Engine) else 160
    service = SampleService(inner, facts_of(networks, max_tokens, defaults), settings, archive)
    await service.start()
    try:
        yield service
    finally:
        await service.close()


def long_call(**fields: Any) -> SampleCall:
    """A request that goes on for as long as there is room."""
    parameters = {"max_tokens": 120, "ignore_eos": True, **fields.pop("parameters", {})}
    return SampleCall.model_validate({"prompt": "hello", "parameters": parameters, "stream": "tokens", **fields})
