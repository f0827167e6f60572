"""The fake engine itself: admits sequences, prefills or pulls them, decodes them token by token, in real time.

Invariants
 1. However a sequence ends, its seat is given back and its blocks are released or leased, exactly once.
 2. Whoever stops reading `generate` (close it) stops the generation: an abort.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from workers.fake.blocks import AllBlocksCleared, BlockCache, BlockRemoved, BlockStored, HeldBlocks
from workers.fake.handoff import LeaseBook, PullFailedError
from workers.fake.metrics import Counters, Gauges
from workers.fake.model import Sampled, StopScanner, TokenSource, detokenize
from workers.fake.plan import Action, Fault, FaultScript, Plan
from workers.fake.reply import Output, Tally
from workers.fake.request import GenerationRequest
from workers.fake.seats import Seats
from workers.fake.settings import FakeSettings


class GenerationFailedError(Exception):
    """The engine gave up on a request: its blocks could not be read and the plan says `fail`."""


class FakeCore:
    """One engine's batch, blocks and counters."""

    def __init__(
        self,
        settings: FakeSettings,
        engine_id: str,
        *,
        pull: Callable[[Mapping[str, Any]], Awaitable[list[int]]],
        publish: Callable[[Sequence[BlockStored | BlockRemoved | AllBlocksCleared]], None],
        on_exit: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._pull = pull
        self._publish = publish
        self._on_exit = on_exit
        self._blocks = BlockCache(settings.kv_blocks, settings.block_size_tokens)
        self._seats = Seats(self._blocks, settings.plan.timing.max_running_seqs)
        self._prefill_turn = asyncio.Lock()
        self._awake = asyncio.Event()
        self._awake.set()
        self.port = 0
        self.counters = Counters()
        self.leases = LeaseBook(settings, engine_id, self._release, self._count_expired)
        self.plan = settings.plan
        self.script = FaultScript(settings.plan)

    @property
    def gauges(self) -> Gauges:
        """The engine now."""
        return Gauges(self._seats.running_seqs, self._seats.waiting_seqs, self._blocks.used_blocks)

    @property
    def is_wedged(self) -> bool:
        """Whether nothing moves any more."""
        return not self._awake.is_set()

    def set_plan(self, plan: Plan) -> None:
        """Follow another plan from now on, its counts from zero; a wedged engine goes on."""
        self.plan, self.script = plan, FaultScript(plan)
        self._seats.resize(plan.timing.max_running_seqs)
        self._awake.set()

    def strike(self, fault: Fault) -> None:
        """A fault of the engine happens."""
        if fault.action is Action.WEDGE:
            self._awake.clear()
        elif fault.action is Action.EXIT:
            self._on_exit()

    async def generate(self, request: GenerationRequest, request_id: str, tally: Tally) -> AsyncGenerator[Output, None]:
        """The tokens of all choices as they are made; raises GenerationFailedError."""
        tally.prompt_tokens = sum(len(prompt) for prompt in request.prompts)
        sequences = [self._sequence(request, index, request_id, tally) for index in range(request.num_sequences)]
        async with aclosing(sequences[0] if len(sequences) == 1 else _merged(sequences)) as outputs:
            async for output in outputs:
                tally.completion_tokens += 1
                yield output

    async def _sequence(
        self, request: GenerationRequest, index: int, request_id: str, tally: Tally
    ) -> AsyncGenerator[Output, None]:
        outcome, leased, held = "abort", False, None
        try:
            held = await self._seats.take(request, request.prompts[index // request.n])
            context = await self._compute_prompt(request, held)
            if index == 0:
                tally.cached_tokens = _reported_cached_tokens(request, held)
            async with aclosing(self._decode(request, held, context, index)) as outputs:
                async for output in outputs:
                    if output.finish_reason is not None:
                        outcome = output.finish_reason
                        if index == 0 and request.kv_transfer_params.get("do_remote_decode"):
                            tally.handle = self.leases.grant(request_id, held, len(held.tokens) - 1, self.port)
                            leased = True
                    yield output
        except GenerationFailedError:
            outcome = "error"
            raise
        finally:
            self.counters.finished[outcome] += 1
            if held is not None:
                if not leased:
                    self._blocks.release(held)
                self._seats.leave()
                self._publish_events()

    async def _compute_prompt(self, request: GenerationRequest, held: HeldBlocks) -> list[int]:
        """Bring the prompt's KV here; return the tokens it stands for."""
        num_tokens, num_local = len(held.tokens), held.cached_tokens
        self.counters.prefix_queries_tokens += num_tokens
        self.counters.prefix_hits_tokens += num_local
        pulled: list[int] = []
        if request.kv_transfer_params.get("do_remote_prefill"):
            pulled = (await self._load(request.kv_transfer_params, held))[:num_tokens]
        num_missing = num_tokens - max(num_local, len(pulled))
        now_s = asyncio.get_running_loop().time()
        if num_missing > 0:
            async with self._prefill_turn:
                now_s = asyncio.get_running_loop().time()
                await self._sleep_until(now_s + self.plan.timing.prefill_s(num_missing))
        else:
            await self._sleep_until(now_s + self.plan.timing.step_s(self._seats.running_seqs))
        context = pulled + held.tokens[len(pulled) :]
        self.counters.prompt_tokens += num_tokens
        self.counters.computed_prompt_tokens += max(0, num_missing)
        self._blocks.store(held, num_tokens)
        self._publish_events()
        return context

    async def _load(self, params: Mapping[str, Any], held: HeldBlocks) -> list[int]:
        """The tokens of a hand-off; none where it failed and the plan says `recompute`."""
        num_local, num_tokens = held.cached_tokens, len(held.tokens)
        self.counters.external_queries_tokens += num_tokens - num_local
        try:
            pulled = await self._pull(params)
        except PullFailedError as error:
            self.counters.failed_transfers += 1
            if self.plan.kv_load_failure_policy == "fail":
                raise GenerationFailedError(str(error)) from error
            return []
        num_external = max(0, min(len(pulled), num_tokens) - num_local)
        self.counters.external_hits_tokens += num_external
        if num_external:
            num_blocks = -(-num_external // self._settings.block_size_tokens)
            self.counters.transfers += 1
            self.counters.transferred_bytes += num_blocks * self._settings.bytes_per_block
        return pulled

    async def _decode(
        self, request: GenerationRequest, held: HeldBlocks, context: Sequence[int], index: int
    ) -> AsyncGenerator[Output, None]:
        source = TokenSource(context, request.seed + index % request.n)
        scanner = StopScanner(request.stop, include_stop=request.include_stop)
        room = self._settings.max_model_len_tokens - len(held.tokens)
        limit = room if request.max_tokens is None else min(room, request.max_tokens)
        due_s = asyncio.get_running_loop().time()
        for made in range(1, limit + 1):
            if made > 1:
                due_s = await self._step(due_s)
            sampled = source.next_token()
            self._take_in(held, sampled)
            output = _next_output(request, index, made, limit, sampled, scanner)
            yield output
            if output.finish_reason is not None:
                return

    async def _step(self, began_s: float) -> float:
        """One decode step of one sequence; return when it was over."""
        running_seqs = self._seats.running_seqs
        over_s = await self._sleep_until(began_s + self.plan.timing.step_s(running_seqs))
        self.counters.gaps += 1
        self.counters.gaps_s += over_s - began_s
        self.counters.steps += 1 / running_seqs
        return over_s

    def _take_in(self, held: HeldBlocks, sampled: Sampled) -> None:
        self.counters.generation_tokens += 1
        self._blocks.append(held, sampled.token_id)
        # The newest token's KV is computed with the next step.
        self._blocks.store(held, len(held.tokens) - 1)
        self._publish_events()
        fault = self.script.on_token()
        if fault is not None:
            self.strike(fault)

    async def _sleep_until(self, due_s: float) -> float:
        """Sleep until `due_s` and while wedged. Return the time from which the next step counts: `due_s`, unless the
        machine was too slow for that."""
        loop = asyncio.get_running_loop()
        late_s = loop.time() - due_s
        await asyncio.sleep(max(0.0, -late_s))
        await self._awake.wait()
        return loop.time() if late_s > 0 else due_s

    def _release(self, held: HeldBlocks) -> None:
        self._blocks.release(held)
        self._publish_events()
        self._seats.admit()

    def _count_expired(self) -> None:
        self.counters.expired_leases += 1

    def _publish_events(self) -> None:
        events = self._blocks.take_events()
        if events:
            self._publish(events)


def _next_output(
    request: GenerationRequest, index: int, made: int, limit: int, sampled: Sampled, scanner: StopScanner
) -> Output:
    token = sampled.token_id
    text, stop_reason = detokenize((token,)), None
    if made >= request.min_tokens:
        if token in request.stop_token_ids:
            return Output(index, sampled, scanner.flush(), "stop", token)
        text, stop_reason = scanner.feed(text)
    finish_reason = "stop" if stop_reason is not None else "length" if made == limit else None
    return Output(index, sampled, text + scanner.flush() if finish_reason else text, finish_reason, stop_reason)


def _reported_cached_tokens(request: GenerationRequest, held: HeldBlocks) -> int:
    # vLLM's decode reports what the prefill found in its cache: its own "hits" are the transfer.
    params = request.kv_transfer_params
    reported = params.get("remote_prefill_cached_tokens") if params.get("do_remote_prefill") else None
    return reported if isinstance(reported, int) else held.cached_tokens


async def _merged(sequences: Sequence[AsyncGenerator[Output, None]]) -> AsyncGenerator[Output, None]:
    """The outputs of all sequences as they come."""
    queue: asyncio.Queue[Output | Exception | None] = asyncio.Queue()
    tasks = [asyncio.create_task(_feed(sequence, queue)) for sequence in sequences]
    try:
        num_open = len(tasks)
        while num_open:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                num_open -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _feed(sequence: AsyncIterator[Output], queue: "asyncio.Queue[Output | Exception | None]") -> None:
    try:
        async for output in sequence:
            queue.put_nowait(output)
        queue.put_nowait(None)
    except GenerationFailedError as error:
        queue.put_nowait(error)
