"""Every way to ask, through the proxy: forms of prompts and answers, OpenAI's whole face, and what is refused."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from .application import Deployed

pytestmark = pytest.mark.ray

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
SHORT: dict[str, Any] = {"max_tokens": 6, "seed": 3}
CHAT: dict[str, Any] = {"model": "lab", "messages": [{"role": "user", "content": "Sdbgaf="}], **SHORT}


@pytest.fixture(scope="module")
def service(deployed: Deployed) -> Deployed:
    # Tracing is switched on too: what it does is tested elsewhere, that nothing breaks is tested here.
    template = deployed.folder / "template.jinja"
    template.write_text(TEMPLATE)
    deployed.deploy(f"models.chat_template={template}", "service.max_body_bytes=20000", "service.has_tracing=true")
    return deployed


@pytest.fixture
def http(service: Deployed) -> Iterator[httpx.Client]:
    with service.http() as client:
        yield client


@pytest.fixture
def official(service: Deployed) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key=service.key, max_retries=0) as client:
        yield client


def tokens_of(reply: httpx.Response) -> list[list[int]]:
    assert reply.status_code == 200, reply.text
    return [sample["record"]["completion_token_ids"] for sample in reply.json()["samples"]]


def test_text_messages_and_token_ids_are_the_same_prompt(http: httpx.Client) -> None:
    asked = {"num_samples": 2, "parameters": SHORT}
    text = http.post("/sample", json={"prompt": "Sdbgaf=", **asked})
    ids = text.json()["samples"][0]["record"]["prompt_token_ids"]
    others = [{"messages": CHAT["messages"]}, {"token_ids": ids}]
    found = [tokens_of(text), *(tokens_of(http.post("/sample", json={"prompt": one, **asked})) for one in others)]
    assert found[0] == found[1] == found[2]
    preset = {"method": "contrastive-decoding", "method_parameters": {"coefficient": 0.5}}
    assert len(tokens_of(http.post("/sample", json={"prompt": "Sdbgaf=", **preset, **asked}))) == 2


@pytest.mark.parametrize("accept", ["application/x-ndjson", "text/event-stream"])
@pytest.mark.parametrize("form", ["samples", "tokens"])
def test_a_stream_has_its_samples_and_its_end(http: httpx.Client, form: str, accept: str) -> None:
    body = {"prompt": "Sdbgaf=", "num_samples": 3, "parameters": SHORT, "stream": form}
    reply = http.post("/sample", json=body, headers={"accept": accept})
    assert reply.headers["content-type"] == accept
    *events, end = [json.loads(line.removeprefix("data: ")) for line in reply.text.splitlines() if "{" in line]
    assert (end["event"], end["num_samples"], end["error"]) == ("end", 3, None)
    assert [event["event"] for event in events].count("sample") == 3
    assert any(event["event"] == "token" for event in events) == (form == "tokens")


def test_openai_s_client_gets_chats_whole_and_streamed(official: openai.OpenAI) -> None:
    whole = official.chat.completions.create(**CHAT, n=2, logprobs=True, top_logprobs=1)
    assert [choice.index for choice in whole.choices] == [0, 1]
    logprobs = whole.choices[0].logprobs
    assert logprobs is not None
    assert len(logprobs.content or ()) == 6
    parts = official.chat.completions.create(**CHAT, stream=True, stream_options={"include_usage": True})
    chunks = list(parts)
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 6


def test_openai_s_client_scores_a_prompt_and_stops_where_told(official: openai.OpenAI) -> None:
    echoed = official.completions.create(model="lab", prompt="Sdbgaf=", max_tokens=0, echo=True, logprobs=1)
    logprobs = echoed.choices[0].logprobs
    assert logprobs is not None
    assert len(logprobs.token_logprobs or ()) == len(logprobs.tokens or ()) > 1
    free = official.completions.create(model="lab", prompt="Sdbgaf=", **SHORT).choices[0]
    stop = free.text[2]
    stopped = official.completions.create(model="lab", prompt="Sdbgaf=", stop=stop, **SHORT).choices[0]
    assert (stopped.text, stopped.finish_reason) == (free.text.partition(stop)[0], "stop")
    changed = official.completions.create(model="lab", prompt="Sdbgaf=", extra_body={"alpha": 1.0}, **SHORT)
    assert changed.choices[0].text
    with pytest.raises(openai.UnprocessableEntityError, match="temperature"):
        official.completions.create(model="lab", prompt="S", temperature=-1.0)


def test_one_key_is_one_request_and_another_body_a_conflict(http: httpx.Client) -> None:
    headers, body = {"idempotency-key": "faces"}, {"prompt": "Sdbgaf=", "parameters": {"max_tokens": 6}}
    first, again = (http.post("/sample", json=body, headers=headers) for _ in range(2))
    assert tokens_of(first) == tokens_of(again)
    assert http.post("/sample", json={**body, "num_samples": 2}, headers=headers).status_code == 409


@pytest.mark.parametrize(
    ("path", "body", "status", "told"),
    [
        ("/sample", {"prompt": "S", "parameters": {"top_p": 2.0}}, 422, "parameters.top_p"),
        ("/sample", {"prompt": "S", "num_sample": 2}, 422, "num_samples"),
        ("/sample", {"prompt": "S" * 30_000}, 413, "20000"),
        ("/sample", {"prompt": "S", "parameters": {"max_tokens": 100_000}}, 422, "max_tokens"),
        ("/sample", {"prompt": "S", "store": "shared"}, 422, "store"),
        ("/score", {"items": []}, 422, "items"),
        ("/v1/completions", {"model": "other", "prompt": "S"}, 404, "other"),
    ],
)
def test_what_is_refused_is_told_with_its_reason(
    http: httpx.Client, path: str, body: dict[str, Any], status: int, told: str
) -> None:
    reply = http.post(path, json=body)
    assert (reply.status_code, told in reply.json()["error"]["message"]) == (status, True), reply.text


def test_what_is_there_describes_itself(http: httpx.Client) -> None:
    info = http.get("/info").raise_for_status().json()
    assert [network["role"] for network in info["networks"]] == ["aligned", "base"]
    assert info["limits"]["max_body_bytes"] == 20_000
    assert "/sample" in http.get("/openapi.json").raise_for_status().json()["paths"]
    assert http.get("/docs").raise_for_status().headers["content-type"].startswith("text/html")
