"""Envoy's messages, read and written."""

import pytest
from google.protobuf.json_format import MessageToDict, ParseDict
from hypothesis import given
from hypothesis import strategies as st

from router._generated.envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from router.errors import ApiError
from router.gateway.ext_proc import (
    Endpoints,
    destination,
    endpoint_of,
    piece,
    read_headers,
    refusal,
    served_by,
    subset_hint,
)


def metadata(value: object) -> pb.Metadata:
    return ParseDict({"filterMetadata": value}, pb.Metadata())


@pytest.mark.parametrize(
    ("address", "endpoint"),
    [
        ("http://10.0.0.1:8000", "10.0.0.1:8000"),
        ("http://10.0.0.1", "10.0.0.1:80"),
        ("https://10.0.0.1", "10.0.0.1:443"),
        ("http://[2001:db8::0:1]:8000", "[2001:db8::1]:8000"),
        ("http://engine.local:8000", None),
        ("", None),
    ],
)
def test_endpoints_are_addresses(address: str, endpoint: str | None) -> None:
    assert endpoint_of(address) == endpoint
    endpoints = Endpoints()
    assert [endpoints.of(address), endpoints.of(address)] == [endpoint, endpoint]


def test_headers_have_either_form_and_the_first_of_a_name_counts() -> None:
    headers = pb.HeaderMap(
        headers=[
            pb.HeaderValue(key=":path", raw_value=b"/v1/completions"),
            pb.HeaderValue(key="x-request-id", value="one"),
            pb.HeaderValue(key="x-request-id", value="two"),
            pb.HeaderValue(key="x-odd", raw_value=b"\xff"),
        ]
    )
    assert read_headers(headers) == {":path": "/v1/completions", "x-request-id": "one", "x-odd": "\xff"}


@pytest.mark.parametrize(
    ("given_metadata", "allowed"),
    [
        ({}, None),
        ({"envoy.lb": {"x-gateway-destination-endpoint-subset": ["1.2.3.4:5"]}}, None),
        ({"envoy.lb.subset_hint": {"other": 1}}, None),
        ({"envoy.lb.subset_hint": {"x-gateway-destination-endpoint-subset": []}}, frozenset()),
        ({"envoy.lb.subset_hint": {"x-gateway-destination-endpoint-subset": 7}}, frozenset()),
        (
            {"envoy.lb.subset_hint": {"x-gateway-destination-endpoint-subset": ["1.2.3.4:5", " 1.2.3.4:6"]}},
            frozenset({"1.2.3.4:5", "1.2.3.4:6"}),
        ),
        (
            {"envoy.lb.subset_hint": {"x-gateway-destination-endpoint-subset": "1.2.3.4:5, 1.2.3.4:6"}},
            frozenset({"1.2.3.4:5", "1.2.3.4:6"}),
        ),
    ],
)
def test_the_subset_hint(given_metadata: object, allowed: frozenset[str] | None) -> None:
    assert subset_hint(metadata(given_metadata)) == allowed


def test_who_served() -> None:
    key = "x-gateway-destination-endpoint-served"
    assert served_by(metadata({"envoy.lb": {key: "1.2.3.4:5"}})) == "1.2.3.4:5"
    assert served_by(metadata({"envoy.lb": {}})) is None
    assert served_by(metadata({})) is None


@pytest.mark.parametrize("for_body", [True, False])
def test_the_destination_is_the_same_in_header_and_metadata(for_body: bool) -> None:
    message = destination(["10.0.0.1:80", "10.0.0.2:80"], {"x-a": "b"}, ["x-c"], for_body=for_body)
    assert message.WhichOneof("response") == ("request_body" if for_body else "request_headers")
    common = (message.request_body if for_body else message.request_headers).response
    headers = {option.header.key: option.header.raw_value.decode() for option in common.header_mutation.set_headers}
    assert headers == {"x-gateway-destination-endpoint": "10.0.0.1:80,10.0.0.2:80", "x-a": "b"}
    assert list(common.header_mutation.remove_headers) == ["x-c"]
    expected = {"envoy.lb": {"x-gateway-destination-endpoint": "10.0.0.1:80,10.0.0.2:80"}}
    assert MessageToDict(message.dynamic_metadata) == expected


def test_a_refusal_is_the_error_that_http_clients_get() -> None:
    error = ApiError(429, "rate_limit_error", "kv_full", "no room", retry_after_s=2.1)
    answer = refusal(error, {"x-request-id": "a"}).immediate_response
    headers = {option.header.key: option.header.raw_value.decode() for option in answer.headers.set_headers}
    assert (answer.status.code, answer.body, answer.details) == (429, error.body(), "kv_full")
    assert headers == {"content-type": "application/json", "retry-after": "3", "x-request-id": "a"}


@given(st.binary(), st.booleans())
def test_a_piece_comes_back_as_it_was(body: bytes, is_last: bool) -> None:
    streamed = piece(body, is_last=is_last).response.body_mutation.streamed_response
    assert (streamed.body, streamed.end_of_stream) == (body, is_last)
