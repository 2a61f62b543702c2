"""Before a route is reached: who asks, how much is sent, how fast, under which name; and what is said of errors."""

import asyncio
import inspect
import json
import logging
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import cong.errors
from cong.service import key_line, new_key
from cong.wire import ErrorReply
from serve.http import create_app
from serve.http.context import clean_request_id
from serve.http.errors import TABLE, kind_of, problem_of
from tests.engine.conftest import World
from tests.serve.http.hosting import BASE_URL, hosting, nothing_left, server
from tests.service.serving import LIMIT_S, Troubled, make_engine, run

ROUTES = [
    ("GET", "/info"),
    ("GET", "/metrics"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/cong"),
    ("GET", "/docs"),
    ("GET", "/openapi.json"),
    ("GET", "/no/such/route"),
    ("POST", "/sample"),
    ("POST", "/score"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"),
]


def test_every_error_of_the_house_has_its_place_in_the_table() -> None:
    root = cong.errors.CongError
    classes: list[type[cong.errors.CongError]] = [
        value
        for _, value in inspect.getmembers(cong.errors, inspect.isclass)
        if issubclass(value, root) and value is not root
    ]
    unmapped = [error.__name__ for error in classes if kind_of(error) is None]
    assert not unmapped
    for kind in TABLE.values():
        assert 400 <= kind.status < 600
        assert (kind.status >= 500) == (kind.type in ("server_error", "unavailable_error"))
    assert all(kind.fixed for kind in TABLE.values() if kind.type == "server_error"), "nothing of the inside is told"


def test_an_error_that_nobody_foresaw_is_told_in_fixed_words() -> None:
    for error in (ZeroDivisionError("/secret/path"), cong.errors.ConfigError("/secret/path")):
        problem = problem_of(error)
        assert problem.status == 500
        assert "secret" not in problem.message


def test_without_the_right_key_only_health_is_answered(world: World, tmp_path: Path) -> None:
    key = new_key()
    (tmp_path / "keys").write_text(key_line("me", key))

    async def body() -> AsyncIterator[bytes]:
        yield b""
        raise AssertionError("the body was read before the key was checked")

    async def main() -> None:
        async with hosting(world, api_keys_file=str(tmp_path / "keys")) as hosted:
            assert (await hosted.client.get("/health")).status_code == 200
            for headers in (
                {},
                {"authorization": f"Bearer {new_key()}"},
                {"x-api-key": "wrong"},
                {"authorization": key},
            ):
                for method, path in ROUTES:
                    content = body() if method == "POST" else None
                    response = await hosted.client.request(method, path, headers=headers, content=content)
                    assert response.status_code == 401, (path, headers)
                    assert response.headers["www-authenticate"] == "Bearer"
                    assert ErrorReply.model_validate_json(response.content).error.type == "authentication_error"
            for headers in (
                {"authorization": f"Bearer {key}"},
                {"authorization": f"bearer  {key}"},
                {"x-api-key": key},
            ):
                for method, path in ROUTES:
                    response = await hosted.client.request(method, path, headers=headers, json={})
                    assert response.status_code not in (401, 403), path
            schema = (await hosted.client.get("/openapi.json", headers={"x-api-key": key})).json()
            assert schema["security"] == [{"key": []}]

    run(main())


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("abc-123_x.y", "abc-123_x.y"),
        ("a b\tc/../d;e", "abc..de"),
        ("x" * 100, "x" * 64),
        ("caf\u00e9", "caf"),
    ],
)
def test_a_request_id_is_kept_as_far_as_it_is_harmless(given: str, kept: str) -> None:
    assert clean_request_id(given) == kept


@pytest.mark.parametrize("given", [None, "", "///", "\u00e9"])
def test_who_gives_no_request_id_gets_one(given: str | None) -> None:
    one, other = clean_request_id(given), clean_request_id(given)
    assert len(one) == 32
    assert one != other


