"""Serve files, read and checked before anything is sent: Serve itself takes a misspelt key for nothing at all.

Knows Ray's own models of these files and our arguments; starts nothing.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from ray.serve.schema import ServeDeploySchema

from cong.config.loading import merge, parse_override, read_yaml
from cong.config.service import is_loopback
from cong.errors import ConfigError
from serve.app import DEPLOYMENT, Application, shutdown_s
from serve.light import LightSettings

IMPORT_PATH = "serve.app:build"


@dataclass(frozen=True)
class ServeFile:
    """A checked Serve file."""

    path: Path
    schema: ServeDeploySchema
    name: str
    """Of our application."""
    args: Application

    @property
    def url(self) -> str:
        """Where the application answers, as seen from this machine."""
        http, (application,) = self.schema.http_options, self.schema.applications
        host = "127.0.0.1" if http.host in ("0.0.0.0", "::") else http.host
        scheme = "https" if http.ssl_certfile else "http"
        return f"{scheme}://{host}:{http.port}{(application.route_prefix or '').rstrip('/')}"


def read_serve_file(
    path: Path, overrides: Sequence[str] = (), http: Mapping[str, Any] | None = None, import_path: str = IMPORT_PATH
) -> ServeFile:
    """The file with `section.key=value` set in the application's arguments, and with other HTTP options over its own."""
    content = read_yaml(path)
    if http:
        content = merge(content, {"http_options": dict(http)})
    _refuse_unknown_keys(content, path)
    try:
        schema = ServeDeploySchema.model_validate(content)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, one['loc']))} is {one['input']!r}: {one['msg']}" for one in error.errors()]
        raise ConfigError("\n  ".join([f"{path}: {len(lines)} wrong setting(s)", *lines])) from error
    ours = [application for application in schema.applications if application.import_path == import_path]
    if len(ours) != 1 or len(schema.applications) != 1:
        raise ConfigError(f"{path}: {len(ours)} of {len(schema.applications)} applications have {import_path}; give one")
    (application,) = ours
    for assignment in overrides:
        names, value = parse_override(assignment)
        for name in reversed(names):
            value = {name: value}
        application.args = merge(application.args, value)
    args = Application.model_validate(application.args)
    _check_together(path, schema, content, args)
    return ServeFile(path, schema, application.name, args)


def _refuse_unknown_keys(content: Mapping[str, Any], path: Path) -> None:
    lines = [
        f"unknown key {name!r}; the nearest known one is {near!r}"
        for name, near in _unknown_keys(ServeDeploySchema, content)
    ]
    if lines:
        raise ConfigError("\n  ".join([f"{path}: {len(lines)} wrong setting(s)", *lines]))


def _unknown_keys(model: type[BaseModel], content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names of keys that a model does not know, each with the nearest known one."""
    for key, value in content.items():
        field = model.model_fields.get(key)
        if field is None:
            near = difflib.get_close_matches(str(key), model.model_fields, n=1, cutoff=0.0)
            yield f"{prefix}{key}", f"{prefix}{near[0]}"
            continue
        for inner in _models_in(field.annotation):
            for name, part in _parts(f"{prefix}{key}", value):
                yield from _unknown_keys(inner, part, f"{name}.")


def _parts(name: str, value: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(value, Mapping):
        yield name, value
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for number, item in enumerate(value):
            yield from _parts(f"{name}.{number}", item)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _check_together(path: Path, schema: ServeDeploySchema, content: Mapping[str, Any], args: Application) -> None:
    """What each part alone cannot know."""
    problems = []
    http, service = schema.http_options, args.service
    if "host" not in (content.get("http_options") or {}):
        problems.append("http_options.host is not given, and Serve would listen on every address; write 127.0.0.1")
    elif not is_loopback(http.host) and not service.has_keys:
        problems.append(
            f"http_options.host is {http.host!r}, which other machines can reach, and there are no keys; set "
            "service.api_keys_file or service.api_keys_env in the application's args, or listen on 127.0.0.1"
        )
    if http.request_timeout_s is None or http.request_timeout_s < service.max_deadline_s:
        problems.append(
            f"http_options.request_timeout_s is {http.request_timeout_s}; streams are cut at it, so it must be at least "
            f"service.max_deadline_s, {service.max_deadline_s:g}"
        )
    for deployment in schema.applications[0].deployments:
        given = deployment.model_dump(exclude_unset=True)
        if deployment.name != DEPLOYMENT:
            problems.append(f"deployment {deployment.name!r} does not exist; the only one is {DEPLOYMENT!r}")
        grace_s = given.get("graceful_shutdown_timeout_s")
        if grace_s is not None and grace_s < shutdown_s(service):
            problems.append(
                f"graceful_shutdown_timeout_s is {grace_s:g}; a replica may need {shutdown_s(service):g} s to finish "
                "its longest request and to store it: raise it, or lower service.max_deadline_s"
            )
        if given.get("user_config"):
            LightSettings.read(given["user_config"]).over(service)
    if problems:
        raise ConfigError("\n  ".join([f"{path}: {len(problems)} wrong setting(s)", *problems]))
