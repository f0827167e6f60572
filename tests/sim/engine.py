"""One simulated vLLM engine: continuous batching, chunked prefill under a token budget, KV room, prefix cache.

Decode steps between two events of the batch are run as one leap, cut short at the next step's end by an arrival, so
that the time of a simulation grows with requests, not with tokens. What differs from vLLM: a sequence takes the room of
its whole answer when it starts, so nothing is ever preempted.
"""

import heapq
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from random import Random

from kvstore.types import RequestId
from tests.sim.block_cache import BlockCache
from tests.sim.hardware import Hardware

_MOST_LEAP = 64  # steps; their length is taken to be constant, and contexts grow

At = Callable[[float, Callable[[float], None]], None]
Stretch = Callable[[Mapping[str, int]], float]


@dataclass(slots=True, eq=False)
class Job:
    """One attempt on one engine."""

    request_id: RequestId
    attempt: int
    num_prompt_tokens: int
    num_output_tokens: int
    chain: Sequence[int]  # full blocks of prompt and answer
    on_first_token: Callable[["Job", float], None]
    on_done: Callable[["Job", float], None]
    kind: str = ""  # of text: its class
    kv_comes: bool = False  # from a prefill worker; one token is left to compute
    was_received: bool = False
    cached_tokens: int = 0  # found in the cache when the job began
    computed_tokens: int = 0
    num_committed: int = 0  # blocks of the chain that have their hash
    private_blocks: int = 0
    finish_at_step: int = 0


