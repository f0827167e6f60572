"""The tokeniser with the fake engine's tokens: what it answers, what it caches, what it leaves to its threads."""

import asyncio
import logging
import threading
from array import array
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from router.openai import CHAT_ROUTE, COMPLETION_ROUTE
from router.tokens import model_tokens, tokenizer
from router.tokens.settings import TokenSettings
from router.tokens.tokenizer import PromptTokenizer
from router.tokens.types import CannotTokeniseError, Kind, NotTokenised, PromptText, TokenisedPrompt
from tests.byte_renderer import ByteRenderer

MODEL = "m"


def run(test: Callable[[PromptTokenizer], Awaitable[None]], renderer: Any = None, **settings: Any) -> None:
    """Run `test` with a tokeniser for MODEL."""

    async def main() -> None:
        prompts = PromptTokenizer(TokenSettings(**settings))
        prompts.add_renderer(MODEL, renderer or ByteRenderer())
        try:
            await test(prompts)
        finally:
            await prompts.close()

    asyncio.run(main())


async def complete(prompts: PromptTokenizer, prompt: object, **fields: object) -> TokenisedPrompt | NotTokenised:
    return await prompts.tokenise(MODEL, COMPLETION_ROUTE, {"model": MODEL, "prompt": prompt, **fields})


def chat(*contents: str) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": content} for content in contents]}


class ThreadsSeen(ByteRenderer):
    """Remembers which threads encoded."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: list[str] = []
        self.encoded: list[str] = []

    def encode(self, text: str, *, add_special_tokens: bool) -> bytes:
        self.threads.append(threading.current_thread().name.partition("_")[0])
        self.encoded.append(text)
        return super().encode(text, add_special_tokens=add_special_tokens)


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [("hi\n", [104, 105, 10]), (["hi"], [104, 105]), ([5, 0, 7], [5, 0, 7]), ([[5, 7]], [5, 7]), ("", [])],
)
def test_prompts_of_completions(prompt: object, tokens: list[int]) -> None:
    async def test(prompts: PromptTokenizer) -> None:
        assert await complete(prompts, prompt, cache_salt="s") == TokenisedPrompt(array("I", tokens), "s")

    run(test)


@pytest.mark.parametrize(
    ("prompt", "kind"),
    [
        (["a", "b"], Kind.SEVERAL_PROMPTS),
        ([[1], [2]], Kind.SEVERAL_PROMPTS),
        ([], Kind.UNSUPPORTED_FIELD),
        ([-1], Kind.UNSUPPORTED_FIELD),
        ([2**40], Kind.UNSUPPORTED_FIELD),
        ([1, "a"], Kind.UNSUPPORTED_FIELD),
        (None, Kind.UNSUPPORTED_FIELD),
        ({"prompt": "a"}, Kind.UNSUPPORTED_FIELD),
        ("\ud800" * 100, Kind.UNSUPPORTED_FIELD),
    ],
)
def test_prompts_without_tokens(prompt: object, kind: Kind) -> None:
    async def test(prompts: PromptTokenizer) -> None:
        answer = await complete(prompts, prompt)
        assert isinstance(answer, NotTokenised)
        assert answer.kind is kind

    run(test)


def test_models_routes_and_salts() -> None:
    async def test(prompts: PromptTokenizer) -> None:
        assert await prompts.tokenise("other", CHAT_ROUTE, chat("hi")) == NotTokenised(Kind.UNKNOWN_MODEL)
        assert await prompts.tokenise(MODEL, "/v1/responses", {}) == NotTokenised(Kind.UNSUPPORTED_ROUTE)
        salted = await complete(prompts, "hi", cache_salt=5)
        assert salted == NotTokenised(Kind.UNSUPPORTED_FIELD, "cache_salt")
        assert salted.reason == "unsupported_field: cache_salt"

    run(test)


def test_a_turn_encodes_what_is_new() -> None:
    renderer = ThreadsSeen()

    async def test(prompts: PromptTokenizer) -> None:
        await prompts.tokenise(MODEL, CHAT_ROUTE, chat("one", "two"))
        await prompts.wait_loaded()  # the first prompt is checked, by encoding all of it
        renderer.encoded.clear()
        await prompts.tokenise(MODEL, CHAT_ROUTE, chat("one", "two", "three"))
        assert renderer.encoded == ["[user] three\n"]
        stats = prompts.stats()[MODEL]
        assert (stats.hits, stats.misses, stats.checks, stats.mismatches) == (3, 4, 1, 0)
        assert (stats.state, stats.is_segmented, stats.cache_segments) == ("ready", True, 4)
        assert stats.cache_bytes > 0

    run(test, renderer)


def test_short_texts_are_encoded_here_and_long_ones_in_threads() -> None:
    renderer = ThreadsSeen()

    async def test(prompts: PromptTokenizer) -> None:
        await prompts.tokenise(MODEL, CHAT_ROUTE, chat("one"))
        await prompts.wait_loaded()
        renderer.threads.clear()
        await prompts.tokenise(MODEL, CHAT_ROUTE, chat("one", "two"))
        assert renderer.threads == ["MainThread"]
        renderer.threads.clear()
        await prompts.tokenise(MODEL, CHAT_ROUTE, chat("one", "two", "x" * 2000))
        assert renderer.threads == ["tokens"]
        renderer.threads.clear()
        await prompts.tokenise(MODEL, CHAT_ROUTE, chat("one", "two", "x" * 2000))
        assert renderer.threads == []

    run(test, renderer)


class ReadElsewhere(ByteRenderer):
    """Remembers which threads read requests."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: list[str] = []

    def read(self, route: str, fields: Any) -> "PromptText | array[int]":
        self.readers.append(threading.current_thread().name.partition("_")[0])
        return super().read(route, fields)


