"""A model's folder becomes a renderer, by way of a process that reads it with transformers."""

import asyncio
import json
from array import array
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from router.openai import CHAT_ROUTE, COMPLETION_ROUTE
from router.tokens.engine_options import EngineOptions
from router.tokens.export import UnsupportedModelError, _check_model, _refuse_chats
from router.tokens.hf_renderer import HfRenderer
from router.tokens.loaded import PROBE_TEXTS, LoadedTokenizer
from router.tokens.loader import build_renderer
from router.tokens.settings import TokenSettings
from router.tokens.tokenizer import PromptTokenizer
from router.tokens.types import CannotTokeniseError, Kind, NotTokenised, PromptText, TokenisedPrompt
from tests.tokenizer_shapes import CHATML, SHAPES, byte_level, prefix_space, save_model

BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello, 日本! <|im_end|>"}]}
TEXT = "<s><|im_start|>user\nHello, 日本! <|im_end|><|im_end|>\n<|im_start|>assistant\n"


def loaded(tokenizer: Tokenizer, **fields: Any) -> LoadedTokenizer:
    probes = [(text, special, tokenizer.encode(text, add_special_tokens=special).ids)
              for text in PROBE_TEXTS for special in (True, False)]  # fmt: skip
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    return replace(LoadedTokenizer(tokenizer.to_str(), CHATML, names, False, "", probes), **fields)


def ids(tokenizer: Tokenizer, text: str, *, special: bool = False) -> bytes:
    return array("I", tokenizer.encode(text, add_special_tokens=special).ids).tobytes()


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_rebuilt_and_may_be_cut(shape: Any) -> None:
    tokenizer = shape()
    renderer = build_renderer(loaded(tokenizer), EngineOptions())
    assert renderer.segments_are_exact
    assert "<s>" in renderer.separators
    assert renderer.encode(TEXT, add_special_tokens=True) == ids(tokenizer, TEXT, special=True)


def test_a_tokenizer_that_gives_other_tokens_is_not_used() -> None:
    with pytest.raises(CannotTokeniseError) as caught:
        build_renderer(loaded(byte_level(), probes=[("a", False, [0])]), EngineOptions())
    assert caught.value.kind is Kind.LOAD_FAILED


def test_special_tokens_that_are_text_are_no_separators() -> None:
    tokenizer = byte_level()
    tokenizer.encode_special_tokens = True
    renderer = build_renderer(loaded(tokenizer, encodes_special_tokens=True), EngineOptions())
    assert renderer.separators == ()
    assert renderer.encode(TEXT, add_special_tokens=False) == ids(tokenizer, TEXT)


def test_truncation_and_padding_of_the_file_are_dropped() -> None:
    tokenizer = byte_level()
    model = loaded(tokenizer)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=9)
    renderer = build_renderer(replace(model, tokenizer=tokenizer.to_str()), EngineOptions())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    assert renderer.encode(TEXT, add_special_tokens=False) == ids(tokenizer, TEXT)


def renderer() -> HfRenderer:
    return build_renderer(loaded(prefix_space()), EngineOptions())


def test_reading_requests() -> None:
    one = renderer()
    assert one.read(CHAT_ROUTE, BODY) == PromptText(TEXT, add_special_tokens=False)
    assert one.read(CHAT_ROUTE, {**BODY, "add_special_tokens": True}) == PromptText(TEXT, add_special_tokens=True)
    assert one.read(COMPLETION_ROUTE, {"prompt": "a"}) == PromptText("a", add_special_tokens=True)
    assert one.read(COMPLETION_ROUTE, {"prompt": [1, 2]}) == array("I", [1, 2])


@pytest.mark.parametrize(
    ("route", "fields", "kind"),
    [
        ("/v1/responses", {}, Kind.UNSUPPORTED_ROUTE),
        (CHAT_ROUTE, {**BODY, "truncate_prompt_tokens": 5}, Kind.UNSUPPORTED_FIELD),
        (CHAT_ROUTE, {**BODY, "mm_processor_kwargs": {}}, Kind.UNSUPPORTED_FIELD),
        (CHAT_ROUTE, {**BODY, "add_special_tokens": "yes"}, Kind.UNSUPPORTED_FIELD),
        (COMPLETION_ROUTE, {"prompt": "a", "suffix": "b"}, Kind.UNSUPPORTED_FIELD),
        (COMPLETION_ROUTE, {"prompt": "a", "prompt_embeds": "b"}, Kind.UNSUPPORTED_FIELD),
        (COMPLETION_ROUTE, {"prompt": "a", "add_special_tokens": None}, Kind.UNSUPPORTED_FIELD),
    ],
)
def test_requests_without_tokens(route: str, fields: dict[str, Any], kind: Kind) -> None:
    with pytest.raises(CannotTokeniseError) as caught:
        renderer().read(route, fields)
    assert caught.value.kind is kind


