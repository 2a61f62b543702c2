"""OpenAI's own client against a real server: completions, chats, streams, log-probs and errors."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from cong.schemas import Prompt, SampleRequest, SamplingParameters
from tests.engine.conftest import World
from tests.serve.http.hosting import server
from tests.service.serving import make_engine

LONG_CONTEXT = "a" * 200
KEY = {"Idempotency-Key": "one"}


@pytest.fixture(scope="module")
def address(world: World) -> Iterator[str]:
    with server(world) as (address, _):
        yield address


@pytest.fixture
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=60.0) as client:
        yield client


def test_the_deployment_is_the_one_model(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["cong"]
    assert client.models.retrieve("cong").owned_by == "cong"
    with pytest.raises(openai.NotFoundError, match="'gpt' is not served here"):
        client.completions.create(model="gpt", prompt="hello")


def test_a_completion_is_the_engine_s_own(client: openai.OpenAI, world: World) -> None:
    reply = client.completions.create(
        model="cong",
        prompt=["hello", "so"],
        n=2,
        max_tokens=9,
        seed=5,
        temperature=0.9,
        top_p=0.95,
        logprobs=1,
        user="me",
        extra_body={"alpha": 0.2, "top_k": 20, "repetition_penalty": 1.1, "min_tokens": 2},
    )
    parameters = SamplingParameters.contrastive(
        0.2, seed=5, temperature=0.9, top_p=0.95, top_k=20, repetition_penalty=1.1, min_tokens=2, max_tokens=9
    )
    wanted = {}
    for number, text in enumerate(("hello", "so")):
        request = SampleRequest(prompt=Prompt(text=text), parameters=parameters, num_samples=2)
        for record in make_engine(world).generate([request]):
            wanted[number * 2 + record.sample_index] = record
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    for choice in reply.choices:
        record = wanted[choice.index]
        assert choice.text == record.completion_text
        assert choice.finish_reason == record.finish_reason
        assert choice.logprobs is not None
        assert choice.logprobs.token_logprobs == pytest.approx(record.mixture_logprobs, abs=1e-4)
        assert choice.logprobs.tokens is not None
        assert "".join(choice.logprobs.tokens).removesuffix("</s>") == record.completion_text
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == 7
    assert reply.usage.total_tokens == 7 + sum(len(record.completion_token_ids) for record in wanted.values())


def test_forms_of_prompts_and_defaults(client: openai.OpenAI) -> None:
    by_text = client.completions.create(model="cong", prompt="hello", seed=1, max_tokens=20)
    by_ids = client.completions.create(model="cong", prompt=[10, 7, 14, 14, 17], seed=1, max_tokens=20)
    by_lists = client.completions.create(model="cong", prompt=[[10, 7, 14, 14, 17], [5]], seed=1, max_tokens=20)
    assert by_text.choices[0].text == by_ids.choices[0].text == by_lists.choices[0].text
    assert len(by_lists.choices) == 2
    default = client.completions.create(model="cong", prompt="hello", extra_body={"ignore_eos": True})
    assert default.usage is not None
    assert default.usage.completion_tokens == 16
    assert default.choices[0].finish_reason == "length"
    texts = {client.completions.create(model="cong", prompt="hello", max_tokens=30).choices[0].text for _ in range(4)}
    assert len(texts) > 1, "without a seed each request has its own"
    same = {client.completions.create(model="cong", prompt="hello", seed=-7).choices[0].text for _ in range(3)}
    assert len(same) == 1
    assert client.completions.create(model="cong", prompt="hello", best_of=2, n=2, seed=1).choices[1].index == 1


def test_echo_scores_the_prompt_as_evaluation_harnesses_ask(client: openai.OpenAI, world: World) -> None:
    ids = [10, 7, 14, 14, 17, 55, 27]
    only = client.completions.create(model="cong", prompt=[ids, ids[:3]], max_tokens=0, echo=True, logprobs=1)
    assert [choice.text for choice in only.choices] == ["hello y", "hel"]
    engine_scores: list[list[float]] = []
    for choice in only.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.token_logprobs is not None
        assert choice.logprobs.top_logprobs is not None
        values: list[Any] = [*choice.logprobs.token_logprobs]
        tops: list[Any] = [*choice.logprobs.top_logprobs]
        assert (values.pop(0), tops.pop(0)) == (None, None), "nothing stands before the first token"
        assert [max(top.values()) for top in tops] == values
        engine_scores.append(values)
    assert only.usage is not None
    assert (only.usage.prompt_tokens, only.usage.completion_tokens) == (10, 0)

    from cong.engine import Rate, Rated

    engine = make_engine(world)
    engine.score(Rate("s", Prompt(token_ids=(ids[0],)), tuple(ids[1:])))
    scored = []
    while engine.has_work:
        scored += [event for event in engine.events() if isinstance(event, Rated)]
    assert engine_scores[0] == pytest.approx(scored[0].score.logprobs["aligned"], abs=1e-4)

    # Newer harnesses ask for one token behind the prompt and leave it out.
    both = client.completions.create(model="cong", prompt=[ids], max_tokens=1, echo=True, logprobs=1, temperature=0)
    assert both.choices[0].logprobs is not None
    assert both.choices[0].logprobs.token_logprobs is not None
    assert both.choices[0].logprobs.token_logprobs[1:-1] == pytest.approx(engine_scores[0], abs=1e-4)
    assert both.choices[0].text.startswith("hello y")
    plain = client.completions.create(model="cong", prompt="hello", max_tokens=2, echo=True)
    assert plain.choices[0].text.startswith("hello")
    assert plain.choices[0].logprobs is None


@pytest.mark.parametrize("logprobs", [None, 1])
def test_a_prompt_that_is_only_told_again_has_the_limits_of_one_that_is_answered(
    client: openai.OpenAI, logprobs: int | None
) -> None:
    """Nothing is drawn, and with no log-probs nothing is computed; a small request must not make a large reply."""
    few = client.completions.create(model="cong", prompt="hello", n=2, max_tokens=0, echo=True, logprobs=logprobs)
    assert [choice.text for choice in few.choices] == ["hello", "hello"]
    with pytest.raises(
        openai.UnprocessableEntityError, match="the prompt has 200 tokens and max_tokens asks for 0"
    ) as caught:
        client.completions.create(model="cong", prompt=LONG_CONTEXT, max_tokens=0, echo=True, logprobs=logprobs)
    assert caught.value.code == "context_length_exceeded"
    prompts = ["a"] * 9
    with pytest.raises(openai.UnprocessableEntityError, match="are 1152 samples; a request may ask for 1024") as caught:
        client.completions.create(model="cong", prompt=prompts, n=128, max_tokens=0, echo=True, logprobs=logprobs)
    assert caught.value.param == "n"
    with pytest.raises(openai.UnprocessableEntityError, match="holds 99") as caught:
        client.completions.create(model="cong", prompt=[99], max_tokens=0, echo=True, logprobs=logprobs)
    assert caught.value.param == "prompt"


def test_a_streamed_completion_is_the_whole_one(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "cong", "prompt": ["hello", "so"], "n": 2, "seed": 3, "max_tokens": 12}
    whole = client.completions.create(**options, logprobs=0)
    texts = dict.fromkeys(range(4), "")
    reasons: dict[int, str] = {}
    logprobs: dict[int, list[float]] = {index: [] for index in range(4)}
    usage = None
    stream = client.completions.create(**options, logprobs=0, stream=True, stream_options={"include_usage": True})
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
            if choice.logprobs is not None:
                logprobs[choice.index] += choice.logprobs.token_logprobs or []
    assert texts == {choice.index: choice.text for choice in whole.choices}
    assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}
    for choice in whole.choices:
        assert choice.logprobs is not None
        assert logprobs[choice.index] == pytest.approx(choice.logprobs.token_logprobs, abs=1e-4)
    assert usage == whole.usage


def test_a_chat_is_rendered_and_answered(client: openai.OpenAI, world: World) -> None:
    options: dict[str, Any] = {"model": "cong", "seed": 4, "max_completion_tokens": 10, "n": 2}
    reply = client.chat.completions.create(
        **options,
        messages=[
            {"role": "developer", "content": "be kind"},
            {"role": "user", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]},
        ],
        logprobs=True,
        top_logprobs=3,
    )
    text = "system. be kind! user. hello! assistant. "
    request = SampleRequest(
        prompt=Prompt(text=text), parameters=SamplingParameters.contrastive(0.4, seed=4, max_tokens=10), num_samples=2
    )
    wanted = sorted(make_engine(world).generate([request]), key=lambda record: record.sample_index)
    for choice, record in zip(reply.choices, wanted, strict=True):
        assert choice.message.content == record.completion_text
        assert choice.message.role == "assistant"
        assert choice.finish_reason == record.finish_reason
        assert choice.logprobs is not None
        assert choice.logprobs.content is not None
        assert [token.logprob for token in choice.logprobs.content] == pytest.approx(record.mixture_logprobs, abs=1e-4)
        assert all([top.token for top in token.top_logprobs] == [token.token] for token in choice.logprobs.content)
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == len(text)


def test_a_streamed_chat_is_the_whole_one(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "cong", "seed": 4, "n": 2, "max_tokens": 10}
    options["messages"] = [{"role": "user", "content": "hello"}]
    whole = client.chat.completions.create(**options)
    texts = {0: "", 1: ""}
    roles: dict[int, str] = {}
    reasons: dict[int, str] = {}
    for chunk in client.chat.completions.create(**options, stream=True, logprobs=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.delta.role:
                roles[choice.index] = choice.delta.role
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    assert texts == {choice.index: choice.message.content for choice in whole.choices}
    assert roles == {0: "assistant", 1: "assistant"}
    assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"max_tokens": 1000}, "max_tokens"),
        ({"top_logprobs": 2}, None),
        ({"n": 129}, "n"),
        ({"extra_body": {"no_such": 1}}, "no_such"),
        ({"extra_body": {"alpha": 0.5, "method": "cong"}}, "alpha"),
        ({"extra_body": {"method": "no-such"}}, "method"),
        ({"extra_body": {"stop_token_ids": [61]}}, "stop_token_ids"),
        ({"extra_body": {"min_tokens": 20}, "max_tokens": 10}, "max_tokens"),
        ({"stop": [""]}, None),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    client: openai.OpenAI, options: dict[str, Any], field: str | None
) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        client.chat.completions.create(model="cong", messages=[{"role": "user", "content": "hello"}], **options)
    assert caught.value.type == "invalid_request_error"
    if field is not None:
        assert caught.value.param == field


def test_what_means_nothing_here_is_ignored(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model="cong",
        messages=[{"role": "user", "content": "hello", "name": "me"}],
        user="me",
        metadata={"a": "b"},
        service_tier="auto",
        tool_choice="none",
        parallel_tool_calls=True,
        response_format={"type": "text"},
        presence_penalty=0,
        frequency_penalty=0.0,
        logit_bias={},
        store=False,
        max_tokens=3,
    )
    assert reply.usage is not None
    assert 1 <= reply.usage.completion_tokens <= 3
    nested: Any = []
    for _ in range(500):
        nested = [nested]
    texts = {
        client.completions.create(
            model="cong", prompt="hello", max_tokens=12, user=user, extra_body={"metadata": nested}, extra_headers=KEY
        )
        .choices[0]
        .text
        for user in ("me", "you")
    }
    assert len(texts) == 1, "what is ignored makes no other request"


def test_other_refusals_are_what_the_client_expects(client: openai.OpenAI) -> None:
    with pytest.raises(openai.UnprocessableEntityError, match="together they may be 160") as caught:
        client.completions.create(model="cong", prompt=LONG_CONTEXT)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.UnprocessableEntityError, match="only equal values"):
        client.completions.create(model="cong", prompt="a", best_of=3, n=2)
    with pytest.raises(openai.UnprocessableEntityError, match="which takes echo"):
        client.completions.create(model="cong", prompt="a", max_tokens=0)
    with pytest.raises(openai.UnprocessableEntityError, match="echo cannot be streamed"):
        client.completions.create(model="cong", prompt="a", echo=True, stream=True)
    with pytest.raises(openai.PermissionDeniedError, match="keeps no samples"):
        client.completions.create(model="cong", prompt="a", extra_body={"store": True})