def test_every_reply_carries_the_request_id_and_the_log_line_no_text(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with hosting(world) as hosted:
            caplog.set_level(logging.DEBUG)
            for path, body in (("/sample", {"prompt": "mysecret"}), ("/sample", {"wrong": "mysecret"}), ("/none", {})):
                response = await hosted.client.post(path, json=body, headers={"x-request-id": "req/42"})
                assert response.headers["x-request-id"] == "req42"
            assert (await hosted.client.get("/health")).headers["x-request-id"]

    run(main())
    told = [record for record in caplog.records if record.name == "serve.http.context"]
    assert [record.__dict__["status"] for record in told] == [200, 422, 404, 200]
    assert {record.__dict__["request_id"] for record in told[:3]} == {"req42"}
    assert told[0].__dict__["num_prompt_tokens"] == 8
    assert "mysecret" not in caplog.text
    assert "mysecret" not in str([record.__dict__ for record in told])


def test_a_body_that_is_too_large_is_refused_by_its_stated_and_by_its_real_size(world: World) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 100:
            sent += 1
            yield b"x" * 1000

    async def main() -> None:
        nonlocal sent
        async with hosting(world, max_body_bytes=5000) as hosted:
            response = await hosted.client.post("/sample", content=b"x" * 5001)
            assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")
            response = await hosted.client.post("/sample", content=endless())
            assert response.status_code == 413
            assert sent <= 7, "the rest is not read"
            for stated in ("99999999999999999999999", "-1", "1e3", "\u0663"):
                headers = [(b"content-length", stated.encode("utf-8"))]
                response = await hosted.client.post("/sample", content=b"{}", headers=headers)
                assert response.status_code in (400, 413), stated
            response = await hosted.client.post("/sample", json={"prompt": "a" * 40})
            assert response.status_code == 200

    run(main())


@pytest.mark.parametrize(
    ("body", "kind", "status", "said"),
    [
        (b'{"prompt": ', "application/json", 400, "the body is not JSON: Expecting value at character 11"),
        (b"", "application/json", 400, "the body is empty"),
        (b'{"prompt": "\xff"}', "application/json", 400, "can't decode byte 0xff"),
        (b"[" * 200_000, "application/json", 400, "the body cannot be read as JSON"),
        (b'{"prompt": "a"}', "text/plain", 415, "Content-Type: application/json"),
    ],
)
def test_a_body_that_is_no_json_is_told_so(world: World, body: bytes, kind: str, status: int, said: str) -> None:
    async def main() -> None:
        async with hosting(world) as hosted:
            for path in ("/sample", "/score", "/v1/completions"):
                response = await hosted.client.post(path, content=body, headers={"content-type": kind})
                assert response.status_code == status, response.text
                assert said in response.json()["error"]["message"]

    run(main())


def test_a_body_that_never_ends_is_given_up(world: World) -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    async def main() -> None:
        async with hosting(world, body_timeout_s=0.2) as hosted:
            response = await hosted.client.post("/sample", content=slow())
            assert (response.status_code, response.json()["error"]["code"]) == (408, "body_timeout")
            assert response.json()["error"]["type"] == "deadline_error"

    run(main())


def test_headers_that_would_override_limits_mean_nothing(world: World) -> None:
    headers = {
        "x-request-timeout-seconds": "0",
        "x-request-disconnect-disabled": "?1",
        "serve_multiplexed_model_id": "other",
    }

    async def main() -> None:
        engine = Troubled(make_engine(world))
        engine.step_s = 0.02
        async with hosting(world, engine, default_deadline_s=1.0, max_deadline_s=1.0) as hosted:
            body = {"prompt": "hello", "num_samples": 40, "parameters": {"max_tokens": 140, "ignore_eos": True}}
            reply = (await hosted.client.post("/sample", json=body, headers=headers)).json()
            assert {sample["record"]["finish_reason"] for sample in reply["samples"]} == {"deadline"}

    run(main())


def test_errors_of_the_protocol_have_the_same_form(world: World) -> None:
    async def main() -> None:
        async with hosting(world) as hosted:
            for method, path, status, kind in (
                ("GET", "/nothing", 404, "not_found_error"),
                ("POST", "/sample/", 404, "not_found_error"),
                ("GET", "/sample", 405, "invalid_request_error"),
                ("DELETE", "/health", 405, "invalid_request_error"),
                ("GET", "/v1/models/other", 404, "not_found_error"),
            ):
                response = await hosted.client.request(method, path)
                assert response.status_code == status
                error = ErrorReply.model_validate_json(response.content).error
                assert error.type == kind
                assert ("GET /docs lists all" in error.message) == (path != "/v1/models/other")
                if status == 405:
                    assert response.headers["allow"]

    run(main())


def deep(number: int) -> bytes:
    return b'{"prompt":' + b"[" * number + b"]" * number + b"}"


HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "not json": b"hello",
    "cut": b'{"prompt": "hel',
    "null": b"null",
    "list": b"[]",
    "text": b'"hello"',
    "number": b"1",
    "nested lists": deep(100_000),
    "nested objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "nested a little": deep(200),
    "nan": b'{"prompt": "a", "parameters": {"temperature": NaN}}',
    "infinity": b'{"prompt": "a", "parameters": {"temperature": Infinity}}',
    "nan as a weight": b'{"prompt": "a", "parameters": {"weights": [NaN, -Infinity]}}',
    "nan in a method": b'{"prompt": "a", "method": "cong", "method_parameters": {"alpha": NaN}}',
    "huge float": b'{"prompt": "a", "parameters": {"temperature": 1e999}}',
    "huge int": b'{"prompt": "a", "num_samples": ' + b"9" * 5000 + b"}",
    "large int": b'{"prompt": "a", "parameters": {"seed": 18446744073709551616}}',
    "negative": b'{"prompt": "a", "num_samples": -1}',
    "lone surrogate": b'{"prompt": "\\ud800"}',
    "lone surrogate in a key": b'{"prompt": "a", "\\udfff": 1}',
    "lone surrogate in a stop": b'{"prompt": "a", "parameters": {"stop": ["\\ud834"]}}',
    "lone surrogate as a method": b'{"prompt": "a", "method": "\\ud834"}',
    "invalid utf-8": b'{"prompt": "\xff\xfe"}',
    "half a character": b'{"prompt": "\xe2\x82"}',
    "utf-16": '{"prompt": 1}'.encode("utf-16"),
    "nul bytes": b"\x00" * 1000,
    "doubled key": b'{"prompt": 1, "prompt": 2}',
    "many keys": b"{" + b",".join(b'"k%d":1' % number for number in range(20_000)) + b"}",
    "token ids out of bounds": b'{"prompt": {"token_ids": [4294967296]}}',
    "token ids that are no numbers": b'{"prompt": {"token_ids": ["a", 1.5, null, true]}}',
    "token id beyond the vocabulary": b'{"prompt": {"token_ids": [61]}}',
    "method parameters of another kind": b'{"prompt": "a", "method": "cong", "method_parameters": {"alpha": "x"}}',
    "method that names nothing": b'{"prompt": "a", "method": "__init__"}',
    "method out of bounds": b'{"prompt": "a", "method": "cong", "method_parameters": {"alpha": 1e300}}',
}


