"""A replica: one process that owns one set of networks, with the HTTP application in front.

Knows Ray Serve's hooks and nothing of requests. Whatever is heavy is imported by the replica, not by whoever builds it.
"""

import asyncio
import logging
import os
from typing import TYPE_CHECKING, Any

from ray import serve
from starlette.types import ASGIApp

from cong.config import RunConfig
from cong.config.service import is_loopback
from cong.config.serving import LightSettings
from cong.errors import ConfigError

if TYPE_CHECKING:
    from cong.service import SampleService
    from serve.mirror import Mirror

log = logging.getLogger(__name__)

MIRROR_S = 5.0
"""How often Ray's metrics are brought up to date; Ray itself reports them every few seconds."""


class Replica:
    """What Serve constructs, asks for its health, changes lightly, and stops."""

    def __init__(self, config: RunConfig) -> None:
        """Serve calls this off the process that serves; the networks come with `__serve_build_asgi_app__`."""
        self.config = config
        self._service: SampleService | None = None

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """Load the networks, prove that they answer, and put the HTTP application in front of them."""
        from cong.service import KeyRing
        from serve.behind_proxy import WithoutRequestId
        from serve.http import create_app
        from serve.mirror import Mirror

        join_logs()
        if os.environ.get("RAY_AUTH_MODE", "disabled") == "disabled":
            log.warning(
                "Ray asks nobody for a token: whoever reaches its ports runs code here; set RAY_AUTH_MODE=token"
            )
        config = self.config.service
        # First what fails fast: without keys nobody could ask.
        self._keys = KeyRing(config.api_keys_file, config.api_keys_env, config.api_keys_reload_s)
        if self._keys.is_open:
            require_loopback(await asyncio.to_thread(serve_host))
        writer_id = serve.get_replica_context().replica_id.unique_id
        service = await asyncio.to_thread(self.open_service, f"serve-{writer_id}")
        await service.start()
        await prove(service)
        self._service = service
        self._mirroring = asyncio.create_task(mirror(service, Mirror()))
        app = create_app(lambda: self._service, config, owns_service=True, keys=self._keys)
        app.add_middleware(WithoutRequestId)
        return app

    def open_service(self, writer_id: str) -> "SampleService":
        """The service of this replica, not started yet."""
        import torch

        from cong.service import open_service

        if self.config.num_threads:
            torch.set_num_threads(self.config.num_threads)
        return open_service(self.config, writer_id)

    async def check_health(self) -> None:
        """Serve replaces a replica that raises here three times in a row."""
        service = self._service
        if service is None:
            return
        health = service.health()
        if health.status in ("stuck", "broken"):
            cause = service.failure
            raise RuntimeError(
                f"{health.status}: {health.reason}; {health.num_steps} steps are done, {health.num_running} samples "
                "have seats" + (f"; {cause!r}" if cause is not None else "")
            ) from cause

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Change what needs no restart; `user_config` of a Serve file comes in here."""
        service = self._service
        assert service is not None, "Serve reconfigures a replica after it was made"
        light = LightSettings.read(user_config)
        service.adopt(light.over(self.config.service))
        self._keys.reload()
        log.info("settings changed", extra={"settings": light.model_dump(exclude_unset=True)})

    async def describe(self) -> dict[str, Any]:
        """What this replica is, for whoever deployed it."""
        service = self._service
        assert service is not None, "Serve calls a replica after it was made"
        return {
            "info": service.info().model_dump(mode="json"),
            "replica": serve.get_replica_context().replica_id.unique_id,
            "resident_bytes": resident_bytes(),
            "accelerator_bytes": accelerator_bytes(self.config.models.device),
        }


def serve_host() -> str:
    """The address that Serve listens at, whoever deployed what."""
    from ray.serve.context import _get_global_client

    client = _get_global_client()
    assert client is not None, "a replica was made by Serve"
    return client.http_config.host or "every address"


def require_loopback(host: str) -> None:
    """Refuse to answer others without keys. Files are checked when they are read, but Serve itself reads any file.

    Raises:
        ConfigError: Other machines can reach that host.
    """
    if not is_loopback(host):
        raise ConfigError(
            f"Serve listens at {host}, which other machines can reach, and there are no keys; set "
            "service.api_keys_file or service.api_keys_env in the application's args, or http_options.host to 127.0.0.1"
        )


def join_logs() -> None:
    """Let our log lines go where Serve's own go, in the form and from the level that the Serve file asks for."""
    for name in ("cong", "serve"):
        logging.getLogger(name).parent = logging.getLogger("ray.serve")


async def mirror(service: "SampleService", shown: "Mirror") -> None:
    """Show the service's measurements for as long as this process lives."""
    while True:
        try:
            shown.show(service.measurements())
        except Exception:
            # Numbers for people must not end what they are about.
            log.exception("measurements could not be shown")
        await asyncio.sleep(MIRROR_S)


async def prove(service: "SampleService") -> None:
    """Draw two tokens, so that a replica that takes requests has answered one, and has compiled what compiles."""
    from cong.schemas import Prompt, SamplingParameters
    from cong.wire import SampleCall

    num_networks = len(service.info().networks)
    parameters = SamplingParameters(weights=(1.0,) + (0.0,) * (num_networks - 1), max_tokens=2, ignore_eos=True)
    reply = await service.sample(SampleCall(prompts=(Prompt(token_ids=(0,)),), parameters=parameters))
    if reply.usage.completion_tokens != 2:
        raise ConfigError(f"the networks drew {reply.usage.completion_tokens} tokens where 2 were asked for")


def resident_bytes() -> int:
    """Main memory of this process."""
    import resource
    from pathlib import Path

    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def accelerator_bytes(device: str) -> int:
    """Memory of this process on its accelerator; 0 without one."""
    import torch

    return int(torch.cuda.memory_reserved()) if device.startswith("cuda") else 0
