"""Small tokenizers of the shapes that models have, made with the tokenizers library: nothing is downloaded."""

import json
from collections.abc import Callable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CHATML = (
    "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.content is string %}{{ message.content }}{% endif %}"
    "{% if message.tool_calls %}{{ message.tool_calls | tojson }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ("<|im_start|>", "<|im_end|>", "<s>", "</s>")
_CORPUS = [
    "user assistant system tool The quick brown fox jumps over the lazy dog. Pack my box with five dozen liquor jugs.",
    "def f(x):\n    return x ** 2\n\nHello, world! I'll say it's 3.14 or 1,000.  two  spaces",
    "naïve café Привет мир 日本語のテキスト 中文 한국어 👍🏽",
] * 5


def byte_level() -> Tokenizer:
    """As GPT-2 and Qwen: byte-level BPE, ChatML tokens, one added token that is not special."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        _CORPUS, trainers.BpeTrainer(vocab_size=600, show_progress=False, initial_alphabet=alphabet)
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False)])
    return tokenizer


def overlapping() -> Tokenizer:
    """An added token that begins before another one and takes part of it."""
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("\n<|", normalized=False), AddedToken("<|im_end|>\n", normalized=False)])
    return tokenizer


def prefix_space() -> Tokenizer:
    """As GPT-2 with add_prefix_space and RoBERTa's post-processor: a space before each piece, tokens around it."""
    tokenizer = byte_level()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.post_processor = processors.RobertaProcessing(_named(tokenizer, "</s>"), _named(tokenizer, "<s>"))
    return tokenizer


def metaspace_first() -> Tokenizer:
    """As Llama 2 and Mistral now: the word marker goes before the text's first piece only; bos before the text."""
    return _sentencepiece(pre_tokenizers.Metaspace(prepend_scheme="first"), None)


def metaspace_always() -> Tokenizer:
    """The same with the marker before every piece."""
    return _sentencepiece(pre_tokenizers.Metaspace(prepend_scheme="always"), None)


def legacy_llama() -> Tokenizer:
    """As Llama 2 was first converted: a normaliser puts the marker, and there is no pre-tokeniser."""
    marker = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return _sentencepiece(None, marker)


def stripping() -> Tokenizer:
    """Added tokens that take white space from their neighbours, or stand as words only."""
    tokenizer = byte_level()
    tokenizer.add_special_tokens([
        AddedToken("<mask>", lstrip=True, normalized=False),
        AddedToken("<sep>", rstrip=True, normalized=False),
        AddedToken("WORD", single_word=True, normalized=False),
        AddedToken("<|im_sep|>", lstrip=True, rstrip=True, normalized=False),
        AddedToken("<norm>", normalized=True),
    ])  # fmt: skip
    return tokenizer


def word_piece() -> Tokenizer:
    """As BERT: lower case, accents dropped, [CLS] and [SEP] around the text."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[UNK]", "[CLS]", "[SEP]", *SPECIAL]
    tokenizer.train_from_iterator(
        _CORPUS, trainers.WordPieceTrainer(vocab_size=400, show_progress=False, special_tokens=special)
    )
    tokenizer.post_processor = processors.BertProcessing(_named(tokenizer, "[SEP]"), _named(tokenizer, "[CLS]"))
    return tokenizer


def split_pattern() -> Tokenizer:
    """As Llama 3: NFC and a pattern of its own before the bytes."""
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.NFC()
    pattern = Regex(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(pattern, "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    return tokenizer


SHAPES: tuple[Callable[[], Tokenizer], ...] = (
    byte_level, overlapping, prefix_space, metaspace_first, metaspace_always, legacy_llama, stripping, word_piece,
    split_pattern,
)  # fmt: skip


def save_model(folder: Path, tokenizer: Tokenizer, **config: object) -> Path:
    """A model's folder as transformers reads it, without weights."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHATML)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


def _sentencepiece(
    pre_tokenizer: pre_tokenizers.PreTokenizer | None, normalizer: normalizers.Normalizer | None
) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", *SPECIAL]
    alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer.train_from_iterator(
        _CORPUS, trainers.BpeTrainer(vocab_size=700, show_progress=False, special_tokens=[*special, *alphabet])
    )
    tree = json.loads(tokenizer.to_str())
    tree["added_tokens"] = [token for token in tree["added_tokens"] if token["content"] in special]
    tokenizer = Tokenizer.from_str(json.dumps(tree))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.normalizer = normalizer
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", None, [_named(tokenizer, "<s>")])
    return tokenizer


def _named(tokenizer: Tokenizer, token: str) -> tuple[str, int]:
    token_id = tokenizer.token_to_id(token)
    assert token_id is not None
    return token, token_id
