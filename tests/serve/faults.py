"""Replicas that break on command: a file in the run's folder is the command, and the first that sees it takes it."""

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ray import serve
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cong.config import RunConfig
from serve.app import Application, bind
from serve.deployment import Replica

if TYPE_CHECKING:
    from cong.service import SampleService

BLOCK_ENGINE = "block-engine"
DIE_BEFORE_REPLY = "die-before-reply"
LIMIT_S = 120.0


def take(fault: Path) -> bool:
    """Whether this process is the one that runs into it."""
    with contextlib.suppress(FileNotFoundError):
        fault.rename(fault.with_name(f"{fault.name}.{os.getpid()}"))
        return True
    return False


class DiesBeforeReply:
    """Ends the process when an answer to `/sample` is about to begin: it is stored, and nobody has been told."""

    def __init__(self, app: ASGIApp, fault: Path) -> None:
        self._app = app
        self._fault = fault

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_or_die(message: Message) -> None:
            is_answer = message["type"] == "http.response.start" and scope["path"] == "/sample"
            if is_answer and take(self._fault):
                os.kill(os.getpid(), signal.SIGKILL)
            await send(message)

        await self._app(scope, receive, send_or_die)


class Fragile(Replica):
    """A replica that looks for faults."""

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        app = await super().__serve_build_asgi_app__()
        return DiesBeforeReply(app, faults_of(self.config) / DIE_BEFORE_REPLY)

    def open_service(self, writer_id: str) -> "SampleService":
        from cong.engine import Engine, Event

        fault, step = faults_of(self.config) / BLOCK_ENGINE, Engine.events

        def events(engine: Engine) -> list[Event]:
            until_s = time.monotonic() + LIMIT_S
            if take(fault):
                while time.monotonic() < until_s:
                    time.sleep(0.1)
            return step(engine)

        # This process is a replica and serves nothing else. In the class itself, wherever engines are made.
        setattr(Engine, "events", events)  # noqa: B010
        return super().open_service(writer_id)


class Sick(Replica):
    """A replica that starts and is never well."""

    async def check_health(self) -> None:
        raise RuntimeError("this version is sick")


def faults_of(config: RunConfig) -> Path:
    """Where commands lie."""
    return config.output_dir / "faults"


def build(args: Application) -> serve.Application:
    """The application with replicas that break on command."""
    return bind(Fragile, args)


def build_sick(args: Application) -> serve.Application:
    """The application with replicas that fail their health check."""
    return bind(Sick, args)
