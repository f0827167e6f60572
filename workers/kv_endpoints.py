"""Where an engine's KV events are to be had, from its own description. Pure.

Of the events' endpoint vLLM's publisher *binds* a wildcard (`tcp://*:5557`) and *connects* to anything else, so whoever
wants to hear has to connect or to bind (vllm/distributed/kv_events.py). The replay endpoint it always binds.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

_WILDCARD = re.compile(r"^tcp://(\*|0\.0\.0\.0|\[?::\]?):(\d+)$")


@dataclass(frozen=True, slots=True)
class KvEndpoints:
    """One engine rank's event sockets, as ZeroMQ addresses seen from here."""

    events: str
    binds: bool  # we bind `events` and the engine connects
    replay: str | None
    topic: str


def engine_binds(endpoint: str) -> bool:
    """vLLM's own rule for the events' endpoint."""
    return "*" in endpoint or "::" in endpoint or endpoint.startswith(("ipc://", "inproc://"))


def parse_event_sources(sources: object, engine_address: str) -> dict[int, KvEndpoints]:
    """Endpoints by data-parallel rank, from the answer to GET /kv_event_sources; empty where nothing is published.

    `engine_address` is http://host:port; its host stands in for wildcards. What does not look like vLLM's is left out.
    """
    if not isinstance(sources, Mapping):
        return {}
    host = urlsplit(engine_address).hostname or "127.0.0.1"
    found = {}
    for rank, source in sources.items():
        endpoints = _endpoints(source, f"[{host}]" if ":" in host else host)
        if endpoints is not None and str(rank).isdecimal():
            found[int(rank)] = endpoints
    return found


def _endpoints(source: Any, host: str) -> KvEndpoints | None:
    if not isinstance(source, Mapping) or not source.get("enable_kv_cache_events") or source.get("publisher") != "zmq":
        return None
    events, replay, topic = source.get("endpoint"), source.get("replay_endpoint"), source.get("topic") or ""
    if not isinstance(events, str) or not isinstance(topic, str) or not isinstance(replay, str | None):
        return None
    if events.startswith("inproc://"):
        return None  # inside the engine's process
    binds = not engine_binds(events)
    return KvEndpoints(
        events=events if binds else _seen_from_here(events, host),
        binds=binds,
        replay=None if replay is None else _seen_from_here(replay, host),
        topic=topic,
    )


def _seen_from_here(endpoint: str, host: str) -> str:
    wildcard = _WILDCARD.match(endpoint)
    return f"tcp://{host}:{wildcard[2]}" if wildcard else endpoint
