"""Fixtures shared by all tests. The real cluster is started once a session, when the first test asks for it."""

import json
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.otlp_receiver import Received, otlp_receiver
from tests.stack import Stack, running_stack


@pytest.fixture(scope="session")
def traces() -> Iterator[Received]:
    """Where the session's cluster sends its traces."""
    with otlp_receiver() as received:
        yield received


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory, traces: Received) -> Iterator[Stack]:
    """The real thing: one prefill and one decode vLLM in float32, a router, Redis, Ray. About a minute to start."""
    config = {
        "engine": {
            "host": "127.0.0.2",  # in a pod it is not loopback's usual address either
            "dtype": "float32",
            "max_model_len_tokens": 2304,
            "kv_lease_s": 20,
            "extra_args": [
                *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
                "--trust-request-chat-template",
            ],
        },
        # What is tested on this cluster is the hand-off; an idle decode worker would do its own prefill.
        "router": {"hand_off": "always"},
        # A CPU that tests share makes ten tokens a second at best.
        "slo": {"classes": {"chat": {"ttft_s": 200, "tpot_s": 20, "deadline_s": 300}}, "default_class": "chat"},
        "telemetry": {"otlp_endpoint": traces.endpoint},
    }
    with running_stack(tmp_path_factory.mktemp("cluster") / "headrace.yaml", config) as stack:
        stack.wait_for_ready()
        yield stack


@dataclass(frozen=True)
class RealEngine:
    """What the contract tests need to know of an engine."""

    address: str
    model: str
    kv_events_endpoint: str | None
    kv_replay_endpoint: str | None
    is_real: bool = True


@pytest.fixture(scope="session")
def real_engine(cluster: Stack) -> RealEngine:
    """The cluster's decode engine, asked directly."""
    address = cluster.workers("decode")[0]["address"]
    with urllib.request.urlopen(f"{address}/kv_event_sources", timeout=30) as response:
        sources = json.load(response)
    return RealEngine(address, cluster.model, *_endpoints(sources))


def _endpoints(sources: object) -> tuple[str | None, str | None]:
    text = json.dumps(sources)
    found = json.loads(text)
    while isinstance(found, dict) and "endpoint" not in found:
        found = next(iter(found.values()))
        if isinstance(found, list):
            found = found[0]
    assert isinstance(found, dict), text
    return found.get("endpoint"), found.get("replay_endpoint")