@pytest.mark.parametrize("path", ["/sample", "/score", "/v1/completions", "/v1/chat/completions"])
def test_hostile_bodies_are_refused_by_name_and_nothing_breaks(world: World, path: str) -> None:
    async def main() -> None:
        async with hosting(world) as hosted:
            for name, body in HOSTILE.items():
                for kind in ("application/json", "text/plain"):
                    response = await hosted.client.post(path, content=body, headers={"content-type": kind})
                    assert 400 <= response.status_code < 500, (name, response.text)
                    ErrorReply.model_validate_json(response.content)
            await nothing_left(hosted.service)
            assert hosted.service.health().status == "ok"

    run(main())


MUCH_WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "unknown names": ("/sample", {"prompt": "a", **{f"prompt_{number}": 0 for number in range(20_000)}}),
    "prompts": ("/sample", {"prompts": [{}] * 100_000}),
    "token ids": ("/sample", {"prompt": {"token_ids": ["a"] * 200_000}}),
    "stops": ("/sample", {"prompt": "a", "parameters": {"stop": [""] * 50_000}}),
    "items": ("/score", {"items": [{}] * 100_000}),
    "lists of token ids": ("/v1/completions", {"model": "cong", "prompt": [["a"] * 1000] * 100}),
    "parts": ("/v1/chat/completions", {"model": "cong", "messages": [{"role": "user", "content": [{}] * 50_000}]}),
    "messages": ("/v1/chat/completions", {"model": "cong", "messages": [{}] * 50_000}),
}


@pytest.mark.parametrize("name", MUCH_WRONG)
def test_however_much_is_wrong_with_a_body_it_is_told_at_once(world: World, name: str) -> None:
    """The others who are answered by this process wait meanwhile, and so does whoever asks for its health."""
    path, content = MUCH_WRONG[name]

    async def main() -> None:
        async with hosting(world) as hosted:
            body = json.dumps(content).encode()
            started_s = time.thread_time()
            response = await hosted.client.post(path, content=body, headers={"content-type": "application/json"})
            assert time.thread_time() - started_s < 1.0
            assert response.status_code == 422
            assert len(ErrorReply.model_validate_json(response.content).error.message) > 10

    run(main())


