"""Endpoints from an engine's own description."""

from typing import Any

import pytest

from workers.fake.openapi import kv_event_sources
from workers.fake.settings import FakeSettings
from workers.kv_endpoints import KvEndpoints, engine_binds, parse_event_sources

ENGINE = "http://10.0.0.7:8000"


def source(endpoint: str, replay: str | None = None, **fields: Any) -> dict[str, Any]:
    known = {"enable_kv_cache_events": True, "publisher": "zmq", "topic": "kv"}
    return {**known, "endpoint": endpoint, "replay_endpoint": replay, **fields}


def test_a_wildcard_is_the_engine_s_host_and_the_engine_binds() -> None:
    found = parse_event_sources({"0": source("tcp://*:5557", "tcp://*:5558")}, ENGINE)
    assert found == {0: KvEndpoints("tcp://10.0.0.7:5557", binds=False, replay="tcp://10.0.0.7:5558", topic="kv")}


def test_a_concrete_address_is_ours_to_bind_while_the_replay_is_the_engine_s() -> None:
    found = parse_event_sources({"0": source("tcp://10.0.0.1:5557", "tcp://0.0.0.0:5558")}, ENGINE)
    assert found == {0: KvEndpoints("tcp://10.0.0.1:5557", binds=True, replay="tcp://10.0.0.7:5558", topic="kv")}


def test_each_rank_has_its_own() -> None:
    found = parse_event_sources(
        {"0": source("tcp://*:5557"), "1": source("tcp://[::]:5558", topic="")}, "http://[::1]:1"
    )
    assert found[0].events == "tcp://[::1]:5557"
    assert found[1] == KvEndpoints("tcp://[::1]:5558", binds=False, replay=None, topic="")


def test_the_fake_describes_itself_like_vllm() -> None:
    settings = FakeSettings(kv_events_endpoint="ipc:///tmp/a", kv_replay_endpoint="ipc:///tmp/b")
    found = parse_event_sources(kv_event_sources(settings, topic="kv", buffer_steps=5), ENGINE)
    assert found == {0: KvEndpoints("ipc:///tmp/a", binds=False, replay="ipc:///tmp/b", topic="kv")}


@pytest.mark.parametrize(
    "sources",
    [
        None,
        [],
        {},
        {"0": None},
        {"zero": source("tcp://*:1")},
        {"0": source("tcp://*:1", enable_kv_cache_events=False)},
        {"0": source("tcp://*:1", publisher="null")},
        {"0": source("inproc://cache")},
        {"0": {"enable_kv_cache_events": True, "publisher": "zmq"}},
        {"0": source("tcp://*:1", replay_endpoint=7)},
    ],
)
def test_anything_else_is_no_source(sources: object) -> None:
    assert parse_event_sources(sources, ENGINE) == {}


@pytest.mark.parametrize("endpoint", ["tcp://*:1", "tcp://[::]:1", "ipc:///tmp/x", "inproc://x", "tcp://127.0.0.1:1"])
def test_the_rule_is_vllm_s(endpoint: str) -> None:
    """vllm/distributed/kv_events.py, ZmqEventPublisher._is_bind_endpoint."""
    assert engine_binds(endpoint) == (endpoint != "tcp://127.0.0.1:1")