class Engine:
    """Runs jobs in virtual time. `at(time_s, call)` is the simulation's clock."""

    def __init__(self, hardware: Hardware, at: At, rng: Random, *, speed: float = 1.0) -> None:
        self.hardware = hardware
        self.cache = BlockCache(hardware.kv_tokens // hardware.block_size_tokens)
        self.on_blocks: Callable[[float], None] = lambda now_s: None
        self.stretch: Stretch | None = None  # a step takes so many times as long, by its tokens of each kind
        self._at = at
        self._rng = rng
        self._speed = speed
        self._waiting: deque[Job] = deque()
        self._prefilling: list[Job] = []
        self._decoding: list[tuple[int, int, Job]] = []  # heap by the step of their last token
        self._num_receiving = 0
        self._link_free_at_s = 0.0
        self._context_tokens = 0  # of the decoding sequences
        self.num_steps = 0
        self._started = 0  # jobs; breaks ties in the heap
        self._leap: tuple[float, float, int] | None = None  # began at, seconds a step, steps
        self._leap_number = 0
        self._is_ending = False  # in the callbacks of a step's end, which may submit
        self._chunks: list[tuple[Job, int]] = []
        self._stretched = 1.0
        self.busy_s = 0.0
        self.unstretched_s = 0.0  # that it would have been busy
        self.prefilled_tokens = 0
        self.computed_prompt_tokens = 0  # of prompts that are done
        self.prefix_query_tokens = 0
        self.prefix_hit_tokens = 0
        self.itl_sum_s = 0.0
        self.itl_count = 0

    @property
    def running_seqs(self) -> int:
        """Sequences in the batch."""
        return len(self._prefilling) + len(self._decoding)

    @property
    def waiting_seqs(self) -> int:
        """Sequences not in the batch yet."""
        return len(self._waiting) + self._num_receiving

    def submit(self, job: Job, now_s: float) -> None:
        """A request has come."""
        self._waiting.append(job)
        self._look(now_s)

    def _look(self, now_s: float) -> None:
        """Something waits."""
        if self._leap is not None:
            self._cut(now_s)
        elif not self._is_ending:
            self._begin(now_s)

    def _cut(self, now_s: float) -> None:
        """End the leap with the step under way: there may be a prompt to run beside it."""
        assert self._leap is not None
        began_at_s, step_s, steps = self._leap
        done = min(steps, max(1, ceil((now_s - began_at_s) / step_s)))
        if done < steps:
            self._start_leap(began_at_s, step_s, done)

    def _start_leap(self, began_at_s: float, step_s: float, steps: int) -> None:
        self._leap = (began_at_s, step_s, steps)
        self._leap_number += 1
        number = self._leap_number
        self._at(began_at_s + step_s * steps, lambda now_s: self._end(number, now_s))

    def _begin(self, now_s: float) -> None:
        self._chunks = self._schedule(now_s)
        seqs = len(self._decoding)
        if not self._chunks and not seqs:
            self._leap = None
            return
        steps = 1 if self._chunks else min(_MOST_LEAP, self._decoding[0][0] - self.num_steps)
        new_tokens = sum(tokens for _, tokens in self._chunks)
        pairs = sum(tokens * (job.computed_tokens + tokens / 2) for job, tokens in self._chunks)
        step_s = self.hardware.step_s(new_tokens, pairs, seqs, self._context_tokens + seqs * steps // 2)
        step_s *= max(0.5, 1.0 + self._rng.gauss(0.0, self.hardware.noise / sqrt(steps))) / self._speed
        if self.stretch is not None:
            self._stretched = self.stretch(self._kinds())
            step_s *= self._stretched
        self._start_leap(now_s, step_s, steps)

    def kinds(self) -> Counter[str]:
        """Sequences that run or wait, by kind."""
        running = [job for _, _, job in self._decoding]
        return Counter(job.kind for jobs in (running, self._prefilling, self._waiting) for job in jobs)

    def _kinds(self) -> Counter[str]:
        """Tokens of the step about to begin."""
        tokens = Counter(job.kind for _, _, job in self._decoding)
        for job, count in self._chunks:
            tokens[job.kind] += count
        return tokens

    def _schedule(self, now_s: float) -> list[tuple[Job, int]]:
        """Prompts under way first, then new ones while there is budget, a place and KV room."""
        budget = self.hardware.max_batched_tokens - len(self._decoding)
        chunks = []
        for job in self._prefilling:
            tokens = min(budget, job.num_prompt_tokens - job.computed_tokens)
            if tokens > 0:
                chunks.append((job, tokens))
                budget -= tokens
        while self._waiting and budget > 0 and self.running_seqs + self._num_receiving < self.hardware.max_seqs:
            job = self._waiting[0]
            if not self._take_room(job):
                break
            self._waiting.popleft()
            if job.kv_comes:
                self._receive(job, now_s)
                continue
            self._prefilling.append(job)
            tokens = min(budget, job.num_prompt_tokens - job.computed_tokens)
            chunks.append((job, tokens))
            budget -= tokens
        return chunks

    def _take_room(self, job: Job) -> bool:
        size = self.hardware.block_size_tokens
        if job.was_received:
            return True
        most = (job.num_prompt_tokens - 1) // size  # the last token is always computed
        held = job.chain[: self.cache.match(job.chain[:most])]
        fresh = -(-(job.num_prompt_tokens + job.num_output_tokens) // size) - len(held)
        if not self.cache.take(held, fresh):
            return False
        job.num_committed, job.private_blocks = len(held), fresh
        job.cached_tokens = job.computed_tokens = len(held) * size
        self.prefix_query_tokens += job.num_prompt_tokens
        self.prefix_hit_tokens += job.cached_tokens
        return True

    def _receive(self, job: Job, now_s: float) -> None:
        """Blocks come from the prefill worker, one transfer after the other on this engine's link."""
        num_bytes = (job.num_prompt_tokens - job.cached_tokens) * self.hardware.kv_bytes_per_token
        self._link_free_at_s = max(self._link_free_at_s, now_s) + num_bytes / self.hardware.transfer_bytes_per_s
        self._num_receiving += 1
        job.kv_comes = False

        def arrived(at_s: float) -> None:
            self._num_receiving -= 1
            job.was_received = True
            job.computed_tokens = job.num_prompt_tokens - 1
            self._waiting.appendleft(job)
            self._look(at_s)

        self._at(self._link_free_at_s + self.hardware.transfer_s, arrived)

    def _end(self, number: int, now_s: float) -> None:
        if number != self._leap_number:
            return
        assert self._leap is not None
        _, step_s, steps = self._leap
        self._leap = None
        self._is_ending = True
        seqs = len(self._decoding)
        self.num_steps += steps
        self._context_tokens += seqs * steps
        self.busy_s += step_s * steps
        self.unstretched_s += step_s * steps / self._stretched
        self.itl_sum_s += step_s * steps * seqs
        self.itl_count += steps * seqs
        for job, tokens in self._chunks:
            self._advance(job, tokens, now_s)
        while self._decoding and self._decoding[0][0] <= self.num_steps:
            job = heapq.heappop(self._decoding)[2]
            self._context_tokens -= job.num_prompt_tokens + job.num_output_tokens - 1
            self._finish(job, now_s)
        self.on_blocks(now_s)
        self._is_ending = False
        self._begin(now_s)

    def _advance(self, job: Job, tokens: int, now_s: float) -> None:
        """A chunk of a prompt has been computed, and with the last one the first token."""
        job.computed_tokens += tokens
        self.prefilled_tokens += tokens
        self._commit(job, min(job.computed_tokens, job.num_prompt_tokens))
        if job.computed_tokens < job.num_prompt_tokens:
            return
        self._prefilling.remove(job)
        self.computed_prompt_tokens += 1 if job.was_received else job.num_prompt_tokens - job.cached_tokens
        job.on_first_token(job, now_s)
        if job.num_output_tokens <= 1:
            self._finish(job, now_s)
            return
        self._started += 1
        job.finish_at_step = self.num_steps + job.num_output_tokens - 1
        heapq.heappush(self._decoding, (job.finish_at_step, self._started, job))
        self._context_tokens += job.num_prompt_tokens

    def _finish(self, job: Job, now_s: float) -> None:
        self._commit(job, job.num_prompt_tokens + job.num_output_tokens - 1)
        self.cache.release(job.chain[: job.num_committed], job.private_blocks)
        job.on_done(job, now_s)

    def _commit(self, job: Job, computed_tokens: int) -> None:
        full = min(len(job.chain), computed_tokens // self.hardware.block_size_tokens)
        if full > job.num_committed:
            self.cache.commit(job.chain[job.num_committed : full])
            job.private_blocks -= full - job.num_committed
            job.num_committed = full
