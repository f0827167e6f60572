"""Tenants: what they may have, and what they have used. What is set here goes before the configuration's."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from pydantic import ValidationError

from controlplane.admin_routes.keys import read_written
from controlplane.admin_routes.route import NAME, Answer, Call, RefusedError, Route, json_answer
from kvstore.key_store import Kept, KeyStore
from kvstore.usage_store import ByRouter, UsageStore, Used, total
from router.admin_tokens import AdminRole
from router.identity.quota import period_of
from router.identity.sources import made_settings
from router.identity_settings import DEFAULT_TENANT, IdentitySettings, KeySettings, TenantSettings
from router.slo_settings import SloSettings

Keys = Mapping[str, KeySettings]  # by digest
_NAME = re.compile(NAME)
_FRESH_S = 1.0
_Account = tuple[str, str]  # period and tenant


class TenantUse(msgspec.Struct, frozen=True):
    """Of one period; requests in flight are not in it."""

    period: str  # 2027-01, or 2027-01-31 where the budget is a day's
    requests: int
    prompt_tokens: int
    cached_tokens: int  # of the prompts'
    output_tokens: int
    budget_tokens: int | None
    left_tokens: int | None


class TenantView(msgspec.Struct, frozen=True):
    """One tenant."""

    name: str
    source: str  # admin, config, or default: it has the settings of `default`, or none
    settings: dict[str, Any]  # as in identity.tenants
    num_keys: int  # that open something now
    used: TenantUse
    refused: dict[str, int]  # in the last ten minutes, before anything was decided about them, by reason


class IdentityView(msgspec.Struct, frozen=True):
    """How routers tell who asks."""

    required: bool  # a request without a valid key or token gets 401
    takes_tokens: bool  # of an identity provider
    keys_in_redis: bool  # keys and tenants can be made, changed and ended here


class UsageReader:
    """Use by period and tenant. It is read once a second, whoever looks: each tenant costs Redis a question."""

    def __init__(self, store: UsageStore, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock_s = clock_s
        self._known: dict[_Account, tuple[float, ByRouter]] = {}  # with the time it was asked for

    async def read(self, wanted: Sequence[_Account]) -> Mapping[_Account, ByRouter]:
        """Of these, and maybe of others."""
        now_s = self._clock_s()
        fresh = {one: known for one, known in self._known.items() if now_s - known[0] < _FRESH_S}
        found = await self._store.charge_all({one: {} for one in wanted if one not in fresh})
        self._known = {**fresh, **{one: (now_s, used) for one, used in found.items()}}
        return {one: used for one, (_, used) in self._known.items()}


@dataclass(frozen=True, slots=True)
class TenantRoutes:
    """Needs the stores of settings and of usage, and whom routers refuse."""

    store: KeyStore
    identity: IdentitySettings
    slo: SloSettings
    usage: UsageReader
    refused: Callable[[], Mapping[str, Mapping[str, int]]]

    def routes(self) -> Sequence[Route]:
        """GET /identity, GET /tenants, GET, PUT and DELETE /tenants/{name}."""
        operator = AdminRole.OPERATOR
        errors = {400: "bad_tenant", 404: "unknown_tenant"}
        summary = "Set what a tenant may have: all of it, as in identity.tenants; what is left out is the default."
        return (
            Route("GET", "/identity", self._identity, "How routers tell who asks.", gives=IdentityView),
            Route("GET", "/tenants", self._list, "Tenants, their limits and their use.", gives=list[TenantView]),
            Route("GET", "/tenants/{name}", self._show, "One tenant.", gives=TenantView, errors=errors),
            Route(
                "PUT", "/tenants/{name}", self._set, summary, operator, takes=dict[str, Any], gives=TenantView,
                errors={**errors, 409: "keys_not_in_redis"},
            ),
            Route(
                "DELETE", "/tenants/{name}", self._forget, "Back to what the configuration says of a tenant.",
                operator, gives=TenantView, errors=errors,
            ),
        )  # fmt: skip

    async def _identity(self, _: Call) -> Answer:
        settings = self.identity
        return json_answer(IdentityView(settings.required, settings.jwt is not None, settings.keys_in_redis))

    async def _list(self, _: Call) -> Answer:
        kept, written = await self.store.read_all(), await read_written(self.identity)
        return json_answer(await self._views(kept, written, sorted(self._names(kept, written))))

    async def _show(self, call: Call) -> Answer:
        name, kept, written = call.path["name"], await self.store.read_all(), await read_written(self.identity)
        if name not in self._names(kept, written):
            raise _unknown(name)
        return json_answer((await self._views(kept, written, [name]))[0])

    async def _set(self, call: Call) -> Answer:
        name = call.path["name"]
        if not _NAME.fullmatch(name):
            message = f"{name[:64]!r} is not a tenant's name; allowed: up to 128 letters, digits and . _ : @ -"
            raise RefusedError(400, "bad_tenant", message)
        if not self.identity.keys_in_redis:
            message = "identity.keys_in_redis is false: routers would not know it; set it in identity.tenants"
            raise RefusedError(409, "keys_not_in_redis", message)
        settings = self._read(call.body)
        await self.store.put_tenant(name, settings.model_dump_json(by_alias=True, exclude_unset=True).encode())
        return json_answer(await self._view(name))

    async def _forget(self, call: Call) -> Answer:
        name = call.path["name"]
        if not await self.store.remove_tenant(name):
            raise _unknown(name)
        return json_answer(await self._view(name))

    def _read(self, body: bytes) -> TenantSettings:
        try:
            settings = TenantSettings.model_validate_json(body or b"{}")
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the body"
            raise RefusedError(400, "bad_body", f"{where}: {first['msg']}") from None
        for name in (settings.service_class, *(settings.classes or ())):
            if name is not None and name not in self.slo.classes:
                allowed = ", ".join(self.slo.classes)
                raise RefusedError(400, "bad_body", f"there is no class {name!r}; there are {allowed} (slo.classes)")
        return settings

    def _names(self, kept: Kept, written: Keys) -> set[str]:
        made = {record.tenant for record in kept.keys.values()}
        in_file = {key.tenant for key in written.values()}
        return {DEFAULT_TENANT, *self.identity.tenants, *kept.tenants, *made, *in_file}

    async def _view(self, name: str) -> TenantView:
        return (await self._views(await self.store.read_all(), await read_written(self.identity), [name]))[0]

    async def _views(self, kept: Kept, written: Keys, names: Sequence[str]) -> list[TenantView]:
        now_s = time.time()
        made = made_settings(kept.tenants)
        of = {name: self.identity.settings_of(name, made) for name in names}
        periods = {name: period_of(_kind(settings), now_s) for name, settings in of.items()}
        used = await self.usage.read([(periods[name], name) for name in names])
        refused = self.refused()
        views = []
        for name, settings in of.items():
            source = "admin" if name in made else "config" if name in self.identity.tenants else "default"
            views.append(
                TenantView(
                    name=name,
                    source=source,
                    settings=settings.model_dump(mode="json", by_alias=True, exclude_defaults=True),
                    num_keys=_num_keys(kept, written, name, now_s),
                    used=_use(settings, periods[name], total(used[periods[name], name])),
                    refused=dict(refused.get(name, {})),
                )
            )
        return views


def _num_keys(kept: Kept, written: Keys, tenant: str, now_s: float) -> int:
    made = sum(record.tenant == tenant and record.holds(now_s) for record in kept.keys.values())
    found = [key for key in written.values() if key.tenant == tenant]
    return made + sum(key.expires_at is None or key.expires_at.timestamp() > now_s for key in found)


def _kind(settings: TenantSettings) -> str:
    """Without a budget use is counted by the month."""
    return settings.budget_period if settings.budget_tokens is not None else "month"


def _use(settings: TenantSettings, period: str, used: Used) -> TenantUse:
    budget = settings.budget_tokens
    return TenantUse(
        period=period,
        requests=used.requests,
        prompt_tokens=used.prompt_tokens,
        cached_tokens=used.cached_tokens,
        output_tokens=used.output_tokens,
        budget_tokens=budget,
        left_tokens=None if budget is None else max(0, budget - used.tokens),
    )


def _unknown(name: str) -> RefusedError:
    return RefusedError(404, "unknown_tenant", f"nothing is kept of a tenant {name[:64]!r}; GET /tenants names them")
