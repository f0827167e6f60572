"""One YAML file into one frozen, typed tree. The only place that reads configuration.

Each package declares the types of its own section (`settings.py`); this module puts them together, loads them, and
words the errors: key, value, what is allowed.
"""

import difflib
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from controlplane.admin_settings import AdminSettings
from controlplane.placement.settings import ExpertSettings
from kvstore.redis_url import without_password
from kvstore.settings import BoardSettings, IndexSettings, RedisSettings
from router.identity_settings import IdentitySettings
from router.settings import ListenSettings, RouterSettings
from router.slo_settings import SloSettings
from workers.logs import LogFormat, LogLevel, LogStyle
from workers.settings import EngineSettings, KvEventSettings

_MODEL_CONFIG = ConfigDict(frozen=True, extra="forbid")


class ModelSettings(BaseModel):
    """What is served."""

    model_config = _MODEL_CONFIG

    path: str | None = Field(None, min_length=1, description="folder of the checkpoint; none: the demo model")
    name: str | None = Field(None, min_length=1, description="name clients ask for; none: the folder's name")


class PoolSettings(BaseModel):
    """How many workers of each role: xPyD."""

    model_config = _MODEL_CONFIG

    prefill: int = Field(1, ge=0, le=10_000, description="workers that compute prompts for others")
    decode: int = Field(1, ge=0, le=10_000, description="workers that answer, on blocks handed to them")
    mixed: int = Field(0, ge=0, le=10_000, description="workers that do both for themselves")
    max_size: int = Field(
        64, ge=1, le=10_000, description="no pool is made larger than this while Headrace runs; the sizes above may be"
    )

    @model_validator(mode="after")
    def _can_answer(self) -> "PoolSettings":
        if self.decode + self.mixed == 0:
            raise ValueError("at least one decode or mixed worker is needed: nobody could answer a client")
        return self


class TelemetrySettings(BaseModel):
    """OpenTelemetry traces, and logs."""

    model_config = _MODEL_CONFIG

    otlp_endpoint: str | None = Field(None, pattern=r"^https?://.+", description="collector; none: no traces")
    otlp_protocol: Literal["grpc", "http"] = Field("grpc", description="OTLP over gRPC or HTTP/protobuf")
    sample_ratio: float = Field(1.0, ge=0.0, le=1.0, description="share of new traces; a client's decision is kept")
    tenants: Literal["none", "hash"] = Field("none", description="root spans name tenants: not at all, or by SHA-256")
    log_format: LogFormat = Field(
        "text", description="lines of routers, workers and control plane; json: an object each"
    )
    log_level: LogLevel = Field("info", description="the least that is logged")

    @property
    def traces_url(self) -> str | None:
        """Where exporters send: over HTTP the path belongs to it (OTLP specification, "OTLP/HTTP request")."""
        if self.otlp_endpoint is None or self.otlp_protocol == "grpc" or self.otlp_endpoint.endswith("/v1/traces"):
            return self.otlp_endpoint
        return self.otlp_endpoint.rstrip("/") + "/v1/traces"

    @property
    def log_style(self) -> LogStyle:
        """For processes that do not know this section."""
        return LogStyle(self.log_format, self.log_level)


class Config(BaseModel):
    """The whole configuration."""

    model_config = _MODEL_CONFIG

    model: ModelSettings = ModelSettings()
    pools: PoolSettings = PoolSettings()
    engine: EngineSettings = EngineSettings()
    router: RouterSettings = RouterSettings()
    slo: SloSettings = SloSettings()
    identity: IdentitySettings = IdentitySettings()
    index: IndexSettings = IndexSettings()
    kv_events: KvEventSettings = KvEventSettings()
    board: BoardSettings = BoardSettings()
    experts: ExpertSettings = ExpertSettings()
    admin: AdminSettings = AdminSettings()
    health: ListenSettings | None = Field(
        None,
        description="where `run worker` and `run control-plane` answer /healthz, /readyz and /metrics; none: nowhere",
    )
    redis: RedisSettings = RedisSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    state_dir: str = Field("~/.cache/headrace", min_length=1, description="converted demo model, logs, sockets")

    @model_validator(mode="after")
    def _identity_fits(self) -> "Config":
        problem = self.identity.class_problem(self.slo.classes)
        if problem is not None:
            raise ValueError(f"identity.{problem}")
        if self.identity.isolate_caches == "on" and self.router.endpoint_picker.enabled:
            raise ValueError(
                "identity.isolate_caches: 'on' is not allowed with router.endpoint_picker: a gateway carries the "
                "bodies, so that nobody adds cache salts; allowed: auto, which isolates what comes by HTTP and gRPC, "
                "or off"
            )
        return self

    @property
    def state_path(self) -> Path:
        """`state_dir`, expanded."""
        return Path(self.state_dir).expanduser().absolute()


