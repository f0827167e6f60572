"""The requests of the benchmark: chats of common words, tokenised beforehand, and what the engines have cached of them.

    python -m tests.bench.data_plane.prompts FILE     writes the workload as JSON

`user` of each request carries its counts to the mock engines: "T<prompt tokens>:<cached on engine 0>:<on engine 1>".
The prompts of 400 and 8,000 tokens come again and again, so that a router's token cache is warm, and each is cached
whole on one of the two engines. Chats of several turns share a system prompt that both engines have cached; what was
said before lies on one of them; the last message is a new one in every request (its number is filled in by load.py).
"""

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from controlplane.app import demo_model_path
from controlplane.config import Config
from kvstore.blocks import chain_blocks, chain_root
from router.openai import CHAT_ROUTE
from router.tokens.settings import TokenSettings
from router.tokens.tokenizer import PromptTokenizer
from router.tokens.types import NotTokenised
from tests.bench.data_plane.cases import MODELS
from workers.demo_model import convert, is_converted

NUM_ENGINES = 2
BLOCK_TOKENS = 32  # of the index and of the engines
NUMBER = "000000"  # in the last message of a chat of several turns
NUM_SHORT, NUM_LONG, NUM_CHATS, NUM_TURNS = 128, 32, 64, 5
_WORDS = """
    the of and to in is that it was for on are with as be at one have this from by hot but some what there we can out
    other were all your when up use word how said an each she which do their time if will way about many then them
    would write like so these her long make thing see him two has look more day could go come did my sound no most
    number who over know water than call first people may down side been now find any new work part take get place
    made live where after back little only round man year came show every good give under name very through just form
    great think say help low line before turn cause same mean differ move right boy old too does tell sentence set
    three want air well also play small end put home read hand port large spell add even land here must big high such
    follow act why ask men change went light kind off need house picture try us again animal point mother world near
    build self earth father head stand own page should country found answer school grow study still learn plant cover
    food sun four thought let keep eye never last door between city tree cross since hard start might story saw far
    sea draw left late run while press close night real life few stop open seem together next white children begin got
    walk example ease paper often always music those both mark book letter until mile river car feet care second group
    carry took rain eat room friend began idea fish mountain north once base hear horse cut sure watch colour face wood
""".split()  # noqa: SIM905  forty lines as a list


@dataclass(frozen=True, slots=True)
class Prompt:
    """One chat, and its counts as the mock engines read them."""

    messages: list[dict[str, str]]
    counts: list[int]  # tokens of the prompt; cached tokens of it on each engine


@dataclass(frozen=True, slots=True)
class Workload:
    """Prompts by name, and the blocks that each engine holds, parents before children."""

    prompts: dict[str, list[Prompt]]
    blocks: list[list[int]]


def load(path: Path) -> Workload:
    """The workload in a file."""
    read = json.loads(path.read_text())
    prompts = {name: [Prompt(**each) for each in listed] for name, listed in read["prompts"].items()}
    return Workload(prompts, read["blocks"])


@dataclass(frozen=True, slots=True)
class _Chat:
    messages: list[dict[str, str]]
    num_tokens: int
    chain: list[int]  # the blocks that do not depend on the last message's number


async def build() -> Workload:
    """Make the prompts and tokenise them with the demo model's tokenizer."""
    folder = demo_model_path(Config())
    if not is_converted(folder):
        convert(folder)
    tokenizer = PromptTokenizer(TokenSettings())
    tokenizer.add_model(MODELS[0], folder)
    await tokenizer.wait_loaded()
    try:
        rng = Random(5)
        short = [await _single(tokenizer, rng, 400) for _ in range(NUM_SHORT)]
        long = [await _single(tokenizer, rng, 8000) for _ in range(NUM_LONG)]
        turns = await _multi_turn(tokenizer, rng)
    finally:
        await tokenizer.close()
    chats = {"400": short, "8000": long, "turns": turns}
    held: list[dict[int, None]] = [{} for _ in range(NUM_ENGINES)]  # sets that keep their order
    for listed in chats.values():
        for number, chat in enumerate(listed):
            held[number % NUM_ENGINES].update(dict.fromkeys(chat.chain))
    for engine in held:  # the system prompt is cached everywhere
        engine.update(dict.fromkeys(_shared(turns)))
    prompts = {name: [Prompt(chat.messages, _counts(chat, held)) for chat in listed] for name, listed in chats.items()}
    return Workload(prompts, [list(engine) for engine in held])


