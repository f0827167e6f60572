"""Configuration: one YAML, one frozen tree, errors that say what to write instead."""

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from controlplane.config import Config, ConfigError, dump_config, load_config, parse_pools


def test_defaults_are_those_of_the_readme() -> None:
    config = load_config()
    assert (config.router.http.host, config.router.http.port) == ("127.0.0.1", 8000)
    assert config.router.grpc.port == 8001
    assert config.admin.port == 8002
    assert (config.pools.prefill, config.pools.decode, config.pools.mixed) == (1, 1, 0)


def test_what_is_shown_loads_to_the_same_tree(tmp_path: Path) -> None:
    path = tmp_path / "headrace.yaml"
    config = load_config(overrides=["engine.dtype=float32", "redis.url=unix:///run/r.sock"], pools="3P2D1M")
    path.write_text(dump_config(config))
    assert load_config(path) == config


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "headrace.yaml"
    path.write_text("engine: {dtype: bfloat16, threads: 2}")
    config = load_config(path, ["engine.dtype=float32"])
    assert (config.engine.dtype, config.engine.threads) == ("float32", 2)


def test_a_bare_equals_sign_is_text(tmp_path: Path) -> None:
    """Other writers of YAML, Go's among them, do not quote it."""
    path = tmp_path / "headrace.yaml"
    path.write_text("engine: {env: {SEPARATOR: =}}")
    assert load_config(path).engine.env == {"SEPARATOR": "="}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "*"])
def test_an_engine_has_an_address_that_others_can_reach(host: str) -> None:
    with pytest.raises(ConfigError, match=r"engine.host: .* is not allowed: it is also where routers"):
        load_config(overrides=[f"engine.host='{host}'"])


def test_off_needs_no_quotes(tmp_path: Path) -> None:
    path = tmp_path / "headrace.yaml"
    path.write_text("experts: {mode: off}")
    assert load_config(path).experts.mode == load_config(overrides=["experts.mode=off"]).experts.mode == "off"


def test_the_tree_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_config().pools.prefill = 2


@pytest.mark.parametrize(
    ("text", "shape"),
    [("2P1D", (2, 1, 0)), ("1p1d", (1, 1, 0)), ("3M", (0, 0, 3)), ("1P1D1M", (1, 1, 1)), ("2D", (0, 2, 0))],
)
def test_shapes(text: str, shape: tuple[int, int, int]) -> None:
    pools = parse_pools(text)
    assert (pools["prefill"], pools["decode"], pools["mixed"]) == shape


@pytest.mark.parametrize("text", ["", "P", "1D1P", "2X", "-1P1D", "1P 1D"])
def test_what_is_no_shape_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not a shape"):
        parse_pools(text)


def test_every_problem_is_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=["router.http.port=70000", "engine.threads=0", "nowhere.x=1"])
    text = str(caught.value)
    for key in ("router.http.port: 70000", "engine.threads: 0", "nowhere: unknown key"):
        assert key in text


@pytest.mark.parametrize("override", ["novalue", "=1", "model.path.x.y=1", "a=[", "model=1"])
def test_malformed_overrides(override: str) -> None:
    with pytest.raises(ConfigError):
        load_config(overrides=["model.path=/x", override])


def test_every_setting_says_what_it_is() -> None:
    def undescribed(model: type, prefix: str) -> list[str]:
        missing = []
        for name, field in model.model_fields.items():  # type: ignore[attr-defined]
            if isinstance(field.annotation, type) and hasattr(field.annotation, "model_fields"):
                missing += undescribed(field.annotation, f"{prefix}{name}.")
            elif not field.description:
                missing.append(prefix + name)
        return missing

    assert undescribed(Config, "") == []


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("slo.classes.chat.ttft=3", "did you mean 'ttft_s'?"),
        (f"identity.keys.{'0' * 64}.clas=chat", "did you mean 'class'?"),
        ("slo.default_class=fast", "no such class; allowed: interactive, chat, batch"),
        ("router.policy=best", "allowed: least_cost, dynamo"),
        ("index.block_size_tokens=1", "greater than or equal to 8"),
        ("router.tokens.thread=1", "did you mean 'threads'?"),
    ],
)
def test_a_mistake_deep_in_the_tree_is_named(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        load_config(overrides=[override])


def test_an_error_does_not_show_a_password() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=["redis.url=redis://:hunter2@host:port/0"])
    assert "hunter2" not in str(caught.value)
    assert "redis.url" in str(caught.value)
