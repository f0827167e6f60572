"""Listens to the KV events of one engine rank and keeps its mirror: sockets and timers around two pure parts.

The order of messages, and what is lost, is workers/kv_sequence.py's business; what they mean is workers/kv_mirror.py's.

Invariants
 1. The socket is bound when the consumer is made: an engine started afterwards finds it.
 2. A change of the mirror and its `on_changes` are one step: nothing is awaited in between.
 3. What cannot be read or is lost leaves the mirror knowing less, never wrong: everything is distrusted.
 4. Nothing is connected to the replay port before the engine is known to have it: the port is an ephemeral one, and a
    socket that tries again and again to connect to such a port is sooner or later given it as its own end.
"""

import asyncio
import contextlib
import logging
import math
import socket
from collections.abc import Callable, Sequence

import zmq
import zmq.asyncio

from kvstore.kv_types import KvChange
from workers.errors import KvEventsUnavailableError
from workers.kv_endpoints import KvEndpoints
from workers.kv_event_codec import KvEventCodecError, decode_batch
from workers.kv_mirror import KvMirror
from workers.kv_sequence import Reset, SequenceTracker, Step

_log = logging.getLogger(__name__)
_HWM = 100_000  # messages, as vLLM's own
_POLL_MS = 100
_RECONNECT_MS = 500
_BURST = 32  # messages taken in before others have their turn: a long prompt's takes milliseconds
_NUM_FRAMES = 3


