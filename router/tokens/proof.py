"""Which engines read a text as this router does: only those are sent token ids in place of text.

A router with another tokenizer than an engine would make it answer another prompt, and nobody would notice. So each
engine is asked once in its life what it makes of texts that tell tokenizers apart, all of them at once and one by one.

Invariants
 1. An engine is proven for one epoch, by its own ids for every probe; a restart ends it. One answer that differs, or
    none, and it gets text.
 2. A decision is covered if every engine in it is proven and has room for the prompt.
 3. Nothing of this is on the path of a request.
"""

import asyncio
import logging
from array import array
from collections.abc import Mapping

import msgspec
from msgspec.structs import replace

from router.dispatch import EngineCall
from router.openai import COMPLETION_ROUTE
from router.tokens.ids import with_ids
from router.tokens.loaded import PROBE_TEXTS
from router.tokens.tokenizer import PromptTokenizer
from router.tokens.types import NotTokenised
from router.types import RoutingDecision
from workers.client import EngineClient
from workers.errors import WorkerError
from workers.membership import Joined, Left
from workers.types import Phase, WorkerState

_log = logging.getLogger(__name__)

TOKENIZE_ROUTE = "/tokenize"
_HEADERS: Mapping[str, str] = {"content-type": "application/json"}
# An empty prompt is an error; all texts at once are a prompt of some length.
PROBES = (*(text for text in PROBE_TEXTS if text), "\n".join(PROBE_TEXTS))


class TokenProofs:
    """Belongs to one event loop."""

    def __init__(self, client: EngineClient, tokenizer: PromptTokenizer) -> None:
        self._client = client
        self._tokenizer = tokenizer
        self._asked: dict[str, int] = {}  # engine's address -> epoch in which it was asked
        self._proven: dict[str, int] = {}  # engine's address -> epoch in which it read every probe as this router does
        self._tasks: set[asyncio.Task[None]] = set()

    def on_membership(self, change: Joined | Left) -> None:
        """Ask an engine that is ready and has not been asked."""
        if isinstance(change, Left):
            return  # no decision names it; its address may be another's next
        state = change.state
        address, epoch = state.spec.address, state.spec.epoch
        if state.phase is not Phase.READY or self._asked.get(address) == epoch:
            return
        self._asked[address] = epoch
        self._proven.pop(address, None)
        if TOKENIZE_ROUTE in state.spec.routes:
            task = asyncio.create_task(self._prove(state))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def applied(self, call: EngineCall, decision: RoutingDecision) -> EngineCall:
        """The call with token ids for its prompt, where all engines of the decision are known to read it so."""
        if call.tokens is None or not self.covers(decision, len(call.tokens)):
            return call
        fields = {**call.fields, "prompt": call.tokens.tolist()}
        return replace(call, raw_body=with_ids(call.raw_body, call.tokens), fields=fields, tokens=None)

    def covers(self, decision: RoutingDecision, num_tokens: int) -> bool:
        """Invariant 2."""
        workers = (decision.decode,) if decision.prefill is None else (decision.prefill, decision.decode)
        return all(
            self._proven.get(worker.spec.address) == worker.spec.epoch and num_tokens < worker.spec.max_model_len_tokens
            for worker in workers
        )

    async def wait_asked(self) -> None:
        """Wait until no engine is being asked."""
        await asyncio.gather(*self._tasks)

    async def close(self) -> None:
        """Ask no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _prove(self, state: WorkerState) -> None:
        await self._tokenizer.wait_loaded()
        spec = state.spec
        for text in PROBES:
            own = await self._tokenizer.tokenise(spec.model, COMPLETION_ROUTE, {"prompt": text})
            if isinstance(own, NotTokenised):
                return
            if await self._ask(state, text) != own.tokens:
                _log.warning("worker %s does not read texts as this router does: it is sent text, not ids", spec.id)
                return
        if self._asked.get(spec.address) == spec.epoch:
            self._proven[spec.address] = spec.epoch
            _log.info("worker %s reads texts as this router does: completions go to it as token ids", spec.id)

    async def _ask(self, state: WorkerState, text: str) -> "array[int] | None":
        body = msgspec.json.encode({"model": state.spec.model, "prompt": text})
        try:
            reply = await self._client.post(state, TOKENIZE_ROUTE, body, _HEADERS)
            return array("I", msgspec.json.decode(reply.body)["tokens"]) if reply.status == 200 else None
        except (WorkerError, ValueError, KeyError, TypeError, OverflowError):
            return None
