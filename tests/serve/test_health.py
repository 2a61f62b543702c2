"""What a replica answers when Serve asks how it is: an error names what has ended, so that the replica is replaced."""

from pathlib import Path

import pytest

from cong.config import RunConfig
from cong.errors import StreamFenced, Unavailable
from cong.service import SampleService
from cong.wire import SampleCall
from serve.deployment import Replica
from tests.engine.conftest import World, one_thread, world
from tests.service.serving import Troubled, folder_store, make_engine, open_archive, run, serving

__all__ = ["one_thread", "world"]


def replica_of(service: SampleService) -> Replica:
    """A replica that has its service already."""
    replica = Replica(RunConfig())
    replica._service = service
    return replica


def test_a_replica_without_an_engine_says_what_ended_it(world: World) -> None:
    async def main() -> None:
        engine = Troubled(make_engine(world))
        async with serving(world, engine) as service:
            replica = replica_of(service)
            await replica.check_health()
            engine.failure = ZeroDivisionError("the device fell off")
            with pytest.raises(Unavailable):
                await service.sample(SampleCall.model_validate({"prompt": "hello"}))
            with pytest.raises(RuntimeError, match=r"broken: the engine has failed.*the device fell off"):
                await replica.check_health()

    run(main())


def test_a_replica_without_a_writer_says_what_ended_it(world: World, tmp_path: Path) -> None:
    store = folder_store(tmp_path)

    async def main() -> None:
        archive = open_archive(store)
        async with serving(world, archive=archive) as service:
            replica = replica_of(service)
            await replica.check_health()
            open_archive(store)._writer.abandon()
            with pytest.raises(StreamFenced):
                await service.sample(SampleCall.model_validate({"prompt": "hello", "store": "local"}))
            with pytest.raises(RuntimeError, match=r"broken: the stream's writer has ended.*was claimed by another"):
                await replica.check_health()
        archive._writer.abandon()

    run(main())
