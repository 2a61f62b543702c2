"""The HTTP application: routes, keys, limits, errors. Knows FastAPI and the service; no Ray and no torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serve.http.app import create_app
    from serve.http.provider import ServiceProvider

__all__ = ["ServiceProvider", "create_app"]

_HOMES = {"ServiceProvider": "serve.http.provider", "create_app": "serve.http.app"}


def __getattr__(name: str) -> Any:
    # Imported when it is asked for, so that `python -m serve.http` without FastAPI tells in one line what is missing.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
