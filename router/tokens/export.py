"""Reads a model's tokenizer with transformers and prints what the router needs of it.

    python -m router.tokens.export FOLDER

A process of its own, because choosing the tokenizer's class, and converting old formats, takes transformers'
AutoTokenizer, as in vLLM; importing that costs a second, and 300 MB and three seconds more where it finds torch. It
ends, and the router keeps the tokenizer only.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Final

import msgspec

from router.tokens.loaded import PROBE_TEXTS, LoadedTokenizer

# Architectures whose prompts vLLM prepares with code instead of a template, or with another tokenizer.
# Source: vllm/config/model.py, "Set default tokenizer modes based on model architecture".
_OWN_RENDERER: Final = frozenset(
    """
    DeepseekV32ForCausalLM DeepseekV41ForCausalLM DeepseekV4ForCausalLM DeepseekV4ForConditionalGeneration
    InklingForCausalLM InklingForConditionalGeneration KimiK3ForConditionalGeneration MoonshotKimiaForCausalLM
    """.split()  # noqa: SIM905  a list of names
)
# Source: vllm/tokenizers/registry.py, `_MODEL_TYPES_WITH_INCORRECT_TOKENIZER_CLASS`.
_PLAIN_CLASS: Final = frozenset({"internlm2", "step3_vl", "step3p7", "unlimited-ocr", "unlimited_ocr"})


class UnsupportedModelError(Exception):
    """vLLM makes this model's prompts in a way that is not mirrored; the message says which."""


def export(folder: Path) -> LoadedTokenizer:
    """Read the tokenizer in `folder`; raises UnsupportedModelError, and whatever transformers raises."""
    config = _read_json(folder / "config.json")
    _check_model(folder, config)
    tokenizer = _load(folder, config.get("model_type"))
    if not tokenizer.is_fast:
        raise UnsupportedModelError("its tokenizer is not one of the tokenizers library")
    templates = tokenizer.chat_template
    return LoadedTokenizer(
        tokenizer=tokenizer.backend_tokenizer.to_str(),
        templates=templates,
        special_tokens=dict(tokenizer.special_tokens_map),
        encodes_special_tokens=bool(tokenizer.split_special_tokens),
        chat_refused=_refuse_chats(folder, config, templates),
        probes=[
            (text, special, _encode(tokenizer, text, special)) for text in PROBE_TEXTS for special in (False, True)
        ],
    )


def _check_model(folder: Path, config: Mapping[str, Any]) -> None:
    if own := _OWN_RENDERER.intersection(config.get("architectures") or ()):
        raise UnsupportedModelError(f"{min(own)} has a renderer of its own")
    if config.get("is_encoder_decoder"):
        raise UnsupportedModelError("it has an encoder of its own")
    names = [path.name for path in folder.glob("*")]
    if any(fnmatch(name, "consolidated*.safetensors") for name in names) and any(
        fnmatch(name, "tekken.json") or fnmatch(name, "tokenizer.model.v*") for name in names
    ):
        raise UnsupportedModelError("vLLM uses Mistral's own tokenizer for it")
    code = _read_json(folder / "tokenizer_config.json").get("auto_map")
    if isinstance(code, list) or (isinstance(code, dict) and "AutoTokenizer" in code):
        raise UnsupportedModelError("its tokenizer is code from its repository")


def _refuse_chats(folder: Path, config: Mapping[str, Any], templates: object) -> str:
    if config.get("model_type") == "gpt_oss":
        return "gpt_oss chats are made by harmony"
    # vLLM prefers the processor's template, which may have a file of its own.
    for name in ("chat_template.json", "processor_config.json"):
        template = _read_json(folder / name).get("chat_template")
        if template is not None and template != templates:
            return f"{name} has another chat template"
    return ""


def _load(folder: Path, model_type: object) -> Any:
    # transformers would import torch to find out that it is not needed.
    sys.modules["torch"] = None  # type: ignore[assignment]
    from transformers import AutoTokenizer
    from transformers.tokenization_utils_tokenizers import TokenizersBackend

    load: Callable[..., Any] = AutoTokenizer.from_pretrained
    if model_type in _PLAIN_CLASS:
        load = TokenizersBackend.from_pretrained
    # vLLM's arguments (vllm/tokenizers/registry.py), except that it may trust code.
    return load(
        str(folder), trust_remote_code=False, local_files_only=True, mistral_format=False, truncation_side="left"
    )


def _encode(tokenizer: Any, text: str, special: bool) -> list[int]:
    # As vllm/renderers/base.py calls it; the limit is never reached.
    ids = tokenizer(text, truncation=True, max_length=1 << 20, add_special_tokens=special)["input_ids"]
    return [int(token) for token in ids]


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty where there is no such file."""
    if not path.exists():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}


def main() -> int:
    """Entry point: print the folder's tokenizer as JSON."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    output, sys.stdout = sys.stdout, sys.stderr  # for whatever libraries print
    try:
        loaded = export(Path(sys.argv[1]))
    except UnsupportedModelError as error:
        loaded_or_error: object = {"unsupported": str(error)}
    else:
        loaded_or_error = loaded
    output.buffer.write(msgspec.json.encode(loaded_or_error))
    output.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
