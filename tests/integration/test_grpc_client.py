"""gRPC against the real cluster: the same calls that test_openai_client.py makes over HTTP."""

import json
from collections.abc import Iterator

import grpc
import pytest
from google.protobuf import json_format
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from router._generated.headrace.v1 import inference_pb2 as pb
from router._generated.headrace.v1 import inference_pb2_grpc as pb_grpc
from tests.engine_counters import engine_counters, wait_until
from tests.stack import Stack

pytestmark = pytest.mark.cluster

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def channel(cluster: Stack) -> Iterator[grpc.Channel]:
    """One connection."""
    with grpc.insecure_channel(cluster.grpc_target) as channel:
        yield channel


@pytest.fixture(scope="module")
def stub(channel: grpc.Channel) -> pb_grpc.InferenceStub:
    """The client."""
    return pb_grpc.InferenceStub(channel)


def chat(cluster: Stack, text: str, **fields: object) -> pb.GenerateRequest:
    """A conversation of one message; further fields in JSON form."""
    message = {"role": "user", "content": text}
    body = {"model": cluster.model, "chat": {"messages": [message], **fields.pop("chat", {})}, **fields}  # type: ignore[dict-item]
    return json_format.ParseDict(body, pb.GenerateRequest())


def text_of(responses: list[pb.GenerateResponse], index: int = 0) -> str:
    """The text of one completion."""
    return "".join(choice.text for response in responses for choice in response.choices if choice.index == index)


def test_models(stub: pb_grpc.InferenceStub, cluster: Stack) -> None:
    assert [model.name for model in stub.ListModels(pb.ListModelsRequest(), timeout=30).models] == [cluster.model]
    model = stub.GetModel(pb.GetModelRequest(name=cluster.model), timeout=30)
    assert model.max_model_len_tokens == 2304
    with pytest.raises(grpc.RpcError) as caught:
        stub.GetModel(pb.GetModelRequest(name="no-such-model"), timeout=30)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_chat_with_usage(stub: pb_grpc.InferenceStub, cluster: Stack) -> None:
    responses = list(stub.Generate(chat(cluster, "What is the capital of France?"), timeout=120))
    assert "Paris" in text_of(responses)
    assert responses[-1].usage.prompt_tokens == 37
    assert responses[-1].usage.completion_tokens > 0
    finished = [choice.finish_reason for response in responses for choice in response.choices if choice.finish_reason]
    assert finished == ["stop"]


def test_completion_from_text_and_from_token_ids(stub: pb_grpc.InferenceStub, cluster: Stack) -> None:
    sampling = pb.Sampling(max_tokens=4, temperature=0)
    request = pb.GenerateRequest(model=cluster.model, prompt="The capital of France is", sampling=sampling)
    assert "Paris" in text_of(list(stub.Generate(request, timeout=120)))
    request = pb.GenerateRequest(model=cluster.model, token_ids=pb.TokenIds(ids=[504, 3575, 282, 4649, 314]))
    request.sampling.max_tokens = 4
    responses = list(stub.Generate(request, timeout=120))
    assert responses[-1].usage.prompt_tokens == 5


def test_tools(stub: pb_grpc.InferenceStub, cluster: Stack) -> None:
    tool = {"type": "function", "function": {"name": "get_weather", "strict": True, "parameters": CITY}}
    request = chat(
        cluster,
        "How is the weather in Paris?",
        chat={"tools": [tool], "tool_choice": "required"},
        sampling={"max_tokens": 100},
    )
    responses = list(stub.Generate(request, timeout=180))
    deltas = [delta for response in responses for choice in response.choices for delta in choice.tool_calls]
    assert "get_weather" in {delta.name for delta in deltas}
    assert json.loads("".join(delta.arguments for delta in deltas))["city"] in ("Paris", "Rome")


def test_json_schema(stub: pb_grpc.InferenceStub, cluster: Stack) -> None:
    response_format = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}
    request = chat(
        cluster,
        "Name the capital of France as JSON.",
        sampling={"max_tokens": 40},
        extra={"response_format": response_format},
    )
    assert json.loads(text_of(list(stub.Generate(request, timeout=180))))["city"] in ("Paris", "Rome")


def test_logprobs(stub: pb_grpc.InferenceStub, cluster: Stack) -> None:
    request = chat(cluster, "Say yes.", sampling={"max_tokens": 3, "top_logprobs": 2})
    responses = list(stub.Generate(request, timeout=120))
    tokens = [token for response in responses for choice in response.choices for token in choice.logprobs]
    assert len(tokens) == 3
    assert all(token.logprob <= 0 and len(token.top) >= 2 for token in tokens)


def test_stop_and_two_choices(stub: pb_grpc.InferenceStub, cluster: Stack) -> None:
    sampling = pb.Sampling(max_tokens=12, temperature=0, stop=["six"])
    prompt = "Count: one, two, three, four,"
    request = pb.GenerateRequest(model=cluster.model, prompt=prompt, sampling=sampling)
    assert "six" not in text_of(list(stub.Generate(request, timeout=120)))
    request = chat(cluster, "Tell me a word.", sampling={"max_tokens": 4, "n": 2, "temperature": 1.0, "seed": 3})
    responses = list(stub.Generate(request, timeout=120))
    assert text_of(responses, 0)
    assert text_of(responses, 1)


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (pb.GenerateRequest(), grpc.StatusCode.INVALID_ARGUMENT),
        (pb.GenerateRequest(model="no-such-model", prompt="x"), grpc.StatusCode.NOT_FOUND),
    ],
)
def test_bad_input(stub: pb_grpc.InferenceStub, request_: pb.GenerateRequest, code: grpc.StatusCode) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.Generate(request_, timeout=60))
    assert caught.value.code() is code
    assert caught.value.details()


def test_a_prompt_over_the_context(stub: pb_grpc.InferenceStub, cluster: Stack) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.Generate(pb.GenerateRequest(model=cluster.model, prompt="word " * 3000), timeout=60))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "maximum context length" in (caught.value.details() or "")


@pytest.mark.parametrize("how", ["deadline", "cancel"])
def test_deadline_and_cancellation_stop_the_engine(stub: pb_grpc.InferenceStub, cluster: Stack, how: str) -> None:
    decode = cluster.workers("decode")[0]["address"]
    request = pb.GenerateRequest(model=cluster.model, prompt="A very long story about a mill. " * 4)
    request.sampling.max_tokens = 1500
    request.extra["ignore_eos"] = True
    call = stub.Generate(request, timeout=8 if how == "deadline" else 120)
    with pytest.raises(grpc.RpcError) as caught:
        for number, _ in enumerate(call):
            if how == "cancel" and number == 3:
                call.cancel()
    expected = grpc.StatusCode.DEADLINE_EXCEEDED if how == "deadline" else grpc.StatusCode.CANCELLED
    assert caught.value.code() is expected
    wait_until(lambda: engine_counters(decode)["vllm:num_requests_running"] == 0, "the engine has stopped", 30)


def test_health_and_reflection(channel: grpc.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    answer = health.Check(health_pb2.HealthCheckRequest(service="headrace.v1.Inference"), timeout=30)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    (listed,) = reflection.ServerReflectionInfo(iter([request]), timeout=30)
    names = {service.name for service in listed.list_services_response.service}
    assert {"headrace.v1.Inference", "grpc.health.v1.Health"} <= names
