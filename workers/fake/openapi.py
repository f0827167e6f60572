"""The fake engine's description of itself: /openapi.json, /v1/models and /kv_event_sources as vLLM 0.32 has them."""

from typing import Any

from workers.fake.settings import FakeSettings

VERSION = "0.32.0"  # the vLLM release whose HTTP the fake speaks

# Field names: a real engine's /openapi.json.
_SHARED_FIELDS = """
    add_special_tokens allowed_token_ids bad_words cache_salt ec_transfer_params echo frequency_penalty ignore_eos
    include_stop_str_in_output kv_transfer_params length_penalty logit_bias logprob_token_ids logprobs max_tokens min_p
    min_tokens mm_payload model n presence_penalty priority prompt_logprobs repetition_detection repetition_penalty
    request_id response_format return_mm_kwargs return_token_ids return_token_offsets return_tokens_as_token_ids
    routed_experts_prompt_start seed session_id skip_special_tokens spaces_between_special_tokens stop stop_token_ids
    stream stream_interval stream_options structured_outputs temperature thinking_token_budget top_k top_p
    truncate_prompt_tokens truncation_side use_beam_search user vllm_xargs watermarking
"""
_COMPLETION_FIELDS = "prompt prompt_embeds suffix"
_CHAT_FIELDS = """
    add_generation_prompt chat_template chat_template_kwargs continue_final_message documents include_reasoning
    max_completion_tokens media_io_kwargs messages mm_processor_kwargs parallel_tool_calls reasoning_effort
    return_prompt_text tool_choice tools top_logprobs
"""
_SCHEMAS = {
    "ChatCompletionRequest": _SHARED_FIELDS + _CHAT_FIELDS,
    "CompletionRequest": _SHARED_FIELDS + _COMPLETION_FIELDS,
    "TokenizeCompletionRequest": "model prompt add_special_tokens return_token_strs",
    "TokenizeChatRequest": """
        add_generation_prompt add_special_tokens chat_template chat_template_kwargs continue_final_message
        media_io_kwargs messages mm_processor_kwargs model return_token_strs tools
    """,
    "DetokenizeRequest": "model tokens",
}
_POST_ROUTES = {
    "/v1/chat/completions": ("ChatCompletionRequest",),
    "/v1/completions": ("CompletionRequest",),
    "/tokenize": ("TokenizeCompletionRequest", "TokenizeChatRequest"),
    "/detokenize": ("DetokenizeRequest",),
}
_GET_ROUTES = ("/health", "/version", "/v1/models", "/metrics", "/kv_event_sources")


def openapi() -> dict[str, Any]:
    """What /openapi.json answers. The routes under /fake are left out: no real engine has them."""
    paths: dict[str, Any] = {path: {"get": _operation(path)} for path in _GET_ROUTES}
    for path, schemas in _POST_ROUTES.items():
        references = [{"$ref": f"#/components/schemas/{name}"} for name in schemas]
        schema = references[0] if len(references) == 1 else {"anyOf": references}
        body = {"content": {"application/json": {"schema": schema}}, "required": True}
        paths[path] = {"post": {**_operation(path), "requestBody": body}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "FastAPI", "version": "0.1.0"},
        "paths": paths,
        "components": {"schemas": {name: _schema(name, fields) for name, fields in _SCHEMAS.items()}},
    }


def model_list(settings: FakeSettings, created: int) -> dict[str, Any]:
    """What /v1/models answers."""
    card = {
        "id": settings.model,
        "object": "model",
        "created": created,
        "owned_by": "vllm",
        "root": settings.model,
        "parent": None,
        "max_model_len": settings.max_model_len_tokens,
        "permission": [],
    }
    as_adapter = {**card, "parent": settings.model}
    adapters = [{**as_adapter, "id": name, "root": f"/adapters/{name}"} for name in settings.adapters]
    return {"object": "list", "data": [card, *adapters]}


def kv_event_sources(settings: FakeSettings, *, topic: str, buffer_steps: int) -> dict[str, Any]:
    """What /kv_event_sources answers: the publisher of each data-parallel rank; empty where nothing is published."""
    if settings.kv_events_endpoint is None:
        return {}
    source = {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": settings.kv_events_endpoint,
        "replay_endpoint": settings.kv_replay_endpoint,
        "buffer_steps": buffer_steps,
        "hwm": 100_000,
        "max_queue_size": 100_000,
        "topic": topic,
    }
    return {"0": source}


def _operation(path: str) -> dict[str, Any]:
    return {"summary": path, "responses": {"200": {"description": "Successful Response"}}}


def _schema(name: str, fields: str) -> dict[str, Any]:
    properties = {field: {"title": field} for field in sorted(fields.split())}
    return {"title": name, "type": "object", "additionalProperties": True, "properties": properties}
