"""The NIXL hand-off as vLLM speaks it: bodies of the prefill and the decode call. Pure, stateless.

Pull mode (vLLM NixlConnector): the prefill reply carries `kv_transfer_params`, a lease on pinned blocks, which the
decode call spends. The parameters are opaque here except for the two that prove what they are.
"""

from dataclasses import dataclass

import msgspec

HANDLE_FIELD = "kv_transfer_params"

# Fields that ask for output or its form: the prefill call makes one token that nobody sees, and some of them are an
# error without the others. What shapes the prompt must stay, or the decode would read the blocks of other tokens:
# messages, tools, chat_template_kwargs, ..., and response_format, which some chat renderers write into the prompt.
_OUTPUT_FIELDS = frozenset(
    {
        "stream",
        "stream_options",
        "max_tokens",
        "max_completion_tokens",
        "min_tokens",
        "logprobs",
        "top_logprobs",
        "logprob_token_ids",
        "structured_outputs",
        "stop",
        "stop_token_ids",
        "thinking_token_budget",
    }
)


class HandleError(Exception):
    """A prefill reply without a usable handle."""


_PREFILL_FIELDS = {
    "max_tokens": msgspec.Raw(b"1"),
    "stream": msgspec.Raw(b"false"),
    HANDLE_FIELD: msgspec.Raw(b'{"do_remote_decode":true}'),
}


@dataclass(frozen=True, slots=True)
class KvHandle:
    """A lease on prefilled blocks, spent once by a decode. `params` go to the decode engine verbatim, as JSON."""

    engine_id: str
    num_tokens: int
    params: bytes


def prefill_body(raw_body: bytes) -> bytes:
    """The client's request, turned into one that only computes the prompt's blocks and leaves them for a peer.

    `raw_body` is a JSON object. The values that stay are the client's bytes: nothing is decoded and written anew.
    """
    fields = _OBJECT.decode(raw_body)
    for name in _OUTPUT_FIELDS & fields.keys():
        del fields[name]
    return msgspec.json.encode(fields | _PREFILL_FIELDS)


def parse_handle(reply: bytes) -> KvHandle:
    """The handle in a prefill reply; raises HandleError where there is none."""
    try:
        raw = _REPLY.decode(reply).kv_transfer_params
        params = _PARAMS.decode(raw)
        return KvHandle(params.remote_engine_id, params.remote_num_tokens, bytes(raw))
    except (ValueError, RecursionError) as error:  # msgspec's own errors are ValueErrors
        raise HandleError(f"the prefill reply carries no KV handle: {error!r}") from error


def decode_body(raw_body: bytes, handle: KvHandle) -> tuple[bytes, ...]:
    """The client's bytes with the handle spliced in before the closing brace, in parts; nothing is re-serialised.

    `raw_body` is a JSON object with at least one field. A `kv_transfer_params` of the client's own is a null
    (`router/openai.py`), and of a name that is there twice the last one counts.
    """
    end = raw_body.rindex(b"}")
    return raw_body[:end], b',"' + HANDLE_FIELD.encode() + b'":', handle.params, b"}"


class _Reply(msgspec.Struct):
    kv_transfer_params: msgspec.Raw


class _Params(msgspec.Struct):
    remote_engine_id: str
    remote_num_tokens: int


_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_REPLY = msgspec.json.Decoder(_Reply)
_PARAMS = msgspec.json.Decoder(_Params)
