"""The arguments of this project's own application in a Serve file, as that application reads them."""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from cong.cluster.problem import Problem, joined, near_misses, offered
from cong.cluster.shape import known_keys
from cong.config.loading import check
from cong.config.serving import Arguments, LightSettings
from cong.errors import ConfigError


def application_problems(application: dict[str, Any], place: str) -> Iterator[Problem]:
    """What is wrong in the arguments of this project's application, and in what its deployments are handed."""
    arguments = application.get("args") or {}
    yield from _misfit(Arguments, arguments, joined(place, "args"))
    resources = arguments.get("resources") if isinstance(arguments, dict) else None
    custom = resources.get("custom") if isinstance(resources, dict) else None
    for name in custom if isinstance(custom, dict) else ():
        meant = near_misses(str(name), known_keys("group_resources"))
        if meant:
            path = f"{place}.args.resources.custom.{name}"
            yield Problem(path, f"no node offers a resource {path!r}; {offered(meant)}")
    for number, deployment in enumerate(application.get("deployments", ())):
        if deployment.get("user_config") is not None:
            yield from _misfit(LightSettings, deployment["user_config"], f"{place}.deployments.{number}.user_config")


def _misfit(model: type[BaseModel], content: Any, place: str) -> Iterator[Problem]:
    try:
        check(model, content, place)
    except ConfigError as error:
        for line in str(error).splitlines()[1:]:
            yield Problem(place, f"{place}: {line.strip()}")
