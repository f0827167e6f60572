"""Token ids of requests, off the event loop where they take time.

Invariants
 1. `tokenise` gives the engine's own token ids or says that it does not know them; it never guesses and never raises.
 2. What is done on the event loop is bounded, whatever a request holds; the rest is done by `threads` threads.
 3. Caches and counters are changed on the event loop only.
 4. Prompts are neither logged nor quoted.
"""

import asyncio
import logging
from array import array
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from router.tokens.engine_options import read_engine_args
from router.tokens.loader import load_renderer
from router.tokens.model_tokens import ModelStats, ModelTokens, Plan
from router.tokens.settings import TokenSettings
from router.tokens.types import CannotTokeniseError, Kind, NotTokenised, Renderer, TokenisedPrompt

_log = logging.getLogger(__name__)

# On one core of 2024: rendering and cutting this much takes about a millisecond, encoding this much 0.2 ms. Handing
# work to a thread and back takes 0.1 ms.
_INLINE_WEIGHT = 128 << 10
_INLINE_NEW_CHARS = 1024
_NODE_WEIGHT = 32  # of a value in the body, in characters: what it costs to look at
_MAX_WAITING_CHARS = 2 << 20  # a second's work

_T = TypeVar("_T")


class PromptTokenizer:
    """The tokenisers of one router. Belongs to one event loop."""

    def __init__(self, settings: TokenSettings) -> None:
        self._settings = settings
        self._threads = ThreadPoolExecutor(settings.threads, thread_name_prefix="tokens")
        self._models: dict[str, ModelTokens] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting_chars = 0

    def add_renderer(self, name: str, renderer: Renderer) -> None:
        """Tokenise requests to `name` with `renderer` from now on."""
        self._models[name] = model = ModelTokens(self._settings.cache_bytes)
        model.start(renderer)

    def add_model(self, name: str, folder: Path, engine_args: Sequence[str] = ()) -> None:
        """Load the tokenizer in `folder` for requests to `name`; until then they are NotTokenised."""
        self._models[name] = model = ModelTokens(self._settings.cache_bytes)
        self._spawn(self._load(name, model, folder, engine_args))

    async def wait_loaded(self) -> None:
        """Wait until nothing is being loaded or checked."""
        await asyncio.gather(*self._tasks)

    async def close(self) -> None:
        """Stop loading and encoding."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def stats(self) -> dict[str, ModelStats]:
        """State and counters of every model."""
        return {name: model.stats() for name, model in self._models.items()}

    async def tokenise(self, model: str, route: str, fields: Mapping[str, Any]) -> TokenisedPrompt | NotTokenised:
        """The tokens of a request's prompt. `fields` is its decoded body and is not changed."""
        tokens = self._models.get(model)
        if tokens is None:
            return NotTokenised(Kind.UNKNOWN_MODEL)
        if tokens.not_ready is not None:
            return tokens.not_ready
        salt = fields.get("cache_salt")
        if salt is not None and not isinstance(salt, str):
            return NotTokenised(Kind.UNSUPPORTED_FIELD, "cache_salt")
        try:
            ids, num_segments = await self._tokens_of(model, tokens, route, fields)
        except CannotTokeniseError as error:
            return NotTokenised(error.kind, error.detail)
        except Exception as error:  # our own bug must not cost the client its answer
            _log.error("model %s: tokenising failed: %s", model, type(error).__name__)  # its message may quote
            return NotTokenised(Kind.FAILED, type(error).__name__)
        return TokenisedPrompt(ids, salt or None, is_whole=num_segments == 1)

    async def _tokens_of(
        self, name: str, model: ModelTokens, route: str, fields: Mapping[str, Any]
    ) -> "tuple[array[int], int]":
        """The tokens, and of how many segments they were joined; none where the request brought them."""
        max_chars = self._settings.max_prompt_chars
        # How long a client's template takes is not known.
        if weigh(fields, _INLINE_WEIGHT) > _INLINE_WEIGHT or fields.get("chat_template") is not None:
            plan = await self._in_thread(model.plan, route, fields, max_chars)
        else:
            plan = model.plan(route, fields, max_chars)
        if plan.ids is not None:
            return plan.ids, 0
        missing = model.look_up(plan)
        num_chars = sum(len(plan.segments[index].text) for index in missing)
        if num_chars <= _INLINE_NEW_CHARS:
            encoded = model.encode(plan, missing)
        else:
            encoded = await self._encode_in_thread(model, plan, missing, num_chars)
        ids = model.join(plan, missing, encoded)
        if model.is_check_due(plan):
            self._spawn(self._check(name, model, plan, ids))
        return ids, len(plan.segments)

    async def _encode_in_thread(
        self, model: ModelTokens, plan: Plan, missing: Sequence[int], num_chars: int
    ) -> list[bytes]:
        if self._waiting_chars + num_chars > max(_MAX_WAITING_CHARS, num_chars):
            raise CannotTokeniseError(Kind.BUSY)
        self._waiting_chars += num_chars
        try:
            return await self._in_thread(model.encode, plan, missing)
        finally:
            self._waiting_chars -= num_chars

    async def _check(self, name: str, model: ModelTokens, plan: Plan, ids: "array[int]") -> None:
        """Compare with the encoding of the whole text; segments that differ are not used again."""
        try:
            is_right = await self._in_thread(model.is_right, plan, ids)
        except Exception as error:  # the answer has been given
            _log.error("model %s: a prompt could not be checked: %s", name, type(error).__name__)
            return
        if model.count_check(is_right=is_right):
            _log.error("model %s: tokens of segments differ from those of the whole text; encoding whole texts", name)

    async def _load(self, name: str, model: ModelTokens, folder: Path, engine_args: Sequence[str]) -> None:
        try:
            renderer = await load_renderer(folder, read_engine_args(engine_args), self._threads)
        except CannotTokeniseError as error:
            model.not_ready = NotTokenised(error.kind, error.detail)
        except Exception as error:  # transformers and tokenizers raise what they like
            model.not_ready = NotTokenised(Kind.LOAD_FAILED, type(error).__name__)
        else:
            model.start(renderer)
            _log.info("model %s: tokenizer loaded; texts are cut at %s", name, renderer.separators or "nothing")
            if not renderer.segments_are_exact:
                _log.warning("model %s: its texts cannot be encoded in segments; every prompt is encoded whole", name)
            return
        _log.warning("model %s cannot be tokenised, it is routed by load: %s", name, model.not_ready.reason)

    async def _in_thread(self, work: Callable[..., _T], *args: object) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def weigh(fields: Mapping[str, Any], limit: int) -> int:
    """About how many characters a body holds; looks no further once it is over `limit`."""
    total, stack = 0, [fields]
    while stack and total <= limit:
        item: Any = stack.pop()
        if isinstance(item, str):
            total += len(item)
        elif isinstance(item, list) and item and isinstance(item[0], int):
            total += len(item)  # token ids, read in one go
        elif isinstance(item, dict | list):
            total += len(item) * _NODE_WEIGHT
            if total <= limit:
                stack.extend(item.values() if isinstance(item, dict) else item)
    return total
