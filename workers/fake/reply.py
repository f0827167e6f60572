"""What a fake engine answers: bodies and stream events in the shape of vLLM 0.32's OpenAI server. Pure."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from workers.fake.model import Sampled, detokenize
from workers.fake.request import GenerationRequest

DONE_EVENT = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Output:
    """One more token of one choice. `text` may lag behind the token: the beginning of a stop string is held back."""

    index: int  # of the choice
    sampled: Sampled
    text: str
    finish_reason: str | None
    stop_reason: str | int | None


@dataclass(slots=True)
class Tally:
    """What a request has cost so far."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    handle: Mapping[str, Any] | None = None  # the `kv_transfer_params` a prefill answers with


def sse_event(value: object) -> bytes:
    """One server-sent event with a JSON value."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


class ReplyWriter:
    """Builds one request's answer."""

    def __init__(self, request: GenerationRequest, *, request_id: str, model: str, created: int) -> None:
        self._request = request
        self._head = {"id": request_id, "created": created, "model": model}
        self._made = [0] * request.num_sequences
        self._characters = [0] * request.num_sequences

    def opening(self) -> Iterator[bytes]:
        """Events that go before the first token; a chat begins with one for the role."""
        for index in range(self._request.num_sequences if self._request.chat else 0):
            delta = {"role": "assistant", "content": ""}
            chunk = self._chunk({"index": index, "delta": delta, "logprobs": None, "finish_reason": None})
            if self._request.return_token_ids:
                chunk["prompt_token_ids"] = self._request.prompts[0]
            yield sse_event(self._with_usage(chunk, index))

    def event(self, output: Output) -> bytes:
        """The event of one token."""
        first = self._made[output.index] == 0
        self._made[output.index] += 1
        key: dict[str, Any] = {"delta": {"content": output.text}} if self._request.chat else {"text": output.text}
        choice = {"index": output.index, **key, "logprobs": self._logprobs(output.index, [output])}
        choice["finish_reason"] = output.finish_reason
        if output.finish_reason is not None or not self._request.chat:
            choice["stop_reason"] = output.stop_reason
        if self._request.return_token_ids:
            choice["token_ids"] = [output.sampled.token_id]
            if first and not self._request.chat:
                choice["prompt_token_ids"] = self._prompt_of(output.index)
        return sse_event(self._with_usage(self._chunk(choice), output.index))

    def closing(self, tally: Tally) -> Iterator[bytes]:
        """Events that go after the last token."""
        if self._request.include_usage:
            yield sse_event({**self._chunk(), "usage": _without_nulls(_usage(tally))})
        yield DONE_EVENT

    def whole(self, outputs: Iterable[Output], tally: Tally) -> bytes:
        """The answer to a request that does not stream."""
        by_choice: list[list[Output]] = [[] for _ in range(self._request.num_sequences)]
        for output in outputs:
            by_choice[output.index].append(output)
        return msgspec.json.encode(
            {
                **self._head,
                "object": "chat.completion" if self._request.chat else "text_completion",
                "choices": [self._choice(index, parts) for index, parts in enumerate(by_choice)],
                "service_tier": None,
                "system_fingerprint": None,
                "usage": _usage(tally),
                "prompt_token_ids": self._prompt_of(0) if self._request.return_token_ids else None,
                "kv_transfer_params": tally.handle,
                "ec_transfer_params": None,
                "metrics": None,
            }
        )

    def _choice(self, index: int, parts: list[Output]) -> dict[str, Any]:
        text = "".join(part.text for part in parts)
        choice: dict[str, Any] = {"index": index}
        if self._request.chat:
            choice["message"] = {"role": "assistant", "content": text, "refusal": None, "reasoning": None}
        else:
            choice["text"] = text
            choice["prompt_token_ids"] = self._prompt_of(index) if self._request.return_token_ids else None
        return choice | {
            "logprobs": self._logprobs(index, parts),
            "finish_reason": parts[-1].finish_reason,
            "stop_reason": parts[-1].stop_reason,
            "token_ids": [part.sampled.token_id for part in parts] if self._request.return_token_ids else None,
        }

    def _chunk(self, *choices: dict[str, Any]) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self._request.chat else "text_completion"
        return {**self._head, "object": kind, "choices": choices}

    def _with_usage(self, chunk: dict[str, Any], index: int) -> dict[str, Any]:
        if self._request.continuous_usage:
            prompt, made = len(self._prompt_of(index)), self._made[index]
            chunk["usage"] = {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}
        return chunk

    def _prompt_of(self, index: int) -> tuple[int, ...]:
        return self._request.prompts[index // self._request.n]

    def _logprobs(self, index: int, outputs: list[Output]) -> dict[str, Any] | None:
        count = self._request.num_logprobs
        if count is None:
            return None
        sampled = [output.sampled for output in outputs]
        if self._request.chat:
            return {"content": [_chat_logprob(token, count) for token in sampled]}
        offsets = range(self._characters[index], self._characters[index] + len(sampled))
        self._characters[index] += len(sampled)
        return {
            "text_offset": list(offsets),
            "token_logprobs": [token.logprob for token in sampled],
            "tokens": [detokenize((token.token_id,)) for token in sampled],
            "top_logprobs": [{detokenize((key,)): value for key, value in token.top(count + 1)} for token in sampled],
        }


def _chat_logprob(sampled: Sampled, count: int) -> dict[str, Any]:
    candidates = [
        {"token": detokenize((token,)), "logprob": logprob, "bytes": [token]}
        for token, logprob in sampled.top(max(1, count))
    ]
    return {**candidates[0], "top_logprobs": candidates[:count]}


def _usage(tally: Tally) -> dict[str, Any]:
    return {
        "prompt_tokens": tally.prompt_tokens,
        "total_tokens": tally.prompt_tokens + tally.completion_tokens,
        "completion_tokens": tally.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": tally.cached_tokens},
        "completion_tokens_details": None,
    }


def _without_nulls(usage: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in usage.items() if value is not None}
