"""The arguments of this project's own application in a Serve file, as that application reads them.

Repeats what the application adds to a run's configuration, because nothing here may import it; a test compares both.
"""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, Field

from cong.cluster.problem import Problem, joined, near_misses, offered
from cong.cluster.shape import known_keys
from cong.config import RunConfig, Settings
from cong.config.loading import check
from cong.errors import ConfigError

IMPORT_PATH = "serve.app:build"


class Resources(Settings):
    """What one replica takes of its node."""

    num_cpus: float = Field(default=1.0, ge=0.0)
    num_gpus: float | None = Field(default=None, ge=0.0)
    memory_bytes: int = Field(default=0, ge=0)
    custom: dict[str, float] = Field(default_factory=dict)


class Arguments(RunConfig):
    """`args`: a run's configuration, and what only the application asks."""

    config: str = ""
    uses_lab_pair: bool = False
    resources: Resources = Resources()


class Light(Settings):
    """`user_config`: what changes without new replicas."""

    generation: int = Field(default=0, ge=0)
    default_deadline_s: float | None = Field(default=None, gt=0.0)
    max_waiting: int | None = Field(default=None, ge=1)
    max_concurrent_per_key: int | None = Field(default=None, ge=1)
    keep_alive_s: float | None = Field(default=None, gt=0.0)
    write_timeout_s: float | None = Field(default=None, gt=0.0)
    stream_writes_per_s: float | None = Field(default=None, gt=0.0)
    max_stream_gap_s: float | None = Field(default=None, gt=0.0)


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
            yield from _misfit(Light, deployment["user_config"], f"{place}.deployments.{number}.user_config")


def _misfit(model: type[BaseModel], content: Any, place: str) -> Iterator[Problem]:
    try:
        check(model, content, place)
    except ConfigError as error:
        for line in str(error).splitlines()[1:]:
            yield Problem(place, f"{place}: {line.strip()}")