def test_of_many_wrong_fields_the_first_are_told(world: World) -> None:
    async def main() -> None:
        async with hosting(world) as hosted:
            for number, is_all in ((10, True), (11, False), (1000, False)):
                body = {"prompt": "a", **{f"x{one}": 0 for one in range(number)}}
                message = (await hosted.client.post("/sample", json=body)).json()["error"]["message"]
                assert message.count("is not known here") == 10
                assert message.endswith("and more") is not is_all

    run(main())


def test_characters_outside_the_vocabulary_are_no_harm(world: World) -> None:
    text = "\x00\u202e\U0001f600\ufffd\ufeff" * 10

    async def main() -> None:
        async with hosting(world) as hosted:
            response = await hosted.client.post("/sample", json={"prompt": text, "parameters": {"stop": [text]}})
            assert response.status_code == 200
            assert response.json()["samples"][0]["record"]["prompt"]["text"] == text

    run(main())


def test_before_there_is_a_service_everything_says_so() -> None:
    from cong.config import ServiceConfig

    async def main() -> None:
        app = create_app(lambda: None, ServiceConfig())
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url=BASE_URL) as client:
            health = await client.get("/health")
            assert (health.status_code, health.json()["status"]) == (503, "starting")
            for path, body in (("/sample", {"prompt": "a"}), ("/v1/completions", {"model": "x", "prompt": "a"})):
                response = await client.post(path, json=body)
                assert response.status_code == 503
                assert response.headers["retry-after"] == "1"

    run(main())


def raw(address: str, request: bytes) -> bytes:
    """What a server answers to some bytes."""
    host, _, port = address.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=LIMIT_S) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        parts = []
        while part := connection.recv(65_536):
            parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /sample HTTP/1.1\r\nhost: x\r\ncontent-length: ten\r\n\r\n{}",
        b"POST /sample HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n",
        b"POST /sample HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{",
        b"GET /%ff%fe%00 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /v1/models/%ed%a0%80 HTTP/1.1\r\nhost: x\r\n\r\n",
    ],
)
def test_bytes_that_are_no_request_hurt_nobody(world: World, request_bytes: bytes) -> None:
    with server(world) as (address, service):
        answer = raw(address, request_bytes)
        assert b" 500 " not in answer.split(b"\r\n")[0]
        assert httpx.get(f"{address}/health", timeout=LIMIT_S).json()["status"] == "ok"
        assert service.health().num_running == 0


def test_the_page_for_collectors_holds_the_whole_table(world: World) -> None:
    from cong.service import METRICS

    async def main() -> str:
        async with hosting(world) as hosted:
            await hosted.client.post("/sample", json={"prompt": "hello"})
            await hosted.client.post("/sample", json={"prompt": 1})
            response = await hosted.client.get("/metrics")
            assert response.headers["content-type"].startswith("text/plain; version=")
            return response.text

    page = run(main())
    for metric in METRICS:
        assert f"# HELP {metric.name} {metric.help}\n# TYPE {metric.name} {metric.kind}\n" in page
    assert 'cong_requests_refused_total{reason="invalid_value"} 1.0' in page
    assert 'cong_engine_health{status="ok"} 1.0' in page
    assert "cong_time_to_first_token_seconds_count 1.0" in page
    assert not [line for line in page.splitlines() if not line.startswith(("#", "cong_"))]


def test_the_description_s_examples_are_answered(world: World) -> None:
    async def main() -> None:
        async with hosting(world) as hosted:
            schema = (await hosted.client.get("/openapi.json")).json()
            num_tried = 0
            for path, methods in schema["paths"].items():
                content = methods.get("post", {}).get("requestBody", {}).get("content", {})
                for example in content.get("application/json", {}).get("examples", {}).values():
                    response = await hosted.client.post(path, json=example["value"])
                    assert response.status_code == 200, (path, example, response.text)
                    num_tried += 1
            assert num_tried == 7
            assert json.dumps(schema)

    run(main())


def test_info_tells_what_may_be_asked(world: World) -> None:
    async def main() -> dict[str, Any]:
        async with hosting(world, max_total_tokens=100, max_new_tokens=50, max_samples=7) as hosted:
            found: dict[str, Any] = (await hosted.client.get("/info")).json()
            return found

    info = run(main())
    assert info["limits"]["max_total_tokens"] == 100
    assert info["limits"]["max_new_tokens"] == 50
    assert info["limits"]["max_samples"] == 7
    assert [network["role"] for network in info["networks"]] == ["aligned", "base"]
    assert "cong" in info["methods"]
    assert not {"plain", "proxy-tuning"} & set(info["methods"]), "they take another number of networks"
