"""Envoy's external processing messages, as far as an endpoint picker reads and writes them. Pure.

Sources: envoy/service/ext_proc/v3/external_processor.proto of Envoy 1.40; Kubernetes Gateway API Inference Extension,
proposal 004, Endpoint Picker Protocol 1.0.
"""

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import urlsplit

from router._generated.envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from router.errors import ApiError

DESTINATION = "x-gateway-destination-endpoint"
_SERVED = "x-gateway-destination-endpoint-served"
_SUBSET = "x-gateway-destination-endpoint-subset"
_NAMESPACE = "envoy.lb"
_SUBSET_NAMESPACE = "envoy.lb.subset_hint"
_MOST_KNOWN = 4096


def read_headers(headers: pb.HeaderMap) -> dict[str, str]:
    """By name, in lower case as Envoy has them; of several with one name the first."""
    found: dict[str, str] = {}
    for header in headers.headers:
        found.setdefault(header.key, header.raw_value.decode("latin-1") if header.raw_value else header.value)
    return found


def subset_hint(metadata: pb.Metadata) -> frozenset[str] | None:
    """The endpoints, ip:port, that may be picked; None: any."""
    if _SUBSET_NAMESPACE not in metadata.filter_metadata:  # a look-up would add it
        return None
    value = metadata.filter_metadata[_SUBSET_NAMESPACE].fields.get(_SUBSET)
    if value is None:
        return None
    listed = [item.string_value for item in value.list_value.values]
    return frozenset(name.strip() for name in (listed or value.string_value.split(",")) if name.strip())


def served_by(metadata: pb.Metadata) -> str | None:
    """The endpoint that answered, where the gateway says it."""
    if _NAMESPACE not in metadata.filter_metadata:
        return None
    value = metadata.filter_metadata[_NAMESPACE].fields.get(_SERVED)
    return value.string_value or None if value is not None else None


def endpoint_of(address: str) -> str | None:
    """A worker's address, http://ip:port, as ip:port; None where it has a name: gateways connect to addresses only."""
    parts = urlsplit(address)
    try:
        host = ipaddress.ip_address(parts.hostname or "")
    except ValueError:
        return None
    name = f"[{host}]" if host.version == 6 else str(host)
    return f"{name}:{parts.port or (443 if parts.scheme == 'https' else 80)}"


class Endpoints:
    """`endpoint_of`, remembered: a subset hint asks it of a whole fleet."""

    def __init__(self) -> None:
        self._known: dict[str, str | None] = {}

    def of(self, address: str) -> str | None:
        """As `endpoint_of`."""
        if address not in self._known:
            if len(self._known) >= _MOST_KNOWN:  # workers come and go, and ports with them
                self._known.clear()
            self._known[address] = endpoint_of(address)
        return self._known[address]


def destination(
    endpoints: Sequence[str], headers: Mapping[str, str], removed: Iterable[str], *, for_body: bool
) -> pb.ProcessingResponse:
    """Where a request goes, the first that answers of several: in a header and, the same, in dynamic metadata.

    `headers` are set for the engine, `removed` taken out. `for_body`: in answer to the whole body, else to the headers.
    """
    where = ",".join(endpoints)
    common = pb.CommonResponse(
        header_mutation=mutation({DESTINATION: where, **headers}, removed), clear_route_cache=True
    )
    message = (
        pb.ProcessingResponse(request_body=pb.BodyResponse(response=common))
        if for_body
        else pb.ProcessingResponse(request_headers=pb.HeadersResponse(response=common))
    )
    message.dynamic_metadata.get_or_create_struct(_NAMESPACE)[DESTINATION] = where
    return message


def immediate(status: int, body: bytes, headers: Mapping[str, str], details: str) -> pb.ProcessingResponse:
    """An answer of our own to the client, in JSON."""
    return pb.ProcessingResponse(
        immediate_response=pb.ImmediateResponse(
            status=pb.HttpStatus(code=status),
            headers=mutation({"content-type": "application/json", **headers}),
            body=body,
            details=details,
        )
    )


def refusal(error: ApiError, headers: Mapping[str, str]) -> pb.ProcessingResponse:
    """An error, as over HTTP."""
    named = {name.lower(): value for name, value in error.headers().items()}
    return immediate(error.status, error.body(), {**named, **headers}, error.code)


def mutation(headers: Mapping[str, str], removed: Iterable[str] = ()) -> pb.HeaderMutation:
    """Set these headers, whatever they were, and take out those."""
    return pb.HeaderMutation(
        set_headers=[
            pb.HeaderValueOption(
                header=pb.HeaderValue(key=name, raw_value=value.encode("latin-1", "replace")),
                append_action=pb.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
            )
            for name, value in headers.items()
        ],
        remove_headers=removed,
    )


def piece(body: bytes, *, is_last: bool) -> pb.BodyResponse:
    """A piece of a body, given back unchanged in FULL_DUPLEX_STREAMED."""
    streamed = pb.StreamedBodyResponse(body=body, end_of_stream=is_last)
    return pb.BodyResponse(response=pb.CommonResponse(body_mutation=pb.BodyMutation(streamed_response=streamed)))