class ConfigError(Exception):
    """One line for each thing that is wrong."""

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        super().__init__("\n".join(f"{source}: {problem}" for problem in problems))
        self.problems = tuple(problems)


def load_config(path: Path | None = None, overrides: Sequence[str] = (), pools: str | None = None) -> Config:
    """The file's tree, with `key.path=value` overrides and an xPyD shape on top. Raises ConfigError."""
    source = str(path) if path is not None else "defaults"
    tree = _read(path) if path is not None else {}
    for override in overrides:
        _set(tree, override)
    if pools is not None:
        tree["pools"] = parse_pools(pools)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(source, [_explain(item) for item in error.errors()]) from None


def parse_pools(text: str) -> dict[str, int]:
    """`2P1D`, `1P1D1M`, `3M` as pool sizes; raises ConfigError."""
    matches = re.fullmatch(r"(?:(\d+)P)?(?:(\d+)D)?(?:(\d+)M)?", text.upper())
    if not text or matches is None:
        raise ConfigError("--pools", [f"{text!r} is not a shape; allowed: xPyD, xPyDzM or zM, such as 2P1D"])
    prefill, decode, mixed = (int(count or 0) for count in matches.groups())
    return {"prefill": prefill, "decode": decode, "mixed": mixed}


def dump_config(config: Config) -> str:
    """The whole tree as YAML, defaults included, passwords masked."""
    tree = config.model_dump(mode="json")
    if tree["redis"]["url"]:
        tree["redis"]["url"] = without_password(tree["redis"]["url"])
    return yaml.safe_dump(tree, sort_keys=False)


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice instead of dropping one silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _text(loader: _StrictLoader, node: yaml.Node) -> Any:
    return loader.construct_yaml_str(node)


# A bare `=` is text to everybody but YAML 1.1, for which PyYAML has no value either.
_StrictLoader.add_constructor("tag:yaml.org,2002:value", _text)


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), [f"cannot be read: {error}"]) from None
    try:
        tree = yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise ConfigError(str(path), [f"is not valid YAML: {error}"]) from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(str(path), ["must be a mapping of sections: " + ", ".join(Config.model_fields)])
    return tree


def _set(tree: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError("--set", [f"{override!r} must be key.path=value, such as engine.dtype=float32"])
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError("--set", [f"{override!r}: the value is not valid YAML: {error}"]) from None
    *sections, leaf = key.split(".")
    for section in sections:
        child = tree.setdefault(section, {})
        if not isinstance(child, dict):
            raise ConfigError("--set", [f"{override!r}: {section} is not a section"])
        tree = child
    tree[leaf] = value


def _explain(item: Mapping[str, Any]) -> str:
    """One pydantic error, worded for the person who wrote the file."""
    location = [str(part) for part in item["loc"]]
    key = ".".join(location) or "(top)"
    if item["type"] == "extra_forbidden":
        allowed = sorted(_fields_at(location[:-1]))
        close = difflib.get_close_matches(location[-1], allowed, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        return f"{key}: unknown key; {hint}allowed here: {', '.join(allowed)}"
    message = item["msg"].removeprefix("Value error, ")
    if isinstance(item["input"], Mapping):
        return f"{key}: {message}"
    value = item["input"]
    if isinstance(value, str) and "://" in value:
        value = without_password(value)
    return f"{key}: {value!r} is not allowed: {message[0].lower()}{message[1:]}"


def _fields_at(location: Sequence[str]) -> set[str]:
    """Keys allowed at a place in the tree, as they are written in the file; mappings of sections have any key."""
    model: type[BaseModel] = Config
    parts = iter(location)
    for part in parts:
        field = next((f for name, f in model.model_fields.items() if part in (name, f.alias)), None)
        annotation: Any = field.annotation if field is not None else None
        if get_origin(annotation) is dict:
            next(parts, None)
            annotation = get_args(annotation)[1]
        candidates = [annotation, *get_args(annotation)]
        found = [item for item in candidates if isinstance(item, type) and issubclass(item, BaseModel)]
        if not found:
            return set()
        model = found[0]
    return {field.alias or name for name, field in model.model_fields.items()}
