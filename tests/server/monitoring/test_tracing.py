"""Spans of a round: which there are, how they nest, and that they name nobody."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from mos_common.errors import RequestError
from mos_server import tracing
from mos_server.round.exchange import Unusable
from mos_server.state.records import HELD_BACK, PUBLISHED
from server.round.conftest import Federation

EXPORTS = "from mos_server.tracing import exporting, span\nwith exporting(), span('round', round='round-001'): pass"


@pytest.fixture(scope="module")
def provider() -> TracerProvider:
    """OpenTelemetry takes one provider for a process."""
    provider = TracerProvider()
    trace.set_tracer_provider(provider)
    return provider


@pytest.fixture
def spans(provider: TracerProvider) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return exporter


def paths(spans: InMemorySpanExporter) -> list[str]:
    """Return each span's name behind those of the spans around it, earliest first."""
    finished = sorted(spans.get_finished_spans(), key=lambda span: span.start_time)
    by_id = {span.context.span_id: span for span in finished}

    def path(span: ReadableSpan) -> str:
        return f"{path(by_id[span.parent.span_id])}/{span.name}" if span.parent else span.name

    return [path(span) for span in finished]


def test_a_round_is_one_trace_of_exchange_recording_solving_and_publishing(
    federation: Federation, spans: InMemorySpanExporter
):
    name = federation.run(federation.machine("alice"), federation.machine("bob"), wait=2)
    assert federation.status(name) == PUBLISHED
    group = ["round/fusion/recording", "round/fusion/solving"]
    exchange = "round/exchange"
    assert paths(spans) == ["round", exchange, "round/fusion", *3 * group, exchange, "round/publishing"]
    finished = spans.get_finished_spans()
    assert len({span.context.trace_id for span in finished}) == 1
    (whole,) = (span for span in finished if span.name == "round")
    assert whole.attributes == {"mos.round": name}
    assert [span.attributes["mos.kind"] for span in finished if span.name == "exchange"] == ["concepts", "scores"]


def test_spans_name_neither_people_nor_concepts(federation: Federation, spans: InMemorySpanExporter):
    federation.run(federation.machine("alice"), federation.machine("bob", Unusable("an odd <secret>")), wait=1)
    told = " ".join(span.to_json() for span in spans.get_finished_spans())
    assert not [word for word in ("alice", "bob", "secret", str(federation.state.path)) if word in told]


def test_a_round_that_is_held_back_has_a_span_of_publishing_too(federation: Federation, spans: InMemorySpanExporter):
    name = federation.run(federation.machine("alice"), min_identity=0.9)
    assert federation.status(name) == HELD_BACK
    assert paths(spans)[-1] == "round/publishing"


def test_spans_arrive_at_the_collector_that_the_environment_names():
    received = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            body = gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body
            received.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        export(f"http://127.0.0.1:{collector.server_port}")
        collector.shutdown()
    (resource,) = received[0].resource_spans
    named = {each.key: each.value.string_value for each in resource.resource.attributes}
    assert named["service.name"] == "mos-server"
    assert [span.name for scope in resource.scope_spans for span in scope.spans] == ["round"]


def test_a_collector_that_is_away_costs_the_spans_and_nothing_else():
    export("http://127.0.0.1:9")


def export(endpoint: str) -> None:
    environment = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_TIMEOUT": "2"}
    subprocess.run([sys.executable, "-c", EXPORTS], env=environment, check=True, timeout=60, capture_output=True)


def test_a_collector_without_opentelemetry_is_an_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    tracing.check_installed()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    tracing.check_installed()
    monkeypatch.setattr(tracing, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"pip install 'federated-mix-of-show\[traces\]'"):
        tracing.check_installed()
