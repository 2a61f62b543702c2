"""The HTTP application around a service. Knows no Ray: whoever has a service can put it on any ASGI server."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.responses import Response

from cong import __version__
from cong.config.service import ServiceConfig
from cong.errors import CongError
from cong.service import KeyRing
from serve.http import openai, operations, sampling
from serve.http.auth import Authentication
from serve.http.body import BodyLimit
from serve.http.context import GONE, RequestContext
from serve.http.errors import ErrorResponse, problem_of
from serve.http.leaving import CallerGone
from serve.http.provider import ServiceProvider, request_id_of
from serve.http.replies import EVENT_SCHEMAS
from serve.http.room import Room
from serve.http.tracing import Tracing

log = logging.getLogger(__name__)

DESCRIPTION = "Contrastive samples of a weak pair of models, their log-probs, and an OpenAI-compatible face of both."


def create_app(
    provider: ServiceProvider, config: ServiceConfig, *, owns_service: bool = False, keys: KeyRing | None = None
) -> FastAPI:
    """The application.

    `provider` gives the service, or None while there is none yet. With `owns_service` the service is started and
    closed with the application; otherwise that is left to whoever made it.
    """

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        service = provider() if owns_service else None
        if service is not None:
            await service.start()
        try:
            yield
        finally:
            if service is not None:
                await service.close()

    # A path with one slash more is none of ours: it would be sent on to plain HTTP, whatever the edge speaks.
    app = FastAPI(
        title="cong",
        version=__version__,
        description=DESCRIPTION,
        lifespan=life,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.provider = provider
    for router in (sampling.router, openai.router, operations.router):
        app.include_router(router)
    for error in (CongError, RequestValidationError, HTTPException):
        app.add_exception_handler(error, _tell)
    app.add_exception_handler(CallerGone, _note_gone)
    # The last one added is the outermost: the body is read only of those who may ask.
    app.add_middleware(BodyLimit, max_bytes=config.max_body_bytes, timeout_s=config.body_timeout_s)
    app.add_middleware(Room, provider=provider)
    ring = keys or KeyRing(config.api_keys_file, config.api_keys_env, config.api_keys_reload_s)
    app.add_middleware(Authentication, keys=ring)
    if config.has_tracing:
        app.add_middleware(Tracing)
    app.add_middleware(RequestContext, provider=provider)
    app.openapi = lambda: _described(app, needs_key=not ring.is_open)  # type: ignore[method-assign]
    return app


async def _tell(request: Request, error: Exception) -> Response:
    problem = problem_of(error)
    if problem.status >= 500 and problem.message != str(error):
        # The caller gets fixed words; the cause is for whoever keeps the log.
        log.error("%s", error, extra={"request_id": request_id_of(request)})
    return ErrorResponse(problem, request_id_of(request))


async def _note_gone(request: Request, error: Exception) -> Response:
    request.scope["state"]["error_code"] = "caller_gone"
    return Response(status_code=GONE)


def _described(app: FastAPI, needs_key: bool) -> dict[str, Any]:
    if not app.openapi_schema:
        app.openapi_schema = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        schemas = app.openapi_schema["components"]["schemas"]
        schemas.update({name: schema for name, schema in EVENT_SCHEMAS.items() if name not in schemas})
        if needs_key:
            app.openapi_schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            app.openapi_schema["security"] = [{"key": []}]
            app.openapi_schema["paths"]["/health"]["get"]["security"] = []
    return app.openapi_schema
