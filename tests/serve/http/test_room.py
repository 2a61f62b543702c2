"""Where there is no room for a single sample, nothing of a request is looked at."""

import asyncio
from typing import Any

import httpx
import pytest

from serve.http.room import TAKES_ROOM
from tests.engine.conftest import World
from tests.serve.http.hosting import Hosted, hosting
from tests.service.serving import Troubled, make_engine, run, until

LONG: dict[str, Any] = {"prompt": "hello", "num_samples": 20, "parameters": {"max_tokens": 20, "ignore_eos": True}}


async def without_room(hosted: Hosted) -> "asyncio.Future[list[httpx.Response]]":
    """A request whose samples wait, and one for the only seat."""
    both = asyncio.gather(*(hosted.client.post("/sample", json=body) for body in (LONG, {"prompt": "a"})))
    await until(lambda: hosted.service.health().num_waiting == 21)
    return both


@pytest.mark.parametrize("path", sorted(TAKES_ROOM))
def test_without_room_a_request_is_refused_unread(world: World, path: str) -> None:
    engine = Troubled(make_engine(world, max_running=1))

    async def main() -> None:
        async with hosting(world, engine, max_samples=20, max_waiting=20) as hosted:
            broken: dict[str, Any] = {"content": b"{this is no JSON", "headers": {"content-type": "application/json"}}
            assert (await hosted.client.post(path, **broken)).status_code in (400, 422)
            engine.may_go_on.clear()
            both = await without_room(hosted)
            reply = await hosted.client.post(path, **broken)
            assert reply.status_code == 429
            assert int(reply.headers["retry-after"]) >= 1
            assert reply.json()["error"]["code"] == "overloaded"
            assert hosted.service.meter.value("cong_requests_refused_total", "overloaded") == 1
            assert (await hosted.client.get("/info")).status_code == 200
            engine.may_go_on.set()
            assert [one.status_code for one in await both] == [200, 200]

    run(main())


def test_a_retry_whose_answer_is_known_needs_no_room(world: World) -> None:
    engine = Troubled(make_engine(world, max_running=1))

    async def main() -> None:
        async with hosting(world, engine, max_samples=20, max_waiting=20) as hosted:
            key = {"idempotency-key": "mine"}
            whole = await hosted.client.post("/sample", json={"prompt": "a"}, headers=key)
            engine.may_go_on.clear()
            both = await without_room(hosted)
            again = await hosted.client.post("/sample", json={"prompt": "a"}, headers=key)
            assert again.status_code == 200
            assert again.json()["samples"] == whole.json()["samples"]
            other = await hosted.client.post("/sample", json={"prompt": "a"}, headers={"idempotency-key": "other"})
            assert other.status_code == 429
            engine.may_go_on.set()
            await both

    run(main())
