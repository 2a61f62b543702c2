"""Serve configurations: where they listen, how long requests last, how many replicas, what the application is told."""

from typing import Any

import pytest

from cong.cluster.check import document_problems
from cong.cluster.document import recognise

from .shipped import one
from .test_launcher import Change, setting

APP = "applications/0"
PAIR = f"{APP}/deployments/0"


def messages(change: Change) -> list[str]:
    content = one("serve/config.yaml")
    change(content)
    return [problem.message for problem in document_problems(recognise(content, ""))]


FAULTS: list[tuple[Change, str]] = [
    (setting("http_options", None), "http_options.host is missing"),
    (setting("http_options/request_timeout_s", None), "http_options.request_timeout_s is missing"),
    (setting("http_options/port", "8000"), "http_options.port is '8000': it must be a whole number"),
    (setting("grpc_options", {"grpc_servicer_functions": ["a.b:c"]}), "opens a port without any key"),
    (setting(f"{APP}/import_path", "serve.app"), "write it as package.module:name"),
    (setting(f"{APP}/import_path", None), "applications.0.import_path is missing"),
    (setting(f"{PAIR}/num_replicas", 2), "num_replicas is 2 beside an autoscaling_config"),
    (setting(f"{PAIR}/num_replicas", "many"), "num_replicas is 'many': it must be 'auto' or a whole number"),
    (setting(f"{PAIR}/autoscaling_config/min_replicas", 9), "min_replicas is 9, more than max_replicas, 8"),
    (setting(f"{PAIR}/autoscaling_config/initial_replicas", 9), "initial_replicas is 9; it must lie in 1..8"),
    (
        setting(f"{PAIR}/autoscaling_config/upscale_delay", 1),
        "'applications.0.deployments.0.autoscaling_config.upscale_",
    ),
    (setting(f"{PAIR}/max_queued_requests", -1), "max_queued_requests is -1"),
    (setting(f"{APP}/args/service/max_deadlines", 1), "unknown key 'service.max_deadlines'"),
    (setting(f"{APP}/args/engine/max_running", 0), "engine.max_running is 0"),
    (setting(f"{APP}/args/resources/custom", {"samplr": 1}), "the nearest known one is 'sampler'"),
    (setting(f"{PAIR}/user_config", {"max_wating": 1}), "unknown key 'max_wating'"),
    (setting(f"{PAIR}/user_config", {"max_waiting": 0}), "max_waiting is 0"),
    (setting("applications", None), "applications is missing"),
    (setting("logging_config/encoding", "YAML"), "logging_config.encoding is 'YAML'"),
]


@pytest.mark.parametrize(("change", "complaint"), FAULTS, ids=[complaint[:50] for _, complaint in FAULTS])
def test_a_fault_is_named(change: Change, complaint: str) -> None:
    found = messages(change)
    assert any(complaint in message for message in found), found


def test_two_applications_need_names_and_routes_of_their_own() -> None:
    def change(content: dict[str, Any]) -> None:
        content["applications"].append(dict(content["applications"][0]))

    found = messages(change)
    assert any("applications.1.name is 'cong', and so is applications.0.name" in message for message in found)
    assert any("applications.1.route_prefix is '/'" in message for message in found)


def test_the_arguments_of_other_applications_are_their_own() -> None:
    def change(content: dict[str, Any]) -> None:
        content["applications"][0] |= {"import_path": "mine.app:build", "args": {"anything": [1, "goes"]}}
        content["applications"][0]["deployments"][0]["user_config"] = None

    assert messages(change) == []
