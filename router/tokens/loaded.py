"""What passes from the process that reads a model's tokenizer to the router. Pure."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class LoadedTokenizer:
    """A model's tokenizer and chat template."""

    tokenizer: str  # JSON of the tokenizers library
    templates: str | dict[str, str] | None
    special_tokens: dict[str, Any]  # variables of the template, such as bos_token
    encodes_special_tokens: bool  # as plain text, where they occur in a prompt
    chat_refused: str  # why chats are prepared by other means than the template; empty: they are not
    probes: list[tuple[str, bool, list[int]]]  # text, add_special_tokens, the token ids transformers makes of it


# Texts that tell tokenizers apart.
PROBE_TEXTS = (
    "", " ", "a", " a", "a ", "  two  spaces  ", "\n", "\n\n", " \n ", "\t tab\r\nline\rend", "Hello, world!",
    "user\nWhat's up? I'll say: \"it's 3.14159 or 1,000,000\".", "def f(x):\n    return x ** 2  # square\n",
    "naïve café Ångström ﬁ ½ Ⅷ", "e\u0301 a\u030a (combining)", "\u00a0no-break\u2003em\u200bzero\ufeff",
    "日本語のテキスト、中文字符。한국어", "Привет мир Ελληνικά עברית العربية हिन्दी ไทย",
    "👍🏽 👨\u200d👩\u200d👧 🇫🇷 ❤\ufe0f", "\u2581under\u2581score▁",
    "<", "<|", "|>", "< |im_end| >", "<s>", "</s>", "[INST] [/INST]", "<|endoftext|>", "0123456789" * 7,
    "\x00\x01\x7f", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "ßſİı", "MiXeD CaSe", "\U0001d54f\U0010ffff",
)  # fmt: skip
