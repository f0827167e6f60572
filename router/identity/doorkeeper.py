"""Looks callers up in memory: API keys by their SHA-256, tokens by their signature. Pure but for the clock it is given.

Invariants
 1. Neither keys nor tokens are kept, only their SHA-256; nobody can steer a digest towards a known one, so how long a
    look-up takes says nothing of the keys there are. Wrong, expired and revoked take the same steps, to the
    opcode; they and none at all get the same answer.
 2. A key that is in several places counts where it was revoked; else the file's say goes before Redis's.
 3. Nothing here waits. What changes elsewhere is set from outside (`router/identity/follower.py`).
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Protocol

from msgspec import Struct

from kvstore.key_store import KeyRecord
from router.errors import bad_request
from router.identity.caller import ANYBODY, Allowance, Caller, allowance_of, credential, unauthorised
from router.identity_settings import DEFAULT_TENANT, IdentitySettings, KeySettings, TenantSettings
from router.slo_settings import TENANT_PATTERN

TENANT_HEADER = "x-headrace-tenant"
KEY_PREFIX = "hr-"
_TENANT = re.compile(TENANT_PATTERN)


class Claims(Struct, frozen=True, gc=False):
    """What a token says that was found to be valid."""

    tenant: str
    service_class: str | None
    ends_at_s: float


class TokenCheck(Protocol):
    """Knows tokens of an identity provider."""

    def claims(self, token: str, digest: bytes, now_s: float) -> Claims | None:
        """Of a valid token; None: it is none. `digest`: its SHA-256, to remember it by."""
        ...


class _Key(Struct, frozen=True, gc=False):
    caller: Caller
    ends_at_s: float  # Unix time; inf: never


_NO_KEY = _Key(ANYBODY, float("-inf"))


class Doorkeeper:
    """One router's."""

    def __init__(
        self, settings: IdentitySettings, now_s: Callable[[], float], *, trusts_tenant_header: bool = False
    ) -> None:
        """`now_s`: Unix time."""
        self._settings = settings
        self._now_s = now_s
        self._trusts_header = trusts_tenant_header
        self._file_keys: Mapping[str, KeySettings] = {}
        self._made_keys: Mapping[str, KeyRecord] = {}
        self._made_tenants: Mapping[str, TenantSettings] = {}
        self._keys: dict[bytes, _Key] = {}
        self._allowances: dict[str, Allowance] = {}
        self._callers: dict[tuple[str, str | None], Caller] = {}  # of tokens and trusted headers
        self.tokens: TokenCheck | None = None
        self.refused = 0  # requests without a valid credential, since the start
        self._anybody = ANYBODY
        self._build()

    @property
    def is_active(self) -> bool:
        """Anything depends on who asks."""
        return self._is_active

    @property
    def has_many_tenants(self) -> bool:
        """More than one tenant can ask."""
        return self._has_many_tenants

    @property
    def limited_tenants(self) -> Mapping[str, Allowance]:
        """Tenants with limits of their own, by name."""
        return {name: allowance for name, allowance in self._allowances.items() if allowance.is_limited}

    def allowance_of(self, tenant: str) -> Allowance:
        """What a tenant may have: by settings of its own, else by those of `default`."""
        return self._allowances.get(tenant) or self._allowances.get(DEFAULT_TENANT) or Allowance()

    def set_file_keys(self, keys: Mapping[str, KeySettings]) -> None:
        """What `identity.keys_file` has now."""
        self._file_keys = keys
        self._build()

    def set_made(self, keys: Mapping[str, KeyRecord], tenants: Mapping[str, TenantSettings]) -> None:
        """What operators have made at run time."""
        self._made_keys, self._made_tenants = keys, tenants
        self._build()

    def ask(self, headers: Mapping[str, str]) -> Caller:
        """Who sends these headers (names in lower case). Raises ApiError 401, or 400 for a trusted header's name."""
        if not self._is_active:
            return ANYBODY
        caller = self._find(headers)
        if caller is None:
            if self._settings.required:
                self.refused += 1
                raise unauthorised()
            caller = self._anybody
        if self._trusts_header and (named := headers.get(TENANT_HEADER)) is not None:
            return self._named(named, caller)
        return caller

    def _find(self, headers: Mapping[str, str]) -> Caller | None:
        given = credential(headers)
        if given is None:
            return None
        digest = hashlib.sha256(given.encode(errors="surrogatepass")).digest()
        key = self._keys.get(digest, _NO_KEY)
        if self._now_s() < key.ends_at_s:
            return key.caller
        if self.tokens is None or given.count(".") != 2:
            return None
        claims = self.tokens.claims(given, digest, self._now_s())
        if claims is None or not _TENANT.fullmatch(claims.tenant):
            return None
        return self._caller(claims.tenant, claims.service_class)

    def _named(self, name: str, by: Caller) -> Caller:
        if not _TENANT.fullmatch(name):
            raise bad_request(
                f"{TENANT_HEADER}: {name!r} is not a tenant's name; allowed: up to 128 letters, digits and . _ : @ -",
                code="bad_tenant",
                param=TENANT_HEADER,
            )
        return self._caller(name, by.service_class)

    def _caller(self, tenant: str, service_class: str | None) -> Caller:
        caller = self._callers.get((tenant, service_class))
        if caller is None:
            if len(self._callers) > 10_000:
                self._callers.clear()
            caller = self._callers[tenant, service_class] = self._make_caller(tenant, service_class)
        return caller

    def _make_caller(self, tenant: str, service_class: str | None) -> Caller:
        allowance = self.allowance_of(tenant)
        return Caller(tenant, allowance, service_class or allowance.service_class)

    def _build(self) -> None:
        """All tables anew: changes are rare, requests are not."""
        settings = self._settings
        tenants = {**settings.tenants, **self._made_tenants}
        self._allowances = {name: allowance_of(tenant) for name, tenant in tenants.items()}
        self._callers = {}
        self._anybody = self._make_caller(DEFAULT_TENANT, None)
        written = {**self._file_keys, **settings.keys}
        self._keys = {
            bytes.fromhex(digest): _Key(
                self._make_caller(record.tenant, record.service_class),
                float("inf") if record.expires_at_s is None else record.expires_at_s,
            )
            for digest, record in self._made_keys.items()
            if record.revoked_at_s is None
        }
        for digest, key in written.items():
            made = self._made_keys.get(digest)
            if made is None or made.revoked_at_s is None:  # invariant 2
                ends_at_s = float("inf") if key.expires_at is None else key.expires_at.timestamp()
                self._keys[bytes.fromhex(digest)] = _Key(self._make_caller(key.tenant, key.service_class), ends_at_s)
        self._count_tenants()

    def _count_tenants(self) -> None:
        settings = self._settings
        names = {key.caller.tenant for key in self._keys.values()}
        if not settings.required:
            names.add(DEFAULT_TENANT)
        has_any = settings.jwt is not None or self._trusts_header
        self._has_many_tenants = has_any or len(names) > 1
        self._is_active = bool(settings.required or self._keys or self._allowances or has_any)
