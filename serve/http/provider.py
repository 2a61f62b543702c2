"""How the application gets at its service: asked anew for each request, because it may come after the application."""

from collections.abc import Callable

from starlette.requests import Request

from cong.errors import Unavailable
from cong.service import SampleService

ServiceProvider = Callable[[], SampleService | None]
"""The service, or None while it is being made."""


def service_of(request: Request) -> SampleService:
    """The service behind a request."""
    provider: ServiceProvider = request.app.state.provider
    service = provider()
    if service is None:
        raise Unavailable("the service starts; try again in a moment")
    return service


def request_id_of(request: Request) -> str:
    """The id that the outermost layer gave."""
    return str(request.scope["state"]["request_id"])


def caller_of(request: Request) -> str:
    """The name of the key that the request came with; empty where none is needed."""
    return str(request.scope["state"]["caller"])
