"""What Headrace relies on in an engine's KV events. The fake and a real vLLM pass the same tests."""

from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest
import zmq

from tests.contract.engine_requests import COMPLETIONS, Engine, completion, long_prompt, wait_for
from workers.engine_metrics import parse_metrics

_END_OF_REPLAY = -1


@pytest.fixture
def zmq_context() -> Iterator["zmq.Context[zmq.Socket[bytes]]"]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield context
    context.destroy(linger=0)


def _reachable(endpoint: str) -> str:
    return endpoint.replace("*", "127.0.0.1")


@pytest.fixture
def subscriber(engine: Engine, zmq_context: "zmq.Context[zmq.Socket[bytes]]") -> Iterator["zmq.Socket[bytes]"]:
    """Hears the engine's events."""
    if engine.kv_events_endpoint is None:
        pytest.skip("this engine publishes nothing")
    with zmq_context.socket(zmq.SUB) as socket:
        socket.setsockopt(zmq.SUBSCRIBE, b"kv")
        # vLLM binds its publisher only to a wildcard; with any other address it connects, and we have to bind.
        if "*" in engine.kv_events_endpoint:
            socket.connect(_reachable(engine.kv_events_endpoint))
        else:
            try:
                socket.bind(engine.kv_events_endpoint)
            except zmq.ZMQError as error:
                if error.errno == zmq.EADDRINUSE and engine.is_real:
                    pytest.skip("this engine's events already have their listener")
                raise
        yield socket


def _receive(socket: "zmq.Socket[bytes]", timeout_s: float) -> list[bytes] | None:
    return socket.recv_multipart() if socket.poll(int(timeout_s * 1000)) else None


def _stored(payloads: list[bytes], tokens: list[int]) -> list[dict[str, Any]]:
    """The BlockStored events that are a chain over the beginning of `tokens`."""
    chain: list[dict[str, Any]] = []
    position = 0
    for payload in payloads:
        _, events, dp_rank = msgspec.msgpack.decode(payload)
        assert dp_rank == 0
        for event in events:
            if event["type"] != "BlockStored":
                continue
            parent = chain[-1]["block_hashes"][-1] if chain else None
            ids = event["token_ids"]
            if event["parent_block_hash"] == parent and ids == tokens[position : position + len(ids)]:
                chain.append(event)
                position += len(ids)
    return chain


def _tokens_of(engine: Engine, http: httpx.Client, prompt: str) -> list[int]:
    return list(http.post("/tokenize", json={"model": engine.model, "prompt": prompt}).json()["tokens"])


def _replay(context: "zmq.Context[zmq.Socket[bytes]]", endpoint: str, start: int) -> list[tuple[int, bytes]]:
    with context.socket(zmq.DEALER) as dealer:
        dealer.connect(_reachable(endpoint))
        dealer.send_multipart([b"", start.to_bytes(8, "big")])
        messages: list[tuple[int, bytes]] = []
        while True:
            frames = _receive(dealer, 20.0)
            assert frames is not None, "the replay does not end"
            empty, topic, seq_bytes, payload = frames
            assert empty == b""
            seq = int.from_bytes(seq_bytes, "big", signed=True)
            if seq == _END_OF_REPLAY:
                return messages
            assert topic == b"kv"
            messages.append((seq, payload))


def test_kv_events_describe_the_prompt(
    engine: Engine,
    http: httpx.Client,
    zmq_context: "zmq.Context[zmq.Socket[bytes]]",
    subscriber: "zmq.Socket[bytes]",
) -> None:
    live: list[tuple[int, bytes]] = []

    def collect(timeout_s: float) -> bool:
        while (frames := _receive(subscriber, timeout_s)) is not None:
            topic, seq, payload = frames
            assert topic == b"kv"
            live.append((int.from_bytes(seq, "big"), payload))
            timeout_s = 0.0
        return bool(live)

    def warm_up() -> bool:
        http.post(COMPLETIONS, json=completion(engine, prompt=long_prompt(), max_tokens=1))
        return collect(0.5)

    wait_for(warm_up, "the first event", 60.0)  # a subscription takes a moment to reach the publisher
    prompt = long_prompt()
    tokens = _tokens_of(engine, http, prompt)
    body = completion(engine, prompt=prompt, max_tokens=1, cache_salt="pepper")
    assert http.post(COMPLETIONS, json=body).status_code == 200

    def chain() -> list[dict[str, Any]]:
        collect(0.5)
        return _stored([payload for _, payload in live], tokens)

    block_size = parse_metrics(http.get("/metrics").text).block_size_tokens
    num_blocks = len(tokens) // block_size
    wait_for(lambda: sum(len(event["block_hashes"]) for event in chain()) == num_blocks, "all blocks of the prompt")
    for event in chain():
        assert event["block_size"] == block_size
        assert event["medium"] == "GPU"
        assert len(event["token_ids"]) == block_size * len(event["block_hashes"])
        assert all(0 <= block_hash < 1 << 64 for block_hash in event["block_hashes"])
    assert chain()[0]["extra_keys"][0] == ["pepper"]
    numbers = [seq for seq, _ in live]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert engine.kv_replay_endpoint is not None
    assert _replay(zmq_context, engine.kv_replay_endpoint, numbers[0])[: len(live)] == live


def test_replay_repeats_what_was_missed(
    engine: Engine, http: httpx.Client, zmq_context: "zmq.Context[zmq.Socket[bytes]]"
) -> None:
    if engine.kv_replay_endpoint is None:
        pytest.skip("this engine repeats nothing")
    prompt = long_prompt()
    tokens = _tokens_of(engine, http, prompt)
    assert http.post(COMPLETIONS, json=completion(engine, prompt=prompt, max_tokens=1)).status_code == 200
    num_blocks = len(tokens) // parse_metrics(http.get("/metrics").text).block_size_tokens

    endpoint = engine.kv_replay_endpoint

    def num_stored() -> int:
        chain = _stored([payload for _, payload in _replay(zmq_context, endpoint, 0)], tokens)
        return sum(len(event["block_hashes"]) for event in chain)

    wait_for(lambda: num_stored() == num_blocks, "all blocks of the prompt")
    numbers = [seq for seq, _ in _replay(zmq_context, endpoint, 0)]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert _replay(zmq_context, endpoint, numbers[-1] + 1000) == []
