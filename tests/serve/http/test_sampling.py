"""`/sample` and `/score` over HTTP: the same as without, as one document or as events with a known end."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from cong.lab.disk import SimulatedDisk
from cong.stream.store import LocalStore
from cong.wire import EVENT_STREAM, NDJSON, ErrorReply, SampleCall, SampleReply, ScoreReply
from serve.http.encoding import wants_event_stream
from tests.engine.conftest import World
from tests.serve.http.hosting import Hosted, hosting, lines, sse
from tests.service.serving import (
    StepByStep,
    Troubled,
    expected,
    folder_store,
    make_engine,
    open_archive,
    run,
    stored,
    until,
)


def test_a_document_holds_what_the_engine_makes(world: World) -> None:
    body = {
        "prompts": ["hello", {"text": "good day", "prompt_id": "mine"}],
        "num_samples": 3,
        "parameters": {"alpha": 0.2, "max_tokens": 10, "seed": 5},
    }

    async def main() -> None:
        async with hosting(world) as hosted:
            replies = await asyncio.gather(*(hosted.client.post("/sample", json=body) for _ in range(4)))
            wanted = expected(world, SampleCall.model_validate(body))
            for number, response in enumerate(replies):
                assert response.status_code == 200
                reply = SampleReply.model_validate_json(response.content)
                found = [sample.record for sample in reply.samples]
                assert [r.completion_token_ids for r in found] == [r.completion_token_ids for r in wanted]
                assert [r.prompt for r in found] == [r.prompt for r in wanted]
                assert reply.request_id == response.headers["x-request-id"], number
            assert found[3].prompt.prompt_id == "mine"

    run(main())


@pytest.mark.parametrize("form", ["tokens", "samples"])
@pytest.mark.parametrize("accept", [NDJSON, EVENT_STREAM])
def test_a_stream_tells_the_same_and_ends_with_its_last_event(world: World, form: str, accept: str) -> None:
    body: dict[str, Any] = {"prompts": ["hello", "so"], "num_samples": 2, "stream": form}

    async def main() -> None:
        async with hosting(world) as hosted:
            whole = (await hosted.client.post("/sample", json={**body, "stream": "none"})).json()
            response = await hosted.client.post("/sample", json=body, headers={"accept": accept})
            assert response.status_code == 200
            assert response.headers["content-type"] == accept
            found = response.text
            events = lines(found) if accept == NDJSON else [json.loads(data) for data in sse(found)]
            *told, end = events
            assert end == {
                "event": "end",
                "request_id": response.headers["x-request-id"],
                "num_samples": 4,
                "usage": whole["usage"],
                "error": None,
            }
            samples = {
                (event["prompt_index"], event["sample"]["record"]["sample_index"]): event["sample"]
                for event in told
                if event["event"] == "sample"
            }
            texts = [samples[place]["record"]["completion_text"] for place in sorted(samples)]
            assert texts == [sample["record"]["completion_text"] for sample in whole["samples"]]
            tokens = [event for event in told if event["event"] == "token"]
            assert bool(tokens) == (form == "tokens")
            for place, sample in samples.items():
                mine = [token for token in tokens if (token["prompt_index"], token["sample_index"]) == place]
                if mine:
                    assert "".join(token["text"] for token in mine) == sample["record"]["completion_text"]
                    assert [token["token_id"] for token in mine] == sample["record"]["completion_token_ids"]

    run(main())


@pytest.mark.parametrize(
    ("accept", "is_event_stream"),
    [
        ("", False),
        ("*/*", False),
        (NDJSON, False),
        (EVENT_STREAM, True),
        ("Text/Event-Stream; q=0.9, */*", True),
        (f"{NDJSON}, {EVENT_STREAM}", False),
        (f"{EVENT_STREAM}, {NDJSON}", True),
    ],
)
def test_lines_are_the_rule_and_server_sent_events_on_demand(accept: str, is_event_stream: bool) -> None:
    assert wants_event_stream(accept) == is_event_stream


def test_scores_come_in_the_order_of_the_items(world: World) -> None:
    async def main() -> None:
        async with hosting(world) as hosted:
            items = [{"prompt": {"text": "hello"}, "completion_text": text} for text in ("abc", "d", "ef")]
            response = await hosted.client.post("/score", json={"items": items})
            reply = ScoreReply.model_validate_json(response.content)
            assert [len(item.score.completion_token_ids) for item in reply.items] == [3, 1, 2]
            assert all(item.implicit_reward_sum is not None for item in reply.items)
            single = (await hosted.client.post("/score", json={"items": items[:1]})).json()["items"][0]
            assert single["implicit_reward_sum"] == pytest.approx(reply.items[0].implicit_reward_sum, abs=1e-4)

    run(main())


async def refused(hosted: Hosted, status: int, body: Any, path: str = "/sample", **options: Any) -> ErrorReply:
    response = await hosted.client.post(path, json=body, **options)
    assert response.status_code == status, response.text
    reply = ErrorReply.model_validate_json(response.content)
    assert reply.error.request_id == response.headers["x-request-id"]
    return reply


def test_each_refusal_has_its_status_its_field_and_its_time(world: World) -> None:
    async def main() -> None:
        engine = Troubled(make_engine(world, max_running=1))
        async with hosting(world, engine, max_samples=4, max_waiting=4, max_total_tokens=60) as hosted:
            found = await refused(hosted, 422, {"prompt": "a", "parameters": {"top_p": 0}})
            assert (found.error.type, found.error.param) == ("invalid_request_error", "parameters.top_p")
            found = await refused(hosted, 422, {"prompt": "a", "parameters": {"max_tokens": 61}})
            assert found.error.param == "parameters.max_tokens"
            found = await refused(hosted, 422, {"prompt": "a" * 61})
            assert found.error.code == "context_length_exceeded"
            found = await refused(hosted, 422, {"prompt": "a", "prompts": ["b"]})
            assert "give prompt or prompts, not both" in found.error.message
            found = await refused(hosted, 403, {"prompt": "a", "store": "local"})
            assert found.error.type == "permission_error"
            found = await refused(hosted, 422, {"prompt": {"messages": []}})
            found = await refused(hosted, 422, {"prompt": "a", "num_samples": 5})
            assert found.error.param == "num_samples"

            engine.may_go_on.clear()
            bodies = [{"prompt": "a", "num_samples": number} for number in (1, 4)]
            both = asyncio.gather(*(hosted.client.post("/sample", json=body) for body in bodies))
            await until(lambda: hosted.service.health().num_waiting == 5)
            for stream in ("none", "tokens"):
                response = await hosted.client.post("/sample", json={"prompt": "a", "stream": stream})
                assert response.status_code == 429
                assert int(response.headers["retry-after"]) >= 1
                assert response.json()["error"]["retry_after_s"] >= 1.0
            engine.may_go_on.set()
            assert [one.status_code for one in await both] == [200, 200]
            assert hosted.service.meter.value("cong_requests_refused_total", "overloaded") == 2
            assert hosted.service.meter.value("cong_requests_refused_total", "invalid_value") == 5

    run(main())


def test_a_misspelt_field_is_told_with_the_one_that_was_meant(world: World) -> None:
    async def main() -> None:
        async with hosting(world) as hosted:
            bodies = [{"prompt": "a", "num_sample": 2}, {"prompt": "a", "parameters": {"temprature": 0.5}}]
            for body, meant in zip(bodies, ("num_samples", "temperature"), strict=True):
                response = await hosted.client.post("/sample", json=body)
                assert response.status_code == 422
                error = ErrorReply.model_validate_json(response.content).error
                assert f"is not known here; did you mean {meant}?" in error.message
            response = await hosted.client.post("/sample", json={"prompt": [{"role": "user", "content": "a"}]})
            error = ErrorReply.model_validate_json(response.content).error
            assert error.message.startswith("prompt is a list; give a text, an object with messages or token_ids")

    run(main())


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        ("/sample", {"temperature": 0.5}, "temperature: is not known here; it belongs to `parameters` of /sample"),
        ("/sample", {"n": 2}, "n: is not known here; it belongs to /v1/completions"),
        ("/score", {"items": [], "completion_text": "b"}, "completion_text: is not known here; it belongs to an item"),
        (
            "/v1/completions",
            {"model": "cong", "num_samples": 2},
            "num_samples: is not known here; it belongs to /sample",
        ),
    ],
)
def test_a_field_in_the_wrong_place_is_told_with_its_own(
    world: World, path: str, body: dict[str, object], told: str
) -> None:
    async def main() -> None:
        async with hosting(world) as hosted:
            response = await hosted.client.post(path, json={"prompt": "a", **body})
            assert response.status_code == 422
            assert told in ErrorReply.model_validate_json(response.content).error.message

    run(main())


def test_a_body_that_is_wrong_as_a_whole_names_no_field(world: World) -> None:
    async def main() -> None:
        async with hosting(world) as hosted:
            response = await hosted.client.post("/sample", json=["a"])
            assert response.status_code == 422
            assert ErrorReply.model_validate_json(response.content).error.param is None

    run(main())


def test_a_stored_sample_that_cannot_be_read_is_told_and_its_file_is_named_in_the_log(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    disk = SimulatedDisk()

    async def main() -> None:
        async with hosting(world, archive=open_archive(LocalStore("/secret", disk))) as hosted:
            body = {"prompt": "hello", "store": "local", "parameters": {"max_tokens": 4}}
            assert (await hosted.client.post("/sample", json=body)).status_code == 200
            (segment,) = (path for path in disk.paths() if path.endswith(".parquet"))
            disk.flip(segment, 50)
            for stream in ("none", "samples"):
                caplog.clear()
                response = await hosted.client.post("/sample", json={**body, "stream": stream})
                assert response.status_code == 503
                assert "secret" not in response.text
                assert f"{segment}: bytes" in caplog.text

    run(main())


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_stream_that_a_deadline_cuts_short_has_the_text_that_was_held_back(world: World, path: str) -> None:
    """Its tokens might have begun a stop string, and none comes any more to bring them."""
    asked: dict[str, Any] = {"prompt": "hello"}
    if "chat" in path:
        asked = {"messages": [{"role": "user", "content": "hello"}]}
    common = {"model": "cong", "seed": 3, "ignore_eos": True, "max_tokens": 12, **asked}

    def text_of(choice: dict[str, Any]) -> str:
        return str(choice["text"] if "text" in choice else choice["delta"].get("content", ""))

    async def main() -> None:
        async with hosting(world) as hosted:
            (choice,) = (await hosted.client.post(path, json=common)).json()["choices"]
            free = str(choice["text"] if "text" in choice else choice["message"]["content"])
        engine = StepByStep(make_engine(world))
        async with hosting(world, engine) as hosted:
            body = {**common, "stop": free[3:5] + "never", "stream": True, "deadline_s": 0.5}
            asking = asyncio.ensure_future(
                hosted.client.post(path, json={**body, "stream_options": {"include_usage": True}})
            )
            engine.num_steps_allowed.release(5)
            await until(lambda: hosted.service.health().num_steps == 5)
            await asyncio.sleep(0.6)
            engine.num_steps_allowed.release(100)
            *chunks, done = sse((await asking).text)
            assert done == "[DONE]"
            *parts, counts = map(json.loads, chunks)
            assert counts["usage"]["completion_tokens"] == 5
            assert "".join(text_of(part["choices"][0]) for part in parts) == free[:5]

    run(main())


def test_an_error_behind_the_first_byte_stands_in_the_last_event(world: World) -> None:
    async def main() -> None:
        engine = Troubled(make_engine(world))
        engine.may_go_on.clear()
        async with hosting(world, engine) as hosted:
            body = {"prompt": "hello", "stream": "tokens", "parameters": {"max_tokens": 100, "ignore_eos": True}}
            asking = [
                asyncio.ensure_future(hosted.client.post(path, json=sent))
                for path, sent in (
                    ("/sample", body),
                    (
                        "/v1/completions",
                        {"model": "cong", "prompt": "hello", "max_tokens": 100, "stream": True, "ignore_eos": True},
                    ),
                )
            ]
            await until(lambda: hosted.service.health().num_waiting == 2)
            engine.failure, engine.num_steps_before_failure = RuntimeError("the device is gone, at /secret/path"), 10
            engine.may_go_on.set()
            ours, openai = await asyncio.gather(*asking)
            *tokens, end = lines(ours.text)
            assert len(tokens) > 3
            assert end["event"] == "end"
            assert end["error"]["type"] == "unavailable_error"
            *chunks, last = sse(openai.text)
            assert len(chunks) > 3
            assert json.loads(last)["error"]["type"] == "unavailable_error"
            assert "secret" not in ours.text + openai.text
            health = await hosted.client.get("/health")
            assert (health.status_code, health.json()["status"]) == (503, "broken")
            await refused(hosted, 503, {"prompt": "a"})

    run(main())


def test_a_stored_sample_is_in_the_stream_when_its_event_comes(world: World, tmp_path: Path) -> None:
    store = folder_store(tmp_path)

    async def main() -> None:
        async with hosting(world, archive=open_archive(store)) as hosted:
            body = {"prompt": "hello", "num_samples": 2, "store": "local", "parameters": {"seed": 3}}
            first = (await hosted.client.post("/sample", json=body)).json()
            assert {record.key for record in stored(store)} == {s["record"]["key"] for s in first["samples"]}
            again = (await hosted.client.post("/sample", json=body)).json()
            assert [s["record"] for s in again["samples"]] == [s["record"] for s in first["samples"]]
            assert all(s["is_duplicate"] for s in again["samples"])
            chat = {"model": "cong", "prompt": "hello", "seed": 9, "store": True, "max_tokens": 3}
            assert (await hosted.client.post("/v1/completions", json=chat)).status_code == 200
            assert len(stored(store)) == 3

    run(main())


def test_a_disk_that_fails_is_a_503_without_a_path(world: World) -> None:
    disk = SimulatedDisk()

    async def main() -> None:
        async with hosting(world, archive=open_archive(LocalStore("/secret", disk))) as hosted:
            disk.capacity = disk.num_bytes
            body = {"prompt": "hello", "store": "local"}
            found = await refused(hosted, 503, body)
            assert found.error.code == "not_stored"
            assert "secret" not in found.model_dump_json()
            response = await hosted.client.post("/sample", json={**body, "stream": "samples"})
            assert lines(response.text)[-1]["error"]["code"] == "not_stored"
            disk.capacity = None
            assert (await hosted.client.post("/sample", json=body)).status_code == 200

    run(main())


def test_an_idempotency_key_makes_five_tries_one_request(world: World) -> None:
    async def main() -> None:
        async with hosting(world) as hosted:
            for path, body in (
                ("/sample", {"prompt": "hello", "num_samples": 2}),
                ("/v1/completions", {"model": "cong", "prompt": "hello"}),
                ("/v1/chat/completions", {"model": "cong", "messages": [{"role": "user", "content": "hello"}]}),
            ):
                headers = {"idempotency-key": f"one for {path}"}
                tries = [await hosted.client.post(path, json=body, headers=headers) for _ in range(5)]
                texts = {str(one.json().get("samples") or one.json()["choices"]) for one in tries}
                assert len(texts) == 1, path
                other = await hosted.client.post(path, json={**body, "deadline_s": 5.0}, headers=headers)
                assert (other.status_code, other.json()["error"]["type"]) == (409, "conflict_error")
            finished = hosted.service.meter.value
            assert (
                finished("cong_request_finished_total", "stop") + finished("cong_request_finished_total", "length") == 4
            )
            body = {"prompt": "hello", "stream": "tokens"}
            streams = [
                (await hosted.client.post("/sample", json=body, headers={"idempotency-key": "s"})).text.splitlines()[
                    :-1
                ]
                for _ in range(2)
            ]
            assert streams[0] == streams[1]

    run(main())
