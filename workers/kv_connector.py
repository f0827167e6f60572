"""The NIXL hand-off as vLLM speaks it: bodies of the prefill and the decode call. Pure, stateless.

Pull mode (vLLM NixlConnector): the prefill reply carries `kv_transfer_params`, a lease on pinned blocks, which the
decode call spends. The parameters are opaque here except for the two that prove what they are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True, slots=True)
class KvHandle:
    """A lease on prefilled blocks, spent once by a decode. `params` go to the decode engine verbatim."""

    engine_id: str
    num_tokens: int
    params: Mapping[str, Any]


def prefill_body(body: Mapping[str, Any]) -> bytes:
    """The client's request, turned into one that only computes the prompt's blocks and leaves them for a peer."""
    kept = {name: value for name, value in body.items() if name not in _OUTPUT_FIELDS}
    return msgspec.json.encode({**kept, "max_tokens": 1, "stream": False, HANDLE_FIELD: {"do_remote_decode": True}})


def parse_handle(reply: bytes) -> KvHandle:
    """The handle in a prefill reply; raises HandleError where there is none."""
    try:
        params = msgspec.json.decode(reply)[HANDLE_FIELD]
        return KvHandle(str(params["remote_engine_id"]), int(params["remote_num_tokens"]), params)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise HandleError(f"the prefill reply carries no KV handle: {error!r}") from error


def decode_body(raw_body: bytes, handle: KvHandle) -> bytes:
    """The client's bytes with the handle spliced in before the closing brace; nothing else is re-serialised.

    `raw_body` is a JSON object with at least one field and without `kv_transfer_params`.
    """
    end = raw_body.rindex(b"}")
    return b"".join((raw_body[:end], b',"', HANDLE_FIELD.encode(), b'":', msgspec.json.encode(handle.params), b"}"))
