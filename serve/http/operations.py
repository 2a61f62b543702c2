"""What operators and clients look at: health, facts, measurements."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from cong.wire import HealthReply, InfoReply
from serve.http.metrics import CONTENT_TYPE, metrics_page
from serve.http.provider import ServiceProvider, service_of
from serve.http.replies import READ_ERRORS, json_reply

router = APIRouter()


@router.get(
    "/health",
    response_model=HealthReply,
    responses={503: {"model": HealthReply, "description": "Another process should be asked; `reason` says why"}},
    summary="Whether it takes requests",
)
async def health(request: Request) -> Response:
    """200 while it takes every request, else 503. Needs no key."""
    provider: ServiceProvider = request.app.state.provider
    service = provider()
    reply = HealthReply(status="starting") if service is None else service.health()
    return Response(reply.model_dump_json(), 200 if reply.status == "ok" else 503, media_type="application/json")


@router.get("/info", response_model=InfoReply, responses=READ_ERRORS, summary="What it is")
async def info(request: Request) -> Response:
    """Networks, defaults, limits and methods of this deployment."""
    return json_reply(request, service_of(request).info())


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Prometheus text"},
        **READ_ERRORS,
    },
    summary="What it measures",
)
async def metrics(request: Request) -> Response:
    """Measurements of this process in Prometheus' text format."""
    return Response(metrics_page(service_of(request)), media_type=CONTENT_TYPE)
