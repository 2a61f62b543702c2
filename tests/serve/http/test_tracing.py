"""Spans where they are switched on: names, counts and times, and no text."""

import json
from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.engine.conftest import World
from tests.serve.http.hosting import hosting
from tests.service.serving import run

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """Where this test's spans go; what the process has configured stays as it is."""
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", lambda *names: provider.get_tracer(*names))
    yield exporter
    provider.shutdown()


def ask(world: World, **config: bool) -> None:
    async def main() -> None:
        async with hosting(world, **config) as hosted:  # type: ignore[arg-type]
            headers = {"traceparent": PARENT, "x-request-id": "mine"}
            body = {"prompt": "mysecret", "parameters": {"max_tokens": 3, "ignore_eos": True}}
            for stream in ("none", "tokens"):
                await hosted.client.post("/sample", json={**body, "stream": stream}, headers=headers)
            await hosted.client.post("/sample", json={"prompt": 1}, headers=headers)
            await hosted.client.get("/health", headers=headers)

    run(main())


def test_a_request_is_a_span_under_its_caller_s_and_holds_no_text(world: World, spans: InMemorySpanExporter) -> None:
    ask(world, has_tracing=True)
    found: tuple[ReadableSpan, ...] = spans.get_finished_spans()
    assert [span.name for span in found] == ["POST /sample"] * 3
    for span, status in zip(found, (200, 200, 422), strict=True):
        attributes = dict(span.attributes or {})
        assert attributes["http.response.status_code"] == status
        assert attributes["cong.request_id"] == "mine"
        assert span.parent is not None
        assert trace.format_trace_id(span.parent.trace_id) == PARENT.split("-")[1]
        if status == 200:
            assert attributes["gen_ai.usage.input_tokens"] == 8
            assert attributes["gen_ai.usage.output_tokens"] == 3
        else:
            assert attributes["error.type"] == "invalid_value"
        assert "mysecret" not in json.dumps(attributes)


def test_without_the_switch_there_are_none(world: World, spans: InMemorySpanExporter) -> None:
    ask(world)
    assert not spans.get_finished_spans()
