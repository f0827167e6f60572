"""A tiny mixture-of-experts model with random weights, the same every time. `python -m tests.moe_model TARGET`."""

import shutil
import subprocess
import sys
from pathlib import Path

from controlplane.app import demo_model_path
from controlplane.config import Config
from workers.demo_model import is_converted

LAYERS = 2
EXPERTS = 8
TOP_K = 2
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_REPOSITORY = Path(__file__).parents[1]


def make_moe_model(target: Path) -> None:
    """Write the checkpoint, in a process of its own: torch and transformers stay out of the tests'."""
    demo = demo_model_path(Config())
    if not is_converted(demo):
        subprocess.run([sys.executable, "-W", "ignore", "-m", "workers.demo_model", str(demo)], check=True)
    command = [sys.executable, "-W", "ignore", "-m", "tests.moe_model", str(target)]
    subprocess.run(command, check=True, cwd=_REPOSITORY, stderr=subprocess.DEVNULL)
    for name in _TOKENIZER_FILES:
        shutil.copy(demo / name, target)


def main() -> None:
    """Save random weights."""
    import torch
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        vocab_size=49152,  # the demo model's
        hidden_size=128,
        intermediate_size=256,
        moe_intermediate_size=128,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        num_experts=EXPERTS,
        num_experts_per_tok=TOP_K,
        norm_topk_prob=True,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.2,  # large, so that a wrong expert shows in the logprobs
    )
    torch.manual_seed(0)
    Qwen3MoeForCausalLM(config).float().save_pretrained(sys.argv[1])


if __name__ == "__main__":
    main()
