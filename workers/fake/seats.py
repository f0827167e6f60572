"""Who runs in the fake engine: first come, first served, as far as batch size and KV blocks allow."""

import asyncio
from collections import deque
from dataclasses import dataclass

from workers.fake.blocks import BlockCache, HeldBlocks
from workers.fake.request import GenerationRequest


@dataclass(slots=True, eq=False)
class _Waiter:
    request: GenerationRequest
    prompt: tuple[int, ...]
    admitted: asyncio.Future[HeldBlocks]


class Seats:
    """The batch and the queue before it. Every `take` that returned is followed by one `leave`."""

    def __init__(self, blocks: BlockCache, max_running_seqs: int) -> None:
        self._blocks = blocks
        self._max_running_seqs = max_running_seqs
        self._queue: deque[_Waiter] = deque()
        self.running_seqs = 0

    @property
    def waiting_seqs(self) -> int:
        """Sequences in the queue."""
        return len(self._queue)

    async def take(self, request: GenerationRequest, prompt: tuple[int, ...]) -> HeldBlocks:
        """Wait for a seat and for blocks for `prompt`."""
        waiter = _Waiter(request, prompt, asyncio.get_running_loop().create_future())
        self._queue.append(waiter)
        self.admit()
        try:
            return await waiter.admitted
        except asyncio.CancelledError:
            if waiter in self._queue:
                self._queue.remove(waiter)
                self.admit()
            elif not waiter.admitted.cancelled():
                self._blocks.release(waiter.admitted.result())
                self.leave()
            raise

    def leave(self) -> None:
        """Give the seat back; the blocks are the caller's to release before."""
        self.running_seqs -= 1
        self.admit()

    def resize(self, max_running_seqs: int) -> None:
        """Change the size of the batch; who runs goes on running."""
        self._max_running_seqs = max_running_seqs
        self.admit()

    def admit(self) -> None:
        """Let in whoever fits now; to be called when blocks became free."""
        while self._queue and self.running_seqs < self._max_running_seqs:
            waiter = self._queue[0]
            request = waiter.request
            held = self._blocks.try_hold(waiter.prompt, request.cache_salt, request.session_id, request.lora_name)
            if held is None:
                return
            self._queue.popleft()
            self.running_seqs += 1
            waiter.admitted.set_result(held)
