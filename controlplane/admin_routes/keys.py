"""API keys: made, listed, rotated and revoked. A key is shown once, to whoever makes it; only its SHA-256 is kept."""

import asyncio
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec

from controlplane.admin_routes.route import NAME, Answer, Call, RefusedError, Route, json_answer
from kvstore.key_store import KeyRecord, KeyStore, key_id
from router.admin_tokens import AdminRole, digest_of
from router.identity.doorkeeper import KEY_PREFIX
from router.identity.sources import IdentityError, made_settings, written_keys
from router.identity_settings import IdentitySettings, KeySettings
from router.slo_settings import SloSettings

_LONGEST_S = 10 * 366 * 86_400
_Seconds = Annotated[float, msgspec.Meta(gt=0, le=_LONGEST_S)]
_Tenant = Annotated[str, msgspec.Meta(pattern=f"^{NAME}$")]
_Note = Annotated[str, msgspec.Meta(max_length=256)]


class NewKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"service_class": "class"}):
    """The body of a request for a key."""

    tenant: _Tenant
    service_class: str | None = None
    expires_s: _Seconds | None = None  # from now; none: never
    note: _Note = ""


class Rotation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a rotation; none is needed."""

    overlap_s: Annotated[float, msgspec.Meta(ge=0, le=_LONGEST_S)] = 86_400.0  # for which the old key still holds
    expires_s: _Seconds | None = None  # of the new key


class MadeKey(msgspec.Struct, frozen=True, rename={"service_class": "class"}):
    """A key, this once."""

    id: str
    key: str
    tenant: str
    service_class: str | None
    expires_at_s: float | None  # Unix time


class KeyView(msgspec.Struct, frozen=True, rename={"service_class": "class"}):
    """What may be known of a key. Times are Unix seconds."""

    id: str
    tenant: str
    service_class: str | None
    state: str  # active, expired, revoked
    source: str  # redis, config
    expires_at_s: float | None = None
    created_at_s: float | None = None
    created_by: str = ""
    note: str = ""
    revoked_at_s: float | None = None


@dataclass(frozen=True, slots=True)
class KeyRoutes:
    """Keys in Redis; those of the configuration are listed beside them."""

    store: KeyStore
    identity: IdentitySettings
    slo: SloSettings

    def routes(self) -> Sequence[Route]:
        """GET and POST /keys, POST /keys/{id}/rotate, DELETE /keys/{id}."""
        one = {404: "unknown_key", 409: "key_in_file"}
        operator = AdminRole.OPERATOR
        return (
            Route("GET", "/keys", self._list, "API keys, by id; never the keys.", gives=list[KeyView],
                errors={503: "keys_file_unreadable"}),
            Route(
                "POST", "/keys", self._make, "Make an API key. It is in the answer, and nowhere else.", operator,
                takes=NewKey, gives=MadeKey,
                errors={400: "unknown_class", 409: "keys_not_in_redis", 422: "class_not_open"},
            ),
            Route(
                "POST", "/keys/{id}/rotate", self._rotate, "Make a key like it; the old one holds for a while.",
                operator, takes=Rotation, gives=MadeKey, errors={**one, 410: "key_ended"},
            ),
            Route("DELETE", "/keys/{id}", self._revoke, "Revoke a key, at once.", operator, gives=KeyView, errors=one),
        )  # fmt: skip

    async def _list(self, _: Call) -> Answer:
        now_s = time.time()
        made = (await self.store.read_all()).keys
        views = [_view(digest, record, now_s) for digest, record in made.items()]
        views += [_view(digest, record, now_s, "config") for digest, record in (await self._written()).items()]
        return json_answer(sorted(views, key=lambda view: (view.tenant, view.created_at_s or 0.0, view.id)))

    async def _make(self, call: Call) -> Answer:
        wanted = call.read(NewKey)
        self._check_open()
        if wanted.service_class is not None and wanted.service_class not in self.slo.classes:
            allowed = ", ".join(self.slo.classes)
            message = f"there is no class {wanted.service_class[:64]!r}; there are {allowed} (slo.classes)"
            raise RefusedError(400, "unknown_class", message)
        await self._check_open_to(wanted.tenant, wanted.service_class)
        return _made_answer(await self._add(call, wanted))

    async def _rotate(self, call: Call) -> Answer:
        asked = call.read(Rotation)
        digest, old = await self._find(call.path["id"])
        self._check_open()
        now_s = time.time()
        if not old.holds(now_s):
            raise RefusedError(410, "key_ended", f"the key {key_id(digest)} has ended: make a new one")
        made = await self._add(call, NewKey(old.tenant, old.service_class, asked.expires_s, old.note))
        await self.store.end_key(digest, at_s=now_s + asked.overlap_s, revoke=False)
        return _made_answer(made)

    async def _revoke(self, call: Call) -> Answer:
        digest, _ = await self._find(call.path["id"])
        now_s = time.time()
        record = await self.store.end_key(digest, at_s=now_s, revoke=True)
        if record is None:
            raise _unknown(call.path["id"])
        return json_answer(_view(digest, record, now_s))

    async def _add(self, call: Call, wanted: NewKey) -> MadeKey:
        key, now_s = KEY_PREFIX + secrets.token_urlsafe(32), time.time()
        expires_at_s = None if wanted.expires_s is None else now_s + wanted.expires_s
        record = KeyRecord(wanted.tenant, wanted.service_class, expires_at_s, now_s, call.who.name, wanted.note)
        await self.store.add_key(digest_of(key), record)
        return MadeKey(key_id(digest_of(key)), key, wanted.tenant, wanted.service_class, expires_at_s)

    async def _find(self, asked: str) -> tuple[str, KeyRecord]:
        """A made key by its id. Raises RefusedError."""
        for digest, record in (await self.store.read_all()).keys.items():
            if key_id(digest) == asked:
                return digest, record
        if any(key_id(digest) == asked for digest in await self._written()):
            message = f"the key {asked} is in the configuration (identity.keys or keys_file): take it out there"
            raise RefusedError(409, "key_in_file", message)
        raise _unknown(asked)

    async def _written(self) -> Mapping[str, KeyRecord]:
        return {
            digest: KeyRecord(key.tenant, key.service_class, key.expires_at.timestamp() if key.expires_at else None)
            for digest, key in (await read_written(self.identity)).items()
        }

    async def _check_open_to(self, tenant: str, service_class: str | None) -> None:
        """Raises RefusedError for a class that the tenant may not have: its requests would run as another."""
        if service_class is None:
            return
        settings = self.identity.settings_of(tenant, made_settings((await self.store.read_all()).tenants))
        if settings.classes is not None and service_class not in settings.classes:
            allowed = ", ".join(settings.classes)
            message = f"the class {service_class!r} is not open to {tenant}; its classes are {allowed}"
            raise RefusedError(422, "class_not_open", message)

    def _check_open(self) -> None:
        if not self.identity.keys_in_redis:
            message = "identity.keys_in_redis is false: routers would not know the key; add it to identity.keys_file"
            raise RefusedError(409, "keys_not_in_redis", message)


def _made_answer(made: MadeKey) -> Answer:
    return json_answer(made, about={"tenant": made.tenant, "key": made.id})


async def read_written(identity: IdentitySettings) -> Mapping[str, KeySettings]:
    """The keys that the configuration has. Raises RefusedError for a keys_file that routers can read and we cannot."""
    try:
        return await asyncio.to_thread(written_keys, identity)
    except IdentityError as error:
        raise RefusedError(
            503, "keys_file_unreadable", f"{error}; the control plane needs it too, to list keys"
        ) from None


def _view(digest: str, record: KeyRecord, now_s: float, source: str = "redis") -> KeyView:
    state = "revoked" if record.revoked_at_s is not None else "active" if record.holds(now_s) else "expired"
    return KeyView(
        id=key_id(digest),
        tenant=record.tenant,
        service_class=record.service_class,
        state=state,
        source=source,
        expires_at_s=record.expires_at_s,
        created_at_s=record.created_at_s or None,
        created_by=record.created_by,
        note=record.note,
        revoked_at_s=record.revoked_at_s,
    )


def _unknown(asked: str) -> RefusedError:
    return RefusedError(404, "unknown_key", f"there is no key {asked[:64]!r}; GET /keys names them")
