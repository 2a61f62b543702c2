"""What a configuration of Ray Serve must say beyond its shape: where it listens, how long, and how much waits."""

from collections.abc import Iterator
from typing import Any

from cong.cluster.application import application_problems
from cong.cluster.problem import Problem, joined
from cong.config.serving import IMPORT_PATH


def serve_problems(content: dict[str, Any]) -> Iterator[Problem]:
    """What is wrong in a Serve configuration that has the right keys."""
    options = content.get("http_options", {})
    if "host" not in options:
        yield Problem(
            "http_options.host",
            "http_options.host is missing; a configuration file then listens on every address. Say 127.0.0.1, or "
            "0.0.0.0 where only a proxy can reach the port",
        )
    if options.get("request_timeout_s") is None:
        yield Problem(
            "http_options.request_timeout_s",
            "http_options.request_timeout_s is missing; without it a request may take for ever. Give the longest one",
        )
    if content.get("grpc_options", {}).get("grpc_servicer_functions"):
        yield Problem(
            "grpc_options.grpc_servicer_functions", "grpc_options.grpc_servicer_functions opens a port without any key"
        )
    seen: dict[tuple[str, Any], str] = {}
    for number, application in enumerate(content["applications"]):
        place = f"applications.{number}"
        for key, default in (("name", "default"), ("route_prefix", "/")):
            value = application.get(key, default)
            if (key, value) in seen and value is not None:
                yield Problem(joined(place, key), f"{place}.{key} is {value!r}, and so is {seen[key, value]}")
            seen[key, value] = joined(place, key)
        module, colon, attribute = application["import_path"].partition(":")
        if not (colon and module and attribute.isidentifier()):
            yield Problem(
                f"{place}.import_path",
                f"{place}.import_path is {application['import_path']!r}; write it as package.module:name",
            )
        if application["import_path"] == IMPORT_PATH:
            yield from application_problems(application, place)
        for inner, deployment in enumerate(application.get("deployments", ())):
            yield from _deployment_problems(deployment, f"{place}.deployments.{inner}")


def _deployment_problems(deployment: dict[str, Any], place: str) -> Iterator[Problem]:
    scaling = deployment.get("autoscaling_config")
    if scaling is not None:
        fixed = deployment.get("num_replicas")
        if isinstance(fixed, int):
            yield Problem(
                f"{place}.num_replicas", f"{place}.num_replicas is {fixed} beside an autoscaling_config; keep one"
            )
        low, high = scaling.get("min_replicas", 1), scaling.get("max_replicas", 1)
        first = scaling.get("initial_replicas")
        if low > high:
            yield Problem(
                f"{place}.autoscaling_config.min_replicas",
                f"{place}.autoscaling_config.min_replicas is {low}, more than max_replicas, {high}",
            )
        if first is not None and not low <= first <= high:
            yield Problem(
                f"{place}.autoscaling_config.initial_replicas",
                f"{place}.autoscaling_config.initial_replicas is {first}; it must lie in {low}..{high}",
            )
    most = deployment.get("max_queued_requests")
    if most is not None and most < 1:
        yield Problem(
            f"{place}.max_queued_requests",
            f"{place}.max_queued_requests is {most}; overload then waits instead of being told to come back",
        )