def test_chats_may_be_refused_and_completions_not() -> None:
    one = build_renderer(loaded(byte_level(), chat_refused="harmony"), EngineOptions())
    with pytest.raises(CannotTokeniseError):
        one.read(CHAT_ROUTE, BODY)
    assert one.read(COMPLETION_ROUTE, {"prompt": "a"}) == PromptText("a", add_special_tokens=True)


def test_text_that_is_none_has_no_tokens() -> None:
    with pytest.raises(CannotTokeniseError) as caught:
        renderer().encode("\ud800", add_special_tokens=False)
    assert caught.value.kind is Kind.FAILED


def load(folder: Path, engine_args: tuple[str, ...] = ()) -> tuple[str, TokenisedPrompt | NotTokenised]:
    """State of a model once it is loaded, and the answer to a chat; before that it was loading."""

    async def main() -> tuple[str, TokenisedPrompt | NotTokenised]:
        prompts = PromptTokenizer(TokenSettings())
        try:
            prompts.add_model("m", folder, engine_args)
            assert await prompts.tokenise("m", CHAT_ROUTE, BODY) == NotTokenised(Kind.LOADING)
            assert prompts.stats()["m"].state == "loading"
            await prompts.wait_loaded()
            answer = await prompts.tokenise("m", CHAT_ROUTE, BODY)
            return prompts.stats()["m"].state, answer
        finally:
            await prompts.close()

    return asyncio.run(main())


def test_loading_a_folder(tmp_path: Path) -> None:
    tokenizer = prefix_space()
    state, answer = load(save_model(tmp_path, tokenizer))
    assert state == "ready"
    assert isinstance(answer, TokenisedPrompt)
    assert answer.tokens.tobytes() == ids(tokenizer, TEXT)


def test_loading_with_the_engines_own_template(tmp_path: Path) -> None:
    template = tmp_path / "own.jinja"
    template.write_text("{{ messages[0].content }}\r\n")
    tokenizer = byte_level()
    folder = save_model(tmp_path / "model", tokenizer)
    _, answer = load(folder, ("--chat-template", str(template)))
    assert isinstance(answer, TokenisedPrompt)
    assert answer.tokens.tobytes() == ids(tokenizer, "Hello, 日本! <|im_end|>")
    _, answer = load(folder, ("--chat-template", "{{ 'literal' }}"))
    assert isinstance(answer, TokenisedPrompt)
    assert answer.tokens.tobytes() == ids(tokenizer, "literal")
    state, _ = load(folder, ("--chat-template", "missing.jinja"))
    assert state == "unsupported_engine"


def test_models_that_are_routed_by_load(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state, answer = load(tmp_path / "nothing")
    assert state == "load_failed"
    assert isinstance(answer, NotTokenised)
    folder = save_model(tmp_path / "own", byte_level(), architectures=["DeepseekV32ForCausalLM"])
    assert load(folder)[1] == NotTokenised(Kind.UNSUPPORTED_ENGINE, "DeepseekV32ForCausalLM has a renderer of its own")
    state, answer = load(folder, ("--tokenizer-mode", "slow"))
    assert answer == NotTokenised(Kind.UNSUPPORTED_ENGINE, "--tokenizer-mode")
    assert len([record for record in caplog.records if "routed by load" in record.message]) == 3


def test_closing_while_a_model_loads(tmp_path: Path) -> None:
    async def main() -> None:
        prompts = PromptTokenizer(TokenSettings())
        prompts.add_model("m", save_model(tmp_path, byte_level()))
        await asyncio.sleep(0.2)
        await prompts.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("config", "files"),
    [
        ({"is_encoder_decoder": True}, {}),
        ({}, {"consolidated.00.safetensors": "", "tekken.json": "{}"}),
        ({}, {"tokenizer_config.json": '{"auto_map": {"AutoTokenizer": [null, "t.T"]}}'}),
        ({}, {"tokenizer_config.json": '{"auto_map": ["t.T", null]}'}),
    ],
)
def test_models_whose_tokenizer_is_another(tmp_path: Path, config: dict[str, Any], files: dict[str, str]) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UnsupportedModelError):
        _check_model(tmp_path, config)


def test_chats_that_are_rendered_otherwise(tmp_path: Path) -> None:
    assert _refuse_chats(tmp_path, {"model_type": "llama"}, CHATML) == ""
    assert "harmony" in _refuse_chats(tmp_path, {"model_type": "gpt_oss"}, CHATML)
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_size": 1}))
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": CHATML}))
    assert _refuse_chats(tmp_path, {}, CHATML) == ""
    assert "chat_template.json" in _refuse_chats(tmp_path, {}, CHATML + " ")
