"""Questions to one engine over HTTP: is it there, what is it, how loaded is it, does it still make tokens?"""

from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp
import msgspec

from workers.engine_metrics import EngineMetrics, parse_metrics, parse_routes
from workers.engine_tls import client_context
from workers.expert_placement import EXPERTS_PATH, ExpertReport
from workers.kv_endpoints import KvEndpoints, parse_event_sources
from workers.ranks import RANK_HEADER
from workers.settings import EngineSettings

# A wedged engine answers /health with 200 for ever (engine output thread dead), so only tokens prove life.
_PROBE_BODY = {"max_tokens": 1, "temperature": 0}
# Enough different tokens to visit most experts of a layer.
_EXPERTS_PROMPT = "It was the best of times, it was the worst of times, 0 1 2 3 4 5 6 7 8 9, a b c d e f g h i j k l m."


def engine_session(settings: EngineSettings) -> aiohttp.ClientSession:
    """A session in which engines are asked. Raises EngineTlsError for certificates that cannot be used."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=client_context(settings.tls) or True))


class EngineNotAnsweringError(Exception):
    """The engine did not answer a question in time, or not with what was asked for."""


@dataclass(frozen=True, slots=True)
class EngineIdentity:
    """What an engine says about itself once, after its start."""

    model: str
    adapters: tuple[str, ...]  # of the model, by name
    max_model_len_tokens: int
    routes: dict[str, tuple[str, ...]]
    metrics: EngineMetrics


class _ModelCard(msgspec.Struct):
    id: str
    max_model_len: int | None = None
    parent: str | None = None  # of an adapter: its model


class _ModelList(msgspec.Struct):
    data: list[_ModelCard]


class EngineProbe:
    """One engine's questioner. `address` is http://host:port."""

    def __init__(self, session: aiohttp.ClientSession, address: str, settings: EngineSettings) -> None:
        self._session = session
        self._address = address
        self._settings = settings
        self._tokens_done: tuple[float, ...] = ()

    async def is_healthy(self) -> bool:
        """The HTTP server is up (which says nothing about the engine behind it)."""
        try:
            async with self._session.get(f"{self._address}/health", timeout=_timeout(5.0)) as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    async def identity(self) -> EngineIdentity:
        """Model, routes and capacity; raises EngineNotAnsweringError."""
        models, raw_openapi = await self._models(), await self._get("/openapi.json")
        try:
            openapi = msgspec.json.decode(raw_openapi)
            model = models[0]
            return EngineIdentity(
                model=model.id,
                adapters=_adapters(models),
                max_model_len_tokens=model.max_model_len or 0,
                routes=parse_routes(openapi),
                metrics=await self.metrics(),
            )
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            raise self._not_vllm(error) from error

    async def adapters(self) -> tuple[str, ...]:
        """LoRA adapters that are loaded now, which may change while an engine runs; raises EngineNotAnsweringError."""
        return _adapters(await self._models())

    async def metrics(self) -> EngineMetrics:
        """Counters now; raises EngineNotAnsweringError."""
        raw = await self._get("/metrics")
        try:
            return parse_metrics(raw.decode())
        except ValueError as error:
            raise EngineNotAnsweringError(f"/metrics of {self._address} is not Prometheus text: {error!r}") from error

    async def check_alive(self, model: str, routes: dict[str, tuple[str, ...]]) -> None:
        """Return if every rank made tokens since the last call or makes one now; else raise EngineNotAnsweringError."""
        before, self._tokens_done = self._tokens_done, (await self.metrics()).tokens_done
        if "/v1/completions" not in routes:
            return
        num_ranks = max(1, len(self._tokens_done))
        for rank in range(num_ranks):
            if len(before) != num_ranks or self._tokens_done[rank] <= before[rank]:
                await self.make_one_token(model, rank if num_ranks > 1 else None)

    async def kv_event_sources(self) -> dict[int, KvEndpoints]:
        """Where each data-parallel rank publishes KV events; empty where none does, or the engine does not say."""
        try:
            return parse_event_sources(msgspec.json.decode(await self._get("/kv_event_sources")), self._address)
        except (EngineNotAnsweringError, ValueError):
            return {}

    async def check_experts(self, model: str, data_parallel: int) -> None:
        """Each data-parallel rank makes a token and the engine counts it; raises EngineNotAnsweringError.

        What is missing for expert parallelism shows at the first request only: the server is up and healthy before.
        """
        before = _tokens(await self._experts())
        for rank in range(data_parallel):
            # Without data parallelism vLLM refuses the header.
            await self.make_one_token(model, rank if data_parallel > 1 else None, prompt=_EXPERTS_PROMPT)
        if _tokens(await self._experts()) == before:
            raise EngineNotAnsweringError("its experts made a token and did not count it")

    async def _experts(self) -> ExpertReport:
        raw = await self._get(EXPERTS_PATH)
        try:
            return msgspec.json.decode(raw, type=ExpertReport)
        except msgspec.DecodeError as error:
            raise EngineNotAnsweringError(f"{EXPERTS_PATH} of {self._address}: {error}") from error

    async def make_one_token(self, model: str, rank: int | None = None, *, prompt: str = "a") -> None:
        """A real request for one token, of this rank where there are several; raises EngineNotAnsweringError."""
        try:
            async with self._session.post(
                f"{self._address}/v1/completions",
                json={**_PROBE_BODY, "model": model, "prompt": prompt},
                headers={} if rank is None else {RANK_HEADER: str(rank)},
                timeout=_timeout(self._settings.probe_timeout_s),
            ) as response:
                body = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise EngineNotAnsweringError(f"no token within {self._settings.probe_timeout_s:g} s: {error!r}") from error
        if response.status != 200:
            raise EngineNotAnsweringError(f"a one-token request got {response.status}: {body[:200]!r}")

    async def _models(self) -> list[_ModelCard]:
        """Cards of the model and then of its adapters."""
        raw = await self._get("/v1/models")
        try:
            return msgspec.json.decode(raw, type=_ModelList).data
        except msgspec.DecodeError as error:
            raise self._not_vllm(error) from error

    def _not_vllm(self, error: Exception) -> EngineNotAnsweringError:
        return EngineNotAnsweringError(f"{self._address} does not answer like a vLLM server: {error!r}")

    async def _get(self, path: str) -> bytes:
        try:
            async with self._session.get(
                f"{self._address}{path}", timeout=_timeout(self._settings.probe_timeout_s)
            ) as response:
                if response.status != 200:
                    raise EngineNotAnsweringError(f"GET {path} of {self._address} got {response.status}")
                return await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise EngineNotAnsweringError(f"GET {path} of {self._address}: {error!r}") from error


def _adapters(models: Sequence[_ModelCard]) -> tuple[str, ...]:
    return tuple(sorted(card.id for card in models if card.parent is not None))


def _tokens(report: ExpertReport) -> int:
    return sum(map(sum, report.expert_tokens))


def _timeout(total_s: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=total_s)
