"""Serve files, read and checked before anything is sent: Serve itself takes a misspelt key for nothing at all.

Knows what `cong.cluster` knows of such files, Ray's own models of them, and our arguments; starts nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema

from cong.cluster import find_problems
from cong.config.loading import merge, parse_override, read_yaml
from cong.config.service import is_loopback
from cong.config.serving import IMPORT_PATH, LightSettings
from cong.errors import ConfigError
from cong.wording import causes
from serve.app import DEPLOYMENT, Application, shutdown_s


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
    """The file with `section.key=value` set in the application's arguments, and other HTTP options over its own."""
    content = _refuse_wrong_keys(path)
    if http:
        content = merge(content, {"http_options": dict(http)})
    try:
        schema = ServeDeploySchema.model_validate(content)
    except ValidationError as error:
        lines = [f"{name} is {one['input']!r}: {words}" for one in error.errors() for name, words in causes([one])]
        raise ConfigError("\n  ".join([f"{path}: {len(lines)} wrong setting(s)", *lines])) from error
    ours = [application for application in schema.applications if application.import_path == import_path]
    if len(ours) != 1 or len(schema.applications) != 1:
        raise ConfigError(
            f"{path}: {len(ours)} of {len(schema.applications)} applications have {import_path}; give one"
        )
    (application,) = ours
    for assignment in overrides:
        names, value = parse_override(assignment)
        for name in reversed(names):
            value = {name: value}
        application.args = merge(application.args, value)
    args = Application.model_validate(application.args)
    _check_together(path, schema, args)
    return ServeFile(path, schema, application.name, args)


def _refuse_wrong_keys(path: Path) -> dict[str, Any]:
    content = read_yaml(path)
    problems = find_problems(path.read_text(encoding="utf-8"), str(path))
    if problems:
        lines = [problem.message for problem in problems]
        raise ConfigError("\n  ".join([f"{path}: {len(lines)} wrong setting(s)", *lines]))
    return content


def _check_together(path: Path, schema: ServeDeploySchema, args: Application) -> None:
    """What each part alone cannot know."""
    problems = []
    http, service = schema.http_options, args.service
    if not is_loopback(http.host) and not service.has_keys:
        problems.append(
            f"http_options.host is {http.host!r}, which other machines can reach, and there are no keys; set "
            "service.api_keys_file or service.api_keys_env in the application's args, or listen on 127.0.0.1"
        )
    if not 0 < http.port < 65_536:
        problems.append(f"http_options.port is {http.port}; ports are 1 to 65535")
    problems += [
        f"service.{name} is {getattr(service, name)!r}, and Ray Serve listens where http_options says; give "
        f"http_options.{name} (python -m serve: --{name})"
        for name in ("host", "port")
        if name in service.model_fields_set and getattr(service, name) != getattr(http, name)
    ]
    if not args.uses_lab_pair and not args.run().models.aligned.source:
        problems.append(
            "models.aligned.source names no network; give it a folder or a hub id, or set uses_lab_pair to true"
        )
    if http.request_timeout_s is None or http.request_timeout_s < service.max_deadline_s:
        problems.append(
            f"http_options.request_timeout_s is {http.request_timeout_s}; streams are cut at it, so give at least "
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
