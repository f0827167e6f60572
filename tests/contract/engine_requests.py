"""Requests that every engine understands, for the contract tests."""

import time
import uuid
from collections.abc import Callable
from typing import Any, Protocol

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


class Engine(Protocol):
    """What the fixture `engine` hands out."""

    address: str
    model: str
    kv_events_endpoint: str | None
    kv_replay_endpoint: str | None
    is_real: bool


def completion(engine: Engine, **fields: Any) -> dict[str, Any]:
    """A body for /v1/completions: four greedy tokens, unless `fields` say otherwise."""
    return {"model": engine.model, "prompt": "Once upon a time", "max_tokens": 4, "temperature": 0, **fields}


def chat(engine: Engine, **fields: Any) -> dict[str, Any]:
    """The same for /v1/chat/completions."""
    messages = [{"role": "user", "content": "Say something."}]
    return {"model": engine.model, "messages": messages, "max_tokens": 4, "temperature": 0, **fields}


def body_for(engine: Engine, route: str, **fields: Any) -> dict[str, Any]:
    """The same for either route."""
    return chat(engine, **fields) if route == CHAT else completion(engine, **fields)


def long_prompt() -> str:
    """More than three blocks, and no block of it seen before."""
    return uuid.uuid4().hex + " hello dear friend" * 40


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
    """Look until `condition` holds."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"waited {timeout_s:g} s in vain for: {what}"
        time.sleep(0.1)
