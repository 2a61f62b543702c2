"""The builder of the application: typed arguments in, a bound deployment out.

Knows what one replica needs of its node and how it is to be stopped; loads no model and imports no torch, because it
runs on the head node, wherever the replicas will be.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import model_validator
from ray import serve

import cong
from cong.config import RunConfig
from cong.config.loading import check, merge, read_yaml
from cong.config.service import ServiceConfig
from cong.config.serving import Arguments, Resources
from serve.deployment import Replica

DEPLOYMENT = "Pair"
"""What the deployment is called in Serve files, in `serve status` and in Serve's own metrics."""

HEALTH_CHECK_PERIOD_S = 2.0
HEALTH_CHECK_TIMEOUT_S = 10.0
MAX_ONGOING_REQUESTS = 256
MAX_QUEUED_REQUESTS = 256
RETRY_AFTER_S = 2.0
_STOP_S = 15.0
"""For the engine's thread to end its step, and for what is left."""


class Application(Arguments):
    """The arguments as Serve hands them in, read over their file and checked as one."""

    @model_validator(mode="before")
    @classmethod
    def _over_its_file(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        content, origin = dict(given), "arguments"
        path = given.get("config")
        if isinstance(path, str) and path:
            content, origin = merge(read_yaml(Path(path)), given), f"arguments over {path}"
        # Refused here, where an unknown key is told with the nearest known one.
        check(Arguments, content, origin)
        return content

    def run(self) -> RunConfig:
        """The run's configuration alone."""
        config = RunConfig(**{name: getattr(self, name) for name in RunConfig.model_fields})
        if not self.uses_lab_pair:
            return config
        return config.model_copy(update={"models": merge_lab_pair(config)})


def merge_lab_pair(config: RunConfig) -> Any:
    """The settings of models with the package's two networks of different size as the pair."""
    assets = Path(cong.__file__).parent / "lab" / "assets"
    content = {
        "aligned": {"source": str(assets / "strong_base")},
        "base": {"source": str(assets / "weak_base")},
        "strong": {"source": ""},
    }
    return type(config.models).model_validate(merge(config.models.model_dump(), content))


def shutdown_s(service: ServiceConfig) -> float:
    """How long a replica may take to stop: its longest request, then storing, then the engine's last step."""
    return service.max_deadline_s + service.store_timeout_s + _STOP_S


def actor_options(resources: Resources, config: RunConfig) -> dict[str, Any]:
    """What Ray sets aside for one replica."""
    num_gpus = resources.num_gpus
    if num_gpus is None:
        num_gpus = 1.0 if config.models.device.startswith("cuda") else 0.0
    options: dict[str, Any] = {"num_cpus": resources.num_cpus, "num_gpus": num_gpus}
    if resources.memory_bytes:
        options["memory"] = resources.memory_bytes
    if resources.custom:
        options["resources"] = dict(resources.custom)
    return options


def bind(replica: type[Replica], args: Application) -> serve.Application:
    """A class of replicas as an application; what a Serve file says of the deployment goes over these options."""
    config = args.run()
    decorate = serve.deployment(
        name=DEPLOYMENT,
        ray_actor_options=actor_options(args.resources, config),
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        max_queued_requests=MAX_QUEUED_REQUESTS,
        backpressure_config={"status_code": 429, "retry_after_s": RETRY_AFTER_S},
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        health_check_timeout_s=HEALTH_CHECK_TIMEOUT_S,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=shutdown_s(config.service),
    )
    deployment: serve.Deployment = decorate(serve.ingress()(replica))
    return deployment.bind(config)


def build(args: Application) -> serve.Application:
    """The application of a Serve file: `import_path: serve.app:build`."""
    return bind(Replica, args)
