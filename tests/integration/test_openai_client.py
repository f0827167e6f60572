"""The official `openai` client against the real cluster: what people point at Headrace."""

import json
from collections.abc import Iterator

import openai
import pytest

from tests.stack import Stack

pytestmark = pytest.mark.cluster

WEATHER_TOOL: openai.types.chat.ChatCompletionFunctionToolParam = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def client(cluster: Stack) -> Iterator[openai.OpenAI]:
    """A client as the README shows it."""
    with openai.OpenAI(base_url=f"{cluster.http_url}/v1", api_key="none", max_retries=0, timeout=180) as client:
        yield client


def ask(text: str) -> list[openai.types.chat.ChatCompletionMessageParam]:
    """A conversation of one message."""
    return [{"role": "user", "content": text}]


def test_models(client: openai.OpenAI, cluster: Stack) -> None:
    assert [model.id for model in client.models.list()] == [cluster.model]
    assert client.models.retrieve(cluster.model).owned_by == "headrace"


def test_chat(client: openai.OpenAI, cluster: Stack) -> None:
    answer = client.chat.completions.create(model=cluster.model, messages=ask("What is the capital of France?"))
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0


def test_completion(client: openai.OpenAI, cluster: Stack) -> None:
    answer = client.completions.create(model=cluster.model, prompt="The capital of France is", max_tokens=4)
    assert "Paris" in answer.choices[0].text


def test_stream_with_usage(client: openai.OpenAI, cluster: Stack) -> None:
    chunks = list(
        client.chat.completions.create(
            model=cluster.model,
            messages=ask("What is the capital of France?"),
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert "Paris" in text
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == chunks[-1].usage.prompt_tokens + chunks[-1].usage.completion_tokens


def test_tools(client: openai.OpenAI, cluster: Stack) -> None:
    answer = client.chat.completions.create(
        model=cluster.model,
        messages=ask("How is the weather in Paris?"),
        tools=[WEATHER_TOOL],
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
        max_tokens=100,
    )
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")


def test_json_schema(client: openai.OpenAI, cluster: Stack) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model=cluster.model,
        messages=ask("Name the capital of France as JSON."),
        response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": schema}},
        max_tokens=40,
    )
    assert json.loads(answer.choices[0].message.content or "")["city"] in ("Paris", "Rome")


def test_logprobs(client: openai.OpenAI, cluster: Stack) -> None:
    answer = client.chat.completions.create(
        model=cluster.model, messages=ask("Say yes."), max_tokens=3, logprobs=True, top_logprobs=2
    )
    assert answer.choices[0].logprobs is not None
    tokens = answer.choices[0].logprobs.content or []
    assert len(tokens) == 3
    assert all(token.logprob <= 0 and len(token.top_logprobs) >= 2 for token in tokens)


def test_stop(client: openai.OpenAI, cluster: Stack) -> None:
    answer = client.completions.create(
        model=cluster.model, prompt="Count: one, two, three, four,", max_tokens=12, stop=["six"]
    )
    assert answer.choices[0].finish_reason == "stop"
    assert "six" not in answer.choices[0].text


def test_two_choices(client: openai.OpenAI, cluster: Stack) -> None:
    """n > 1 is never handed off, and still answered."""
    answer = client.chat.completions.create(
        model=cluster.model, messages=ask("Tell me a word."), max_tokens=4, n=2, temperature=1.0, seed=3
    )
    assert sorted(choice.index for choice in answer.choices) == [0, 1]
    assert all(choice.message.content for choice in answer.choices)


def test_seed_repeats(client: openai.OpenAI, cluster: Stack) -> None:
    texts = {
        client.completions.create(
            model=cluster.model, prompt="Once upon a time", max_tokens=6, temperature=1.0, seed=11
        )
        .choices[0]
        .text
        for _ in range(2)
    }
    assert len(texts) == 1


def test_engine_specific_fields_pass(client: openai.OpenAI, cluster: Stack) -> None:
    answer = client.completions.create(
        model=cluster.model, prompt="a b c", max_tokens=5, extra_body={"min_tokens": 5, "top_k": 5, "ignore_eos": True}
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5


def test_an_unknown_model_is_the_clients_not_found_error(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="does not exist here"):
        client.chat.completions.create(model="no-such-model", messages=ask("hi"))


def test_a_prompt_over_the_context_is_the_clients_bad_request(client: openai.OpenAI, cluster: Stack) -> None:
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        client.completions.create(model=cluster.model, prompt="word " * 3000, max_tokens=5)
