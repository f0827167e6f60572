"""A real OTLP/gRPC trace receiver that keeps what it gets."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

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


class _Servicer(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self, spans: list[tuple[str, Span]]) -> None:
        self._spans = spans

    def Export(  # noqa: N802  the protocol's name
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        for resource_spans in request.resource_spans:
            attributes = {item.key: item.value.string_value for item in resource_spans.resource.attributes}
            for scope_spans in resource_spans.scope_spans:
                self._spans += [(attributes.get("service.name", ""), span) for span in scope_spans.spans]
        return trace_service_pb2.ExportTraceServiceResponse()


@contextmanager
def otlp_receiver() -> Iterator[Received]:
    """Receive on a free loopback port."""
    server = grpc.server(ThreadPoolExecutor(max_workers=2))
    port = server.add_insecure_port("127.0.0.1:0")
    received = Received(f"http://127.0.0.1:{port}")
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(_Servicer(received.spans), server)
    server.start()
    try:
        yield received
    finally:
        server.stop(grace=None).wait()
