"""The real engine at an even pace: a step lasts as long as one of a large pair, however full the batch is.

What a service does beyond its capacity is its own doing only where the engine neither slows down with every seat that
is taken nor lives on the processors that answer callers. In a Serve file: `import_path: bench.paced:build`.
"""

import time
from typing import TYPE_CHECKING

from ray import serve

from serve.app import Application, bind
from serve.deployment import Replica

if TYPE_CHECKING:
    from cong.service import SampleService


class Paced(Replica):
    """A replica whose engine takes `PACED_STEP_S` for every step that its own work does not fill."""

    def open_service(self, writer_id: str) -> "SampleService":
        """As usual, with the steps of this process stretched."""
        from bench.workload import PACED_STEP_S
        from cong.engine import Engine, Event

        step = Engine.events

        def events(engine: Engine) -> list[Event]:
            until_s = time.monotonic() + PACED_STEP_S
            happened = step(engine)
            time.sleep(max(0.0, until_s - time.monotonic()))
            return happened

        # This process is a replica and serves nothing else.
        setattr(Engine, "events", events)  # noqa: B010
        return super().open_service(writer_id)


def build(args: Application) -> serve.Application:
    """The application with replicas of even pace."""
    return bind(Paced, args)
