"""KV events on the wire, as vLLM 0.32 publishes them: a PUB socket and a ROUTER socket that repeats what was missed.

A message is three frames: topic, sequence number (8 bytes, big endian, from 0), msgpack batch. A replay request is an
empty frame and a first sequence number; each answer is an empty frame and a message, the last one numbered -1.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Sequence

import msgspec
import zmq
import zmq.asyncio

from workers.fake.blocks import AllBlocksCleared, BlockRemoved, BlockStored, EventBatch

TOPIC = "kv"
BUFFER_STEPS = 10_000
_HWM = 100_000
_END_OF_REPLAY = (-1).to_bytes(8, "big", signed=True)


class EventLog:
    """Numbers and remembers batches. Pure."""

    def __init__(self, buffer_steps: int = BUFFER_STEPS) -> None:
        self._next_seq = 0
        self._messages: deque[tuple[int, list[bytes]]] = deque(maxlen=buffer_steps)

    def append(self, events: Sequence[BlockStored | BlockRemoved | AllBlocksCleared], at_s: float) -> list[bytes]:
        """The frames of the next message; `at_s` is wall-clock time."""
        batch = EventBatch(ts=at_s, events=list(events), data_parallel_rank=0)
        frames = [TOPIC.encode(), self._next_seq.to_bytes(8, "big"), msgspec.msgpack.encode(batch)]
        self._messages.append((self._next_seq, frames))
        self._next_seq += 1
        return frames

    def replay(self, start_seq: int) -> list[list[bytes]]:
        """The remembered messages from `start_seq` on, and the mark of the end."""
        return [frames for seq, frames in self._messages if seq >= start_seq] + [[b"", _END_OF_REPLAY, b""]]


class KvEventPublisher:
    """One engine's event sockets. `close` it."""

    def __init__(self, endpoint: str, replay_endpoint: str | None) -> None:
        self._log = EventLog()
        self._context = zmq.Context(io_threads=1)
        self._pub = self._context.socket(zmq.PUB)
        self._pub.set_hwm(_HWM)
        self._replay_task: asyncio.Task[None] | None = None
        try:
            (self._pub.bind if binds(endpoint) else self._pub.connect)(endpoint)
            if replay_endpoint is not None:
                router = zmq.asyncio.Context(self._context).socket(zmq.ROUTER)
                router.bind(replay_endpoint)
                self._replay_task = asyncio.create_task(self._serve_replay(router))
        except zmq.ZMQError:
            self._context.destroy(linger=0)
            raise

    def publish(self, events: Sequence[BlockStored | BlockRemoved | AllBlocksCleared]) -> None:
        """Send one batch; never blocks, whoever listens."""
        self._pub.send_multipart(self._log.append(events, time.time()))

    async def close(self) -> None:
        """Close the sockets. What was published and not yet sent is lost."""
        if self._replay_task is not None:
            self._replay_task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._replay_task
        self._context.destroy(linger=0)

    async def _serve_replay(self, router: zmq.asyncio.Socket) -> None:
        with router:
            while True:
                request = await router.recv_multipart()
                if len(request) != 3:
                    continue
                client, _, start_seq = request
                for frames in self._log.replay(int.from_bytes(start_seq, "big")):
                    await router.send_multipart([client, b"", *frames])


def binds(endpoint: str) -> bool:
    """Whether vLLM's publisher binds this endpoint; to any other it connects, and the subscriber has to bind."""
    return "*" in endpoint or "::" in endpoint or endpoint.startswith(("ipc://", "inproc://"))
