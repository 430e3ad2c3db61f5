"""OpenTelemetry traces of a round, if the extra `traces` is installed and a collector is named.

    round            one round, as far as one process runs it
      exchange       questions to participants, and their answers: concepts, then scores
      fusion         the candidate is made
        recording    what the layers of one group read
        solving      the equations of one group of layers
      publishing     the candidate is signed and published, or held back

Spans carry numbers and the name of the round; names of people and of concepts stay here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from mos_common.errors import RequestError
from mos_common.release import RELEASE

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
"""The variables that OpenTelemetry itself reads; without one of them nothing is exported."""

_NAME = "mos_server"


def wanted() -> bool:
    """Return whether the environment names a collector of traces."""
    return any(os.environ.get(name) for name in ENDPOINTS)


def check_installed() -> None:
    """Check that what the environment asks for can be done.

    Raises:
        RequestError: a collector is named and the extra is not installed.

    """
    if wanted() and (find_spec("opentelemetry") is None or find_spec("opentelemetry.exporter") is None):
        raise RequestError(
            f"{' or '.join(ENDPOINTS)} is set, and OpenTelemetry is not installed: "
            "pip install 'federated-mix-of-show[traces]', or unset it"
        )


@contextmanager
def exporting() -> Iterator[None]:
    """Export the spans of the block to the collector that the environment names, if it names one.

    A collector that does not answer costs the spans, never the round.

    Raises:
        RequestError: as `check_installed`.

    """
    if not wanted():
        yield
        return
    check_installed()
    from opentelemetry import trace

    provider = _provider()
    trace.set_tracer_provider(provider)
    try:
        yield
    finally:
        provider.shutdown()


@contextmanager
def span(name: str, **attributes: str | int | float) -> Iterator[None]:
    """Trace the block as a span; its attributes are named `mos.…`. An error is recorded in it."""
    try:
        from opentelemetry import trace
    except ImportError:
        yield
        return
    described = {f"mos.{key}": value for key, value in attributes.items()}
    with trace.get_tracer(_NAME, RELEASE).start_as_current_span(name, attributes=described):
        yield


def _provider() -> TracerProvider:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = {"service.name": os.environ.get("OTEL_SERVICE_NAME") or "mos-server", "service.version": RELEASE}
    provider = TracerProvider(resource=Resource.create(named))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
