"""Loads a model's tokenizer: read in a process of its own, rebuilt here, compared with what it should give."""

import asyncio
import sys
from array import array
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path

import msgspec

from router.tokens.chat_template import ChatTemplate
from router.tokens.engine_options import EngineOptions
from router.tokens.hf_renderer import HfRenderer
from router.tokens.loaded import LoadedTokenizer
from router.tokens.probes import check_segments, sample_chats
from router.tokens.types import TOKEN_TYPE, CannotTokeniseError, Kind

_TIMEOUT_S = 300.0  # converting an old format takes a minute on a slow machine
_MAX_DETAIL_CHARS = 300


async def load_renderer(folder: Path, options: EngineOptions, threads: Executor) -> HfRenderer:
    """The renderer for the model in `folder`; raises CannotTokeniseError."""
    output = await _export(folder)
    return await asyncio.get_running_loop().run_in_executor(threads, _build, output, options)


def build_renderer(loaded: LoadedTokenizer, options: EngineOptions) -> HfRenderer:
    """Rebuild and check a tokenizer; raises CannotTokeniseError where it gives other tokens than its original."""
    chat = ChatTemplate(loaded.templates, loaded.special_tokens, options)
    samples = sample_chats(chat)
    renderer = HfRenderer(loaded, chat, samples)
    for text, special, ids in loaded.probes:
        if renderer.encode(text, add_special_tokens=special) != array(TOKEN_TYPE, ids).tobytes():
            raise CannotTokeniseError(Kind.LOAD_FAILED, "the rebuilt tokenizer differs from its original")
    renderer.segments_are_exact = check_segments(renderer, renderer.separators, samples)
    return renderer


async def _export(folder: Path) -> bytes:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "router.tokens.export", str(folder),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        output, errors = await asyncio.wait_for(process.communicate(), _TIMEOUT_S)
    except TimeoutError:
        raise CannotTokeniseError(Kind.LOAD_FAILED, f"not read within {_TIMEOUT_S:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()  # not wait(): that leaves its pipes open
    if process.returncode != 0:
        last_line = errors.decode(errors="replace").strip().rpartition("\n")[2]
        raise CannotTokeniseError(Kind.LOAD_FAILED, last_line[:_MAX_DETAIL_CHARS])
    return output


def _build(output: bytes, options: EngineOptions) -> HfRenderer:
    answer = msgspec.json.decode(output)
    if "unsupported" in answer:
        raise CannotTokeniseError(Kind.UNSUPPORTED_ENGINE, answer["unsupported"])
    loaded = msgspec.convert(answer, LoadedTokenizer)
    if options.chat_template is not None:
        options = replace(options, chat_template=_read_template(options.chat_template))
    return build_renderer(loaded, options)


def _read_template(given: str) -> str:
    """As vLLM takes --chat-template: a file, else the template itself. Source: vllm/renderers/chat_utils.py."""
    try:
        return Path(given).read_text(encoding="utf-8")
    except (OSError, ValueError):
        if any(mark in given for mark in "{}\n"):
            return given
    raise CannotTokeniseError(Kind.UNSUPPORTED_ENGINE, "--chat-template names a file that is not here")
