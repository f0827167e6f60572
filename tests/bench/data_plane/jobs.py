"""What the clients are told to do, and the requests they send for it."""

import json
from dataclasses import dataclass
from typing import Any

from tests.bench.data_plane import prompts
from tests.bench.data_plane.cases import IDLE, PACED

_PROMPTS = {"unary-400": "400", "unary-8000": "8000", "multi-turn": "turns"}
_PROMPTS |= dict.fromkeys(("stream-64", "stream-64-paced", "idle"), "400")


@dataclass(frozen=True, slots=True)
class Job:
    """One case against one contender."""

    port: int
    kind: str
    connections: int
    model: str
    max_tokens: int
    carrier: str  # the field that tells mock engines which prompt it is; "": none
    warm_s: float
    seconds: float
    pids: list[int]
    beside: list[int]  # further processes of this benchmark


class Requests:
    """Ready-made requests of one kind, for ever in turn."""

    def __init__(self, workload: prompts.Workload, job: Job) -> None:
        self._made = [_request(prompt, job) for prompt in workload.prompts[_PROMPTS[job.kind]]]
        self._next = 0
        self._numbered = job.kind == "multi-turn"

    @property
    def all_taken(self) -> bool:
        """Each has been sent once."""
        return self._next >= len(self._made)

    def take(self) -> bytes:
        """The next one."""
        number = self._next
        self._next += 1
        head, tail = self._made[number % len(self._made)]
        return b"%b%06d%b" % (head, number % 1_000_000, tail) if self._numbered else head


def _request(prompt: prompts.Prompt, job: Job) -> tuple[bytes, bytes]:
    """Head and body; in two pieces where a number goes between."""
    ending = PACED if job.kind == "stream-64-paced" else IDLE if job.kind == "idle" else b""
    counts = ":".join(map(str, prompt.counts))
    streams = job.kind.startswith("stream") or job.kind == "idle"
    told = f"T{counts}{ending.decode()}"
    fields: dict[str, Any] = {"model": job.model, "max_tokens": job.max_tokens}
    if job.carrier:
        fields[job.carrier] = [told] if job.carrier == "stop" else told
    fields |= {"stream": True} if streams else {}
    body = json.dumps({**fields, "messages": prompt.messages}, separators=(",", ":")).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{job.port}\r\naccept: */*\r\nuser-agent: bench\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    whole = head.encode() + body
    if job.kind != "multi-turn":
        return whole, b""
    before, _, after = whole.rpartition(prompts.NUMBER.encode())
    return before, after