def _counts(chat: _Chat, held: Sequence[Mapping[int, None]]) -> list[int]:
    counts = [chat.num_tokens]
    for engine in held:
        depth = next((at for at, block in enumerate(chat.chain) if block not in engine), len(chat.chain))
        cached = min(depth * BLOCK_TOKENS, chat.num_tokens - 1)
        counts.append(cached - cached % BLOCK_TOKENS)
    return counts


def _shared(chats: Sequence[_Chat]) -> list[int]:
    """The blocks that all of these begin with."""
    first = chats[0].chain
    depth = min(_common(first, chat.chain) for chat in chats)
    return first[:depth]


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


async def _single(tokenizer: PromptTokenizer, rng: Random, num_tokens: int) -> _Chat:
    """A chat of one message whose prompt has about this many tokens."""
    words = rng.choices(_WORDS, k=num_tokens)
    num_words = num_tokens
    for _ in range(2):  # how many tokens a word has is not known before
        messages = [{"role": "user", "content": _prose(words[:num_words])}]
        num_words = int(num_words * num_tokens / len(await _tokens(tokenizer, messages)))
    messages = [{"role": "user", "content": _prose(words[:num_words])}]
    tokens = await _tokens(tokenizer, messages)
    return _Chat(messages, len(tokens), chain_blocks(tokens, BLOCK_TOKENS, chain_root()))


async def _multi_turn(tokenizer: PromptTokenizer, rng: Random) -> list[_Chat]:
    """The turns of all chats: first everybody's first. Chat n is number n of every round, so it stays on its engine."""
    system = {"role": "system", "content": "You are a helpful assistant. " + _prose(rng.choices(_WORDS, k=150))}
    past: list[list[dict[str, str]]] = [[system] for _ in range(NUM_CHATS)]
    made = []
    for _ in range(NUM_TURNS):
        for chat in past:
            question = _prose(rng.choices(_WORDS, k=40))
            asked = [[*chat, {"role": "user", "content": f"{question} {number}"}] for number in (NUMBER, "999999")]
            both = [await _tokens(tokenizer, messages) for messages in asked]
            chains = [chain_blocks(tokens, BLOCK_TOKENS, chain_root()) for tokens in both]
            made.append(_Chat(asked[0], len(both[0]), chains[0][: _common(*chains)]))
            answer = {"role": "assistant", "content": _prose(rng.choices(_WORDS, k=60))}
            chat += [{"role": "user", "content": question}, answer]
    return made


async def _tokens(tokenizer: PromptTokenizer, messages: list[dict[str, str]]) -> Any:
    found = await tokenizer.tokenise(MODELS[0], CHAT_ROUTE, {"model": MODELS[0], "messages": messages})
    if isinstance(found, NotTokenised):
        raise SystemExit(f"the demo model's tokenizer cannot be used: {found.reason}")
    return found.tokens


def _prose(words: Sequence[str]) -> str:
    """Sentences of a dozen words."""
    sentences = [words[at : at + 12] for at in range(0, len(words), 12)]
    return " ".join(" ".join(each).capitalize() + "." for each in sentences)


def main() -> None:
    """Write the file."""
    Path(sys.argv[1]).write_text(json.dumps(asdict(asyncio.run(build()))))


if __name__ == "__main__":
    main()
