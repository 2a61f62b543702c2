"""The HTTP application: routes, keys, limits, errors. Knows FastAPI and the service; no Ray and no torch."""

from serve.http.app import create_app
from serve.http.provider import ServiceProvider

__all__ = ["ServiceProvider", "create_app"]
