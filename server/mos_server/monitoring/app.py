"""The loopback port for machines: `/metrics`, `/healthz`, `/readyz`.

Nothing on it names a secret. It needs no password, since it is on loopback; requests under any
other name than the machine's own are refused, so that no page in a browser here can read it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from mos_server.monitoring.health import Health
from mos_server.network.loopback import at_home, listen_on, serving


def monitoring_app(registry: CollectorRegistry, health: Health) -> Starlette:
    """Return the application of the port."""

    async def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(await run_in_threadpool(encode, registry), headers={"content-type": content_type})

    async def healthz(request: Request) -> Response:
        return PlainTextResponse("alive\n")

    async def readyz(request: Request) -> Response:
        why = await run_in_threadpool(health.why_not_ready)
        return JSONResponse({"ready": not why, "why": why}, status_code=503 if why else 200)

    routes = [Route("/metrics", metrics), Route("/healthz", healthz), Route("/readyz", readyz)]
    return Starlette(routes=routes, middleware=[at_home()])


@contextmanager
def monitoring_port(port: int, registry: CollectorRegistry, health: Health) -> Iterator[int]:
    """Answer on a loopback port within the block, and yield its number; 0 is any free one.

    Raises:
        NetworkError: the port is in use.

    """
    listener = listen_on(port, "--metrics-port")
    with serving(monitoring_app(registry, health), listener):
        yield int(listener.getsockname()[1])
