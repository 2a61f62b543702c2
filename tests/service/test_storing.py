"""Samples that are kept: durable before they are answered, made once, and never a stub."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from cong.errors import Forbidden, InvalidRequest, StreamError, StreamFenced, Unavailable
from cong.lab.disk import SimulatedDisk
from cong.service import SampleService
from cong.stream.store import LocalStore
from cong.wire import SampleCall, SampleEvent, StoredSample, TokenEvent
from tests.engine.conftest import World
from tests.service.serving import (
    Troubled,
    folder_store,
    long_call,
    make_engine,
    open_archive,
    run,
    serving,
    stored,
    until,
)


def call(**fields: Any) -> SampleCall:
    return SampleCall.model_validate({"prompt": "hello", "store": "local", **fields})


async def ask(service: SampleService, asked: SampleCall) -> list[StoredSample]:
    return [*(await service.sample(asked)).samples]


def drawn(service: SampleService) -> float:
    service.measurements()
    return service.meter.value("cong_generation_tokens_total")


@pytest.mark.parametrize("has_journal", [False, True], ids=["segments", "journal"])
def test_a_sample_is_in_the_stream_before_it_is_answered(world: World, tmp_path: Path, has_journal: bool) -> None:
    store = folder_store(tmp_path)

    async def main() -> list[StoredSample]:
        archive = open_archive(store, has_journal=has_journal, max_age_s=600.0)
        answered: list[StoredSample] = []
        async with serving(world, archive=archive) as service:
            async with await service.open(call(num_samples=4, stream="tokens")) as answer:
                async for batch in answer:
                    for event in batch:
                        if isinstance(event, SampleEvent):
                            answered.append(event.sample)
                            assert has_journal or event.sample.record in stored(store)
            assert service.meter.value("cong_stream_acknowledged_total", "local") == 4
            if has_journal:
                # As after a crash: what was acknowledged lies in the journal, for whoever comes next.
                archive._writer.abandon()
                assert not stored(store)
        return answered

    answered = run(main())
    if has_journal:
        open_archive(store, has_journal=True, writer_id="w2")._writer.close()
    assert {sample.stored for sample in answered} == {"local"}
    assert not any(sample.is_duplicate for sample in answered)
    assert sorted(record.key for record in stored(store)) == sorted(sample.record.key for sample in answered)


@pytest.mark.parametrize("has_journal", [False, True], ids=["segments", "journal"])
def test_the_same_question_is_answered_from_the_stream(world: World, tmp_path: Path, has_journal: bool) -> None:
    store = folder_store(tmp_path)

    async def main() -> None:
        archive = open_archive(store, has_journal=has_journal, max_age_s=600.0)
        async with serving(world, archive=archive) as service:
            first = await ask(service, call(num_samples=2))
            num_drawn = drawn(service)
            again = await ask(service, call(num_samples=2))
            assert [sample.record for sample in again] == [sample.record for sample in first]
            assert all(sample.is_duplicate and sample.stored == "local" for sample in again)
            assert drawn(service) == num_drawn
            more = await ask(service, call(num_samples=3))
            assert [sample.is_duplicate for sample in more] == [True, True, False]
            assert service.meter.value("cong_duplicates_total") == 4
            # Nobody asked for these to be kept, so nobody looks for them.
            assert not (await ask(service, call(store="none")))[0].is_duplicate

    run(main())
    # Another process finds them too.

    async def later() -> None:
        async with serving(world, archive=open_archive(store, writer_id="w2")) as service:
            assert all(sample.is_duplicate for sample in await ask(service, call(num_samples=3)))

    run(later())
    assert len(stored(store)) == 3


def test_tokens_of_a_stored_sample_are_told_as_they_were(world: World, tmp_path: Path) -> None:
    async def events(service: SampleService) -> list[TokenEvent | SampleEvent]:
        async with await service.open(call(stream="tokens", parameters={"stop": ["zz"]})) as answer:
            return [event async for batch in answer for event in batch]

    async def main() -> None:
        async with serving(world, archive=open_archive(folder_store(tmp_path))) as service:
            *first, _ = await events(service)
            *again, last = await events(service)
            assert isinstance(last, SampleEvent)
            assert last.sample.is_duplicate
            assert again == [event.model_copy() for event in first]

    run(main())


def test_two_who_ask_at_once_get_one_answer_that_is_stored_once(world: World, tmp_path: Path) -> None:
    store = folder_store(tmp_path)

    async def main() -> None:
        async with serving(world, archive=open_archive(store)) as service:
            replies = await asyncio.gather(*(ask(service, call(num_samples=2)) for _ in range(5)))
            assert all([s.record for s in reply] == [s.record for s in replies[0]] for reply in replies)

    run(main())
    assert len(stored(store)) == 2


def test_what_was_cut_short_is_answered_and_never_stored(world: World, tmp_path: Path) -> None:
    store = folder_store(tmp_path)

    async def main() -> None:
        engine = Troubled(make_engine(world))
        engine.step_s = 0.05
        async with serving(world, engine, open_archive(store)) as service:
            (late,) = await ask(service, long_call(store="local", deadline_s=1.0))
            assert late.record.finish_reason == "deadline"
            assert late.stored == "none"
            async with await service.open(long_call(store="local")) as answer:
                async for _ in answer:
                    break
            await until(lambda: service.health().num_running == 0)
            engine.step_s = 0.0
            (whole,) = await ask(service, long_call(store="local"))
            assert not whole.is_duplicate
            assert whole.record.key == late.record.key, "the same question"

    run(main())
    (record,) = stored(store)
    assert record.finish_reason == "length"


def test_a_full_disk_is_an_error_and_nothing_is_acknowledged(world: World) -> None:
    disk = SimulatedDisk()
    store = LocalStore("/stream", disk)

    async def main() -> None:
        async with serving(world, archive=open_archive(store, rows_per_segment=4)) as service:
            await ask(service, call())
            disk.capacity = disk.num_bytes + 100
            with pytest.raises(StreamError, match="No space left"):
                await ask(service, call(prompt="good day"))
            assert service.meter.value("cong_stream_failures_total") == 1
            assert service.meter.value("cong_stream_acknowledged_total", "local") == 1
            assert service.health().status == "ok", "whoever stores nothing is served"
            await ask(service, call(prompt="good day", store="none"))
            disk.capacity = None
            assert len(await ask(service, call(prompt="good day"))) == 1

    run(main())
    assert len(stored(store)) == 2


@pytest.mark.parametrize("has_died", [False, True], ids=["fenced", "died"])
def test_a_writer_that_has_ended_for_good_breaks_the_replica(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    has_died: bool,
) -> None:
    store = folder_store(tmp_path)
    archive = open_archive(store)

    def die() -> None:
        raise MemoryError("no room at /secret/path")

    async def main() -> None:
        async with serving(world, archive=archive) as service:
            assert service.failure is None
            if has_died:
                monkeypatch.setattr(archive._writer, "_seal", die)
            else:
                open_archive(store)._writer.abandon()
            with pytest.raises(StreamError if has_died else StreamFenced):
                await ask(service, call())
            health = service.health()
            assert health.status == "broken"
            assert health.reason == "the stream's writer has ended; this process keeps no samples any more, another may"
            with pytest.raises(Unavailable, match="keeps no samples any more"):
                await ask(service, call(prompt="good day"))
            assert len(await ask(service, call(store="none"))) == 1, "whoever stores nothing is served"
            service.measurements()
            assert service.meter.value("cong_engine_health", "broken") == 1
            assert ("no room" if has_died else "was claimed by another process") in str(service.failure)

    run(main())
    assert "the stream could not be closed" in caplog.text
    archive._writer.abandon()
    assert not stored(store)


def test_a_caller_that_leaves_while_its_sample_is_stored_does_not_undo_it(world: World, tmp_path: Path) -> None:
    store = folder_store(tmp_path)

    async def main() -> None:
        async with serving(world, archive=open_archive(store, acknowledge_s=1.5)) as service:
            asking = asyncio.ensure_future(ask(service, call()))
            await until(lambda: service.meter.value("cong_request_finished_total", "length") == 1)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            assert not stored(store)

    run(main())
    assert len(stored(store)) == 1, "closing waits for it"


def test_levels_that_are_not_offered_are_refused(world: World, tmp_path: Path) -> None:
    async def main() -> None:
        archive = open_archive(folder_store(tmp_path))
        async with serving(world, archive=archive) as service:
            assert service.info().store_levels == ("none", "local")
            with pytest.raises(InvalidRequest, match="store: is 'shared'; this deployment offers none, local"):
                await ask(service, call(store="shared"))
        async with serving(world, archive=open_archive(folder_store(tmp_path)), may_store_prompts=False) as service:
            assert service.info().store_levels == ("none",)
            assert service.info().stream_location is None
            with pytest.raises(Forbidden, match="keeps no samples"):
                await ask(service, call())

    run(main())