class KvEventConsumer:
    """One engine rank's listener. `run` it once; it closes its sockets."""

    def __init__(
        self,
        name: str,
        endpoints: KvEndpoints,
        mirror: KvMirror,
        on_changes: Callable[[Sequence[KvChange]], None],
        *,
        silence_s: float,
        replay_timeout_s: float,
    ) -> None:
        """Listen from now on; raises KvEventsUnavailableError. After `silence_s` without a message, what is known is
        compared with the engine's replay; a replay that stalls for `replay_timeout_s` has failed."""
        self._name = name
        self._endpoints = endpoints
        self._mirror = mirror
        self._on_changes = on_changes
        self._silence_s = silence_s
        self._replay_timeout_s = replay_timeout_s
        self._tracker = SequenceTracker(can_replay=endpoints.replay is not None)
        self._context = zmq.asyncio.Context(io_threads=1)
        self._poller = zmq.asyncio.Poller()
        self._replay: zmq.asyncio.Socket | None = None
        self._heard_at_s = -math.inf
        self._answered_at_s = 0.0
        self._engine_is_up = False
        self._complained: set[str] = set()
        try:
            self._events = self._listen()
        except (zmq.ZMQError, OSError, ValueError) as error:
            self._context.destroy(linger=0)
            raise KvEventsUnavailableError(f"cannot listen at {endpoints.events}: {error}") from error

    async def run(self, stop: asyncio.Event) -> None:
        """Listen until `stop`."""
        try:
            while not stop.is_set():
                ready = dict(await self._poller.poll(_POLL_MS))
                if self._events in ready:
                    await self._take_live()
                if self._replay is not None and self._replay in ready:
                    await self._take_replay(self._replay)
                self._look_at_clock()
                if ready:
                    await asyncio.sleep(0)
        finally:
            self.close()

    def engine_came_up(self) -> None:
        """It answers: from now on it is asked for what was missed (invariant 4). Its first message shows it as well."""
        self._engine_is_up = True

    def close(self) -> None:
        """Close the sockets."""
        self._context.destroy(linger=0)

    def _listen(self) -> zmq.asyncio.Socket:
        events: zmq.asyncio.Socket = self._context.socket(zmq.SUB)
        events.set_hwm(_HWM)
        events.reconnect_ivl = _RECONNECT_MS
        events.setsockopt(zmq.SUBSCRIBE, self._endpoints.topic.encode())
        if not self._endpoints.binds or not _bind(events, self._endpoints.events):
            events.connect(self._endpoints.events)
        self._poller.register(events, zmq.POLLIN)
        return events

    async def _take_live(self) -> None:
        for _ in range(_BURST):
            frames = await _receive(self._events)
            if frames is None:
                return
            self._heard_at_s = self._now_s()
            self._engine_is_up = True
            if len(frames) == _NUM_FRAMES:
                self._act(self._tracker.live(int.from_bytes(frames[1], "big"), frames[2]))

    async def _take_replay(self, replay: zmq.asyncio.Socket) -> None:
        messages: list[tuple[int, bytes]] = []
        ended = False
        while not ended and len(messages) < _BURST and (frames := await _receive(replay)) is not None:
            if len(frames) == 1 + _NUM_FRAMES:
                seq = int.from_bytes(frames[2], "big", signed=True)
                ended = seq < 0
                if not ended:
                    messages.append((seq, frames[3]))
        self._answered_at_s = self._now_s()
        if ended:
            self._hang_up()
        self._act(self._tracker.replayed(messages, ended=ended))

    def _look_at_clock(self) -> None:
        now_s = self._now_s()
        if self._replay is not None and now_s > self._answered_at_s + self._replay_timeout_s:
            self._hang_up()
            self._act(self._tracker.replay_failed())
        if self._engine_is_up and now_s > self._heard_at_s + self._silence_s:
            self._heard_at_s = now_s
            self._act(self._tracker.silent())

    def _act(self, step: Step) -> None:
        if step.reset is Reset.RESTARTED:
            self._say("the engine has restarted; its cache is taken to be empty")
            self._on_changes([self._mirror.clear()])
        elif step.reset is Reset.LOST:
            self._say("KV events were lost; the cache's contents will be learned again")
            self._on_changes([self._mirror.distrust()])
        for payload in step.payloads:
            self._take_in(payload)
        if step.ask_from is not None:
            self._ask(step.ask_from)

    def _take_in(self, payload: bytes) -> None:
        try:
            batch = decode_batch(payload)
        except KvEventCodecError as error:
            self._complain("unreadable KV events; the cache's contents will be learned again", error)
            self._on_changes([self._mirror.distrust()])
            return
        if batch.unknown_events:
            self._complain("the engine sends KV events of a kind that this version does not know")
        self._on_changes(self._mirror.apply(batch.events))
        if self._mirror.counters.orphans:
            self._complain("some cached blocks cannot be named, as events from before them were missed")
        if self._mirror.dark:
            self._complain("the engine has several groups of KV cache; requests are routed to it by load only")
        if self._mirror.overflowed:
            self._complain("more blocks than kv_events.max_blocks; the cache's contents will be learned again")
            self._on_changes([self._mirror.distrust()])

    def _ask(self, start_seq: int) -> None:
        assert self._endpoints.replay is not None
        self._hang_up()
        # A socket for each question: an answer to an earlier one can then not be taken for this one's.
        replay: zmq.asyncio.Socket = self._context.socket(zmq.DEALER)
        replay.set_hwm(0)  # the engine drops what we do not take
        replay.linger = 0
        replay.reconnect_ivl = _RECONNECT_MS
        replay.connect(self._endpoints.replay)
        self._poller.register(replay, zmq.POLLIN)
        self._replay, self._answered_at_s = replay, self._now_s()
        with contextlib.suppress(zmq.Again):  # there is room: the socket is new
            zmq.Socket.shadow(replay.underlying).send_multipart([b"", start_seq.to_bytes(8, "big")], zmq.DONTWAIT)

    def _hang_up(self) -> None:
        if self._replay is not None:
            self._poller.unregister(self._replay)
            self._replay.close(linger=0)
            self._replay = None

    def _complain(self, problem: str, detail: object = "") -> None:
        """Once for each problem, however often it comes."""
        if problem not in self._complained:
            self._complained.add(problem)
            _log.warning("%s: %s%s", self._name, problem, f": {detail}" if detail else "")

    def _say(self, message: str) -> None:
        _log.info("%s: %s", self._name, message)

    @staticmethod
    def _now_s() -> float:
        return asyncio.get_running_loop().time()


def _bind(events: zmq.asyncio.Socket, endpoint: str) -> bool:
    """False where the address is taken or not ours: then the engine has bound it, or somebody else listens."""
    try:
        events.bind(_numeric(endpoint))
    except zmq.ZMQError as error:
        if error.errno not in (zmq.EADDRINUSE, zmq.EADDRNOTAVAIL):
            raise
        return False
    return True


def _numeric(endpoint: str) -> str:
    """ZeroMQ connects to names, but binds only addresses."""
    if not endpoint.startswith("tcp://"):
        return endpoint
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    return f"tcp://{socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0]}:{port}"


async def _receive(source: zmq.asyncio.Socket) -> list[bytes] | None:
    """The next message, if it is there already."""
    try:
        return await source.recv_multipart(zmq.DONTWAIT)
    except zmq.Again:
        return None
