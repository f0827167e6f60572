"""Claim: a turn of a chat costs what its last exchange costs, not what the history costs.

    python -m tests.bench.tokenise [FOLDER]

CPU time of each turn of a chat that ends with about 8,000 tokens, through the router's own tokeniser: with the turns
before it in the cache, sent again, by a router that has just started, and beside it the encoding of the whole text
alone. FOLDER holds a tokenizer; by default the demo model's.
"""

import asyncio
import gc
import json
import sys
import time
from pathlib import Path
from random import Random
from statistics import median, quantiles
from typing import Any

import psutil

from controlplane.app import demo_model_path
from controlplane.config import Config
from router.openai import CHAT_ROUTE
from router.tokens.engine_options import EngineOptions
from router.tokens.hf_renderer import HfRenderer
from router.tokens.loader import load_renderer
from router.tokens.settings import TokenSettings
from router.tokens.tokenizer import PromptTokenizer
from router.tokens.types import PromptText, TokenisedPrompt

MODEL, TURNS, CHATS = "m", 20, 20
COLUMNS = ("warm_us", "again_us", "cold_us", "whole_us")
_WORDS = """
    the of a water wheel turns and river flows under bridge with some strange unpredictable vocabulary however,
    thermodynamics computational 1234 def foo(x): return naïve quickly
""".split()  # noqa: SIM905  a list of words


def make_turns(random: Random) -> list[dict[str, Any]]:
    """Bodies of the turns of one chat; each begins with the one before it."""
    messages = [{"role": "system", "content": _text(random, 200)}]
    turns = []
    for _ in range(TURNS):
        messages.append({"role": "user", "content": _text(random, 55)})
        turns.append({"model": MODEL, "messages": list(messages)})
        messages.append({"role": "assistant", "content": _text(random, 230)})
    return turns


async def measure_chat(renderer: HfRenderer, turns: list[dict[str, Any]]) -> list[dict[str, float]]:
    """CPU of every turn in microseconds, and its tokens."""
    prompts = _tokenizer(renderer)
    rows = [{"warm_us": await _cpu_us(prompts, body), "again_us": await _cpu_us(prompts, body)} for body in turns]
    await prompts.close()
    for row, body in zip(rows, turns, strict=True):
        fresh = _tokenizer(renderer)
        row["cold_us"] = await _cpu_us(fresh, body)
        await fresh.close()
        text = renderer.read(CHAT_ROUTE, body)
        assert isinstance(text, PromptText)
        began_s = time.process_time()
        tokens = renderer.encode(text.text, add_special_tokens=False)
        row |= {"whole_us": (time.process_time() - began_s) * 1e6, "tokens": len(tokens) // 4}
    return rows


async def main(folder: Path) -> None:
    """Measure and print."""
    process = psutil.Process()
    rss_bytes, began_s = process.memory_info().rss, time.perf_counter()
    loading = PromptTokenizer(TokenSettings())
    renderer = await load_renderer(folder, EngineOptions(), loading._threads)
    load_s, load_bytes = time.perf_counter() - began_s, process.memory_info().rss - rss_bytes
    await loading.close()
    gc.disable()
    random = Random(1)
    chats = [await measure_chat(renderer, make_turns(random)) for _ in range(CHATS + 1)][1:]  # the first warms up
    print(f"{'turn':>4} {'tokens':>7} " + " ".join(f"{column:>9}" for column in COLUMNS))
    for turn in (0, 1, 4, 9, 14, 19):
        middle = {column: median(chat[turn][column] for chat in chats) for column in (*COLUMNS, "tokens")}
        print(f"{turn + 1:>4} {middle['tokens']:>7.0f} " + " ".join(f"{middle[column]:>9.0f}" for column in COLUMNS))
    last = [chat[-1] for chat in chats]
    result: dict[str, float] = {f"turn20_{column}": round(median(row[column] for row in last)) for column in COLUMNS}
    result["turn20_warm_p95_us"] = round(quantiles((row["warm_us"] for row in last), n=20)[-1])
    result["turn2_warm_us"] = round(median(chat[1]["warm_us"] for chat in chats))
    print(json.dumps(result | {"load_s": round(load_s, 2), "load_bytes": load_bytes}))


def _tokenizer(renderer: HfRenderer) -> PromptTokenizer:
    prompts = PromptTokenizer(TokenSettings())
    prompts.add_renderer(MODEL, renderer)
    return prompts


async def _cpu_us(prompts: PromptTokenizer, body: dict[str, Any]) -> float:
    """CPU of the whole process, threads included."""
    began_s = time.process_time()
    prompt = await prompts.tokenise(MODEL, CHAT_ROUTE, body)
    spent_s = time.process_time() - began_s
    assert isinstance(prompt, TokenisedPrompt)
    await prompts.wait_loaded()  # the comparison with the whole text, of the first prompt and then of one in 256
    return spent_s * 1e6


def _text(random: Random, num_words: int) -> str:
    return " ".join(random.choice(_WORDS) for _ in range(num_words))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]) if len(sys.argv) > 1 else demo_model_path(Config())))
