"""Thousands of requests made from the description of the API, good and bad: what comes back is what it promises."""

import resource
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.engine.conftest import World
from tests.serve.http.hosting import command, settings_file, wait_until

NUM_CASES = 2000
MAX_GROWTH_BYTES = 32 << 20
LARGE_BODY_MESSAGES = 50_000
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


NARROWER = {
    # What this deployment takes less of than the description allows.
    "method",
    "method_parameters",
    "store",
    "weights",
    "network_temperatures",
    "exempt_token_ids",
    "stop_token_ids",
    "max_tokens",
    "max_completion_tokens",
    "min_tokens",
    "n",
    "best_of",
    "num_samples",
    "deadline_s",
}


def resident_bytes(pid: int) -> int:
    """Main memory of the service's process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def eased(value: Any) -> Any:
    """The same without what this deployment would refuse for reasons of its own."""
    if isinstance(value, dict):
        kept = {name: eased(inner) for name, inner in value.items() if name not in NARROWER}
        return {**kept, "model": "cong"} if isinstance(value.get("model"), str) else kept
    if isinstance(value, list):
        return [eased(inner) for inner in value[:2]]
    return value


def try_one(operation: Any, mode: GenerationMode, num_examples: int, seed: int) -> list[int]:
    """Ask one operation so often; the statuses that came back, each reply checked."""
    statuses: list[int] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=num_examples,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        if mode is GenerationMode.POSITIVE and len(statuses) % 4:
            case.body = eased(case.body)
        response = case.call(timeout=30)
        statuses.append(response.status_code)
        case.validate_response(response, checks=CHECKS)

    ask()
    return statuses


def try_all(schema: Any, num_examples: int, seed: int) -> Counter[int]:
    """Ask every operation, with good bodies and with bad ones where it takes any."""
    seen: Counter[int] = Counter()
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.body:
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                seen.update(try_one(operation, mode, num_examples, seed))
        else:
            seen.update(try_one(operation, GenerationMode.POSITIVE, 10, seed))
    return seen


@pytest.mark.slow
def test_two_thousand_requests_break_nothing_and_leave_nothing(world: World, tmp_path: Path) -> None:
    limits: dict[str, Any] = {
        "max_new_tokens": 4,
        "max_samples": 8,
        "max_total_tokens": 100,
        "max_idempotent_answers": 10,
    }
    settings = settings_file(world, tmp_path, sampling={"max_tokens": 2}, **limits)
    with command(settings) as (address, process, log):
        schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
        seen = try_all(schema, NUM_CASES // 40, seed=1)
        # Memory that reading a body took stays with the process for the next one: the largest comes before measuring.
        large = {"prompts": [{"messages": [{"role": "user", "content": "hello"}] * LARGE_BODY_MESSAGES}]}
        assert httpx.post(f"{address}/sample", json=large, timeout=60.0).status_code == 422
        before_bytes = resident_bytes(process.pid)
        seen += try_all(schema, NUM_CASES // 9, seed=2)
        growth_bytes = resident_bytes(process.pid) - before_bytes

        def health() -> dict[str, Any]:
            return dict(httpx.get(f"{address}/health", timeout=30.0).json())

        wait_until(lambda: health()["num_running"] == health()["num_waiting"] == 0)
        assert health()["status"] == "ok"
    assert "Traceback" not in log.read_text()
    assert seen.total() >= NUM_CASES
    assert seen[200] >= NUM_CASES // 20, seen
    assert seen[422] >= NUM_CASES // 20, seen
    assert not [status for status in seen if status >= 500], seen
    assert growth_bytes < MAX_GROWTH_BYTES, f"{growth_bytes >> 20} MiB"