def test_large_bodies_are_read_in_threads() -> None:
    renderer = ReadElsewhere()
    many = chat(*[""] * 5000)

    async def test(prompts: PromptTokenizer) -> None:
        for body in (chat("x"), chat("x" * 200_000), many, {**chat("x"), "chat_template": "x"}):
            await prompts.tokenise(MODEL, CHAT_ROUTE, body)
        assert renderer.readers == ["MainThread", "tokens", "tokens", "tokens"]

    run(test, renderer)


def test_a_prompt_of_very_many_segments_is_encoded_whole() -> None:
    renderer = ThreadsSeen()
    prompt = "\n" * (model_tokens._MAX_SEGMENTS + 1)

    async def test(prompts: PromptTokenizer) -> None:
        answer = await complete(prompts, prompt)
        assert isinstance(answer, TokenisedPrompt)
        assert answer.num_tokens == len(prompt)
        assert renderer.encoded == [prompt]
        assert prompts.stats()[MODEL].cache_segments == 0

    run(test, renderer)


def test_too_long() -> None:
    async def test(prompts: PromptTokenizer) -> None:
        assert isinstance(await complete(prompts, "x" * 2048), TokenisedPrompt)
        assert await complete(prompts, "x" * 2049) == NotTokenised(Kind.TOO_LONG)

    run(test, max_prompt_chars=2048)


