"""The Serve application on vLLM: what callers get through the proxy is what the engine gives."""

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from cong.engine import Rate, Rated
from cong.schemas import Prompt, SampleRequest, SamplingParameters, ScoreRequest
from serve.ports import free_port
from tests.serve.application import Deployed, eventually
from tests.vllm.conftest import VllmWorld

pytestmark = pytest.mark.ray

PARAMETERS = SamplingParameters.contrastive(alpha=0.4, max_tokens=20, seed=5)


@pytest.fixture(scope="module")
def service(ray_session: None, world: VllmWorld, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    application = Deployed(Path(tmp_path_factory.mktemp("serve")), free_port())
    application.deploy(
        "uses_lab_pair=false",
        f"models.aligned.source={world.folder('llama', 1)}",
        f"models.base.source={world.folder('llama', 2)}",
        "engine.backend=vllm",
        "engine.kv_memory_bytes=4194304",
        "engine.vllm.is_eager=true",
        "engine.vllm.block_size=32",
        "service.stuck_after_s=60",
    )
    yield application
    application.stop()


def test_samples_are_those_of_the_engine(service: Deployed, world: VllmWorld) -> None:
    texts = ("hello", "abc", "The end.")
    with service.client() as client:
        reply = client.sample(texts, num_samples=2, parameters=PARAMETERS)
        info = client.info()
    assert info.backend == "vllm"
    engine = world.engine(world.folder("llama", 1), world.folder("llama", 2))
    requests = [SampleRequest(prompt=Prompt(text=text), parameters=PARAMETERS, num_samples=2) for text in texts]
    expected = {record.key: record.completion_token_ids for record in engine.generate(requests)}
    answered = {sample.record.key: sample.record.completion_token_ids for sample in reply.samples}
    assert answered == expected
    assert {sample.record.software["engine"] for sample in reply.samples} == {"vllm"}


def test_scores_are_those_of_the_engine(service: Deployed, world: VllmWorld) -> None:
    with service.client() as client:
        reply = client.score([ScoreRequest(prompt=Prompt(text="hello"), completion_token_ids=(5, 6, 7))])
    engine = world.engine(world.folder("llama", 1), world.folder("llama", 2))
    engine.score(Rate("s", Prompt(text="hello"), (5, 6, 7)))
    events = [event for _ in range(3) for event in engine.events()]
    (expected,) = [event.score for event in events if isinstance(event, Rated)]
    for role in ("aligned", "base"):
        assert reply.items[0].score.logprobs[role] == pytest.approx(expected.logprobs[role], abs=1e-4)


def test_openai_s_client_gets_the_same_text_whole_and_streamed(service: Deployed, world: VllmWorld) -> None:
    client = openai.OpenAI(base_url=f"{service.url}/v1", api_key=service.key, max_retries=0)
    model = client.models.list().data[0].id
    options = {"model": model, "prompt": "hello", "max_tokens": 12, "temperature": 1.0, "seed": 3}
    whole = client.completions.create(**options)  # type: ignore[call-overload]
    pieces = [chunk.choices[0].text for chunk in client.completions.create(**options, stream=True) if chunk.choices]  # type: ignore[call-overload]
    assert whole.choices[0].text
    assert "".join(pieces) == whole.choices[0].text


def test_a_caller_who_leaves_frees_the_engine(service: Deployed) -> None:
    with service.http() as http:
        body = {
            "prompt": "hello",
            "num_samples": 64,
            "stream": True,
            "parameters": {"max_tokens": 100, "ignore_eos": True},
        }
        with http.stream("POST", "/sample", json=body) as answer:
            next(answer.iter_lines())
    with service.client() as client:
        (sample,) = client.sample(("abc",), parameters=PARAMETERS).samples
    assert sample.record.finish_reason in ("stop", "length")
    eventually(lambda: service.metric("cong_calls_open") == 0, "nobody is being served")
