"""A real OTLP trace receiver, over gRPC and over HTTP, that keeps what it gets."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from gzip import decompress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass
class Received:
    """Spans so far, with the service that sent each."""

    endpoint: str
    spans: list[tuple[str, Span]] = field(default_factory=list)

    def of_trace(self, trace_id: str) -> list[tuple[str, Span]]:
        """Spans of one trace, by its hexadecimal id."""
        return [(service, span) for service, span in list(self.spans) if span.trace_id.hex() == trace_id]

    def add(self, request: trace_service_pb2.ExportTraceServiceRequest) -> None:
        """Keep what one message brought."""
        for resource_spans in request.resource_spans:
            attributes = {item.key: item.value.string_value for item in resource_spans.resource.attributes}
            for scope_spans in resource_spans.scope_spans:
                self.spans += [(attributes.get("service.name", ""), span) for span in scope_spans.spans]


def attributes_of(span: Span) -> dict[str, str | int | float | bool]:
    """Of a span, as they were set."""
    return {item.key: getattr(item.value, item.value.WhichOneof("value") or "string_value") for item in span.attributes}


class _Servicer(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self, received: Received) -> None:
        self._received = received

    def Export(  # noqa: N802  the protocol's name
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        self._received.add(request)
        return trace_service_pb2.ExportTraceServiceResponse()


@contextmanager
def otlp_receiver() -> Iterator[Received]:
    """Receive over gRPC on a free loopback port."""
    server = grpc.server(ThreadPoolExecutor(max_workers=2))
    port = server.add_insecure_port("127.0.0.1:0")
    received = Received(f"http://127.0.0.1:{port}")
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(_Servicer(received), server)
    server.start()
    try:
        yield received
    finally:
        server.stop(grace=None).wait()


@contextmanager
def otlp_http_receiver() -> Iterator[Received]:
    """Receive protobuf over HTTP on a free loopback port, at the path that OTLP gives traces."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = decompress(body)
            is_traces = self.path == "/v1/traces" and self.headers["content-type"] == "application/x-protobuf"
            if is_traces:
                received.add(trace_service_pb2.ExportTraceServiceRequest.FromString(body))
            self.send_response(200 if is_traces else 404)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    received = Received(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