class Waiting(ByteRenderer):
    """Encodes when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()

    def encode(self, text: str, *, add_special_tokens: bool) -> bytes:
        assert self.go.wait(30)
        return super().encode(text, add_special_tokens=add_special_tokens)


def test_a_backlog_is_bounded_and_others_go_on() -> None:
    renderer = Waiting()
    size = tokenizer._MAX_WAITING_CHARS // 2

    async def test(prompts: PromptTokenizer) -> None:
        first, second = (asyncio.create_task(complete(prompts, letter * size)) for letter in "ab")
        while prompts._waiting_chars < 2 * size:
            await asyncio.sleep(0.01)
        assert await complete(prompts, "c" * 2000) == NotTokenised(Kind.BUSY)
        assert isinstance(await complete(prompts, [1, 2]), TokenisedPrompt)
        renderer.go.set()
        assert isinstance(await first, TokenisedPrompt)
        assert isinstance(await second, TokenisedPrompt)
        assert isinstance(await complete(prompts, "c" * 2000), TokenisedPrompt)
        assert prompts._waiting_chars == 0

    run(test, renderer, max_prompt_chars=8 << 20)


def test_a_client_that_goes_away_frees_its_place() -> None:
    renderer = Waiting()

    async def test(prompts: PromptTokenizer) -> None:
        task = asyncio.create_task(complete(prompts, "a" * 5000))
        while not prompts._waiting_chars:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert prompts._waiting_chars == 0
        renderer.go.set()

    run(test, renderer)


class Lying(ByteRenderer):
    """Joins two lines into one token, but only where it sees both."""

    def encode(self, text: str, *, add_special_tokens: bool) -> bytes:
        return super().encode(text.replace("\n[assistant]", "!"), add_special_tokens=add_special_tokens)


def test_segments_that_differ_are_not_used_again(caplog: pytest.LogCaptureFixture) -> None:
    async def test(prompts: PromptTokenizer) -> None:
        wrong = await prompts.tokenise(MODEL, CHAT_ROUTE, chat("secret"))
        await prompts.wait_loaded()
        right = await prompts.tokenise(MODEL, CHAT_ROUTE, chat("secret"))
        assert isinstance(wrong, TokenisedPrompt)
        assert isinstance(right, TokenisedPrompt)
        assert bytes(right.tokens.tolist()) == b"[user] secret! "
        assert wrong.tokens != right.tokens
        stats = prompts.stats()[MODEL]
        assert (stats.is_segmented, stats.checks, stats.mismatches, stats.cache_bytes) == (False, 1, 1, 0)
        for _ in range(model_tokens._CHECK_EVERY):
            await prompts.tokenise(MODEL, CHAT_ROUTE, chat("secret"))
        await prompts.wait_loaded()
        assert prompts.stats()[MODEL].checks == 1

    run(test, Lying())
    assert len([record for record in caplog.records if "differ" in record.message]) == 1
    assert "secret" not in caplog.text


class Around(ByteRenderer):
    """Puts tokens around a text."""

    def __init__(self, *, segments_are_exact: bool) -> None:
        super().__init__()
        self.prefix, self.suffix = array("I", [1]).tobytes(), array("I", [2]).tobytes()
        self.segments_are_exact = segments_are_exact

    def encode(self, text: str, *, add_special_tokens: bool) -> bytes:
        tokens = super().encode(text, add_special_tokens=False)
        return self.prefix + tokens + self.suffix if add_special_tokens else tokens


@pytest.mark.parametrize("exact", [True, False])
def test_special_tokens_go_around_the_whole(exact: bool) -> None:
    async def test(prompts: PromptTokenizer) -> None:
        for prompt in ("a\nb", "a\nb", ""):
            answer = await complete(prompts, prompt)
            assert isinstance(answer, TokenisedPrompt)
            assert answer.tokens.tolist() == [1, *prompt.encode(), 2]
            answer = await complete(prompts, prompt, add_special_tokens=False)
            assert isinstance(answer, TokenisedPrompt)
            assert answer.tokens.tolist() == [*prompt.encode()]
        await prompts.wait_loaded()
        assert prompts.stats()[MODEL].is_segmented is exact

    run(test, Around(segments_are_exact=exact))


class Broken(ByteRenderer):
    """Has a bug."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def encode(self, text: str, *, add_special_tokens: bool) -> bytes:
        raise self.error


@pytest.mark.parametrize("length", [10, 5000])
@pytest.mark.parametrize("error", [KeyError("secret"), CannotTokeniseError(Kind.FAILED, "KeyError")])
def test_a_bug_is_an_answer(error: Exception, length: int, caplog: pytest.LogCaptureFixture) -> None:
    async def test(prompts: PromptTokenizer) -> None:
        assert await complete(prompts, "x" * length) == NotTokenised(Kind.FAILED, "KeyError")

    caplog.set_level(logging.DEBUG)
    run(test, Broken(error))
    assert "secret" not in caplog.text


def test_a_check_that_fails_says_nothing() -> None:
    class OnlySegments(ByteRenderer):
        def encode(self, text: str, *, add_special_tokens: bool) -> bytes:
            if text.count("\n") > 1:
                raise CannotTokeniseError(Kind.FAILED)
            return super().encode(text, add_special_tokens=add_special_tokens)

    async def test(prompts: PromptTokenizer) -> None:
        assert isinstance(await complete(prompts, "a\nb\nc\n"), TokenisedPrompt)
        await prompts.wait_loaded()
        assert prompts.stats()[MODEL].checks == 0

    run(test, OnlySegments())


def test_the_loop_goes_on_while_ten_megabytes_are_tokenised() -> None:
    """Nothing is timed: the loop must have run many times before the answer is there."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "water wheel " * 850_000}]}

    async def test(prompts: PromptTokenizer) -> None:
        task = asyncio.create_task(prompts.tokenise(MODEL, CHAT_ROUTE, body))
        rounds = 0
        while not task.done():
            await asyncio.sleep(0)
            rounds += 1
        assert isinstance(await task, TokenisedPrompt)
        assert rounds > 100

    run(test, max_prompt_chars=16 << 20)
