"""values.schema.json: made from the config types, and what helm says with it."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from controlplane import chart_values
from controlplane.config import Config
from tests.helm.chart import CHART, HelmError, render_values


def test_the_committed_schema_is_the_generated_one() -> None:
    committed = (CHART / "values.schema.json").read_text()
    assert committed == chart_values.render(), "python -m controlplane.chart_values > helm/headrace/values.schema.json"


def test_every_section_of_the_config_is_in_it() -> None:
    schema = chart_values.values_schema()
    assert set(schema["$defs"]["Config"]["properties"]) == set(Config.model_fields)
    assert schema["$defs"]["Config"]["additionalProperties"] is False


@pytest.mark.parametrize(
    ("values", "key", "said"),
    [
        ({"config": {"engine": {"dtype": "int4"}}}, "/config/engine/dtype", "value must be one of 'auto'"),
        ({"config": {"engine": {"htpp_port": 1}}}, "/config/engine", "'htpp_port' not allowed"),
        ({"config": {"pools": {"decode": -1}}}, "/config/pools/decode", "got -1, want 0"),
        (
            {"config": {"slo": {"classes": {"chat": {"ttft_s": "fast"}}}}},
            "/config/slo/classes/chat/ttft_s",
            "got string",
        ),
        ({"config": {"nonsense": {}}}, "/config", "'nonsense' not allowed"),
        ({"mode": "docker"}, "/mode", "value must be one of 'plain', 'kuberay'"),
        ({"worker": {"sharedMemory": "lots"}}, "/worker/sharedMemory", "'lots' does not match pattern"),
        ({"worker": {"pools": {"decoder": {}}}}, "/worker/pools", "'decoder' not allowed"),
        ({"secrets": {"tls": {"in": ["engine"]}}}, "/secrets/tls", "missing property 'secret'"),
        ({"image": {"repository": ""}}, "/image/repository", "minLength"),
        ({"imgae": {}}, "", "'imgae' not allowed"),
    ],
)
def test_bad_values_are_refused_by_key_and_value(values: dict[str, Any], key: str, said: str) -> None:
    with pytest.raises(HelmError) as raised:
        render_values(values)
    assert f"at '{key}'" in str(raised.value)
    assert said in str(raised.value)


# What a YAML reader may take for something else.
_TRAPS = st.sampled_from(
    [
        "yes",
        "on",
        "null",
        "~",
        "1e3",
        "0x10",
        "12:30",
        "1_000",
        "0o7",
        "2026-11-22",
        ".5",
        "{{ x }}",
        "- a",
        "a: b",
        "#c",
    ]
)


@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow], phases=[Phase.explicit, Phase.generate]
)
@given(
    texts=st.lists(
        _TRAPS | st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=30), max_size=40
    ),
    tokens=st.integers(16, 2**53),
    ttft_s=st.floats(1e-3, 1e3),
)
@example(texts=["yes", "12:30", "1_000", " lead", "trail ", "'\"", "a\\nb", "%", "@x"], tokens=10**9, ttft_s=1e-3)
def test_values_reach_the_pods_as_they_are(texts: list[str], tokens: int, ttft_s: float) -> None:
    """Through helm's YAML and ours."""
    env = {f"K{number}": text for number, text in enumerate(texts)}
    classes = {"c": {"ttft_s": ttft_s, "tpot_s": 0.1, "deadline_s": 2 * ttft_s}}
    config = {"engine": {"env": env, "max_model_len_tokens": tokens}, "slo": {"classes": classes, "default_class": "c"}}
    loaded = render_values({"config": json.loads(json.dumps(config))}).config()
    assert loaded.engine.env == env
    assert loaded.engine.max_model_len_tokens == tokens
    assert loaded.slo.classes["c"].ttft_s == ttft_s
