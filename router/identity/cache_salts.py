"""Cache salts: what keeps one tenant's prefixes out of the others' reach, in engines and in the router's index. Pure.

An engine shares a block only between requests of one `cache_salt` (vLLM mixes it into the first block's hash). Each
tenant gets one that nobody can guess: base64url(HMAC-SHA256(secret, tenant))[:22], 132 bits. A client's own salt is
mixed in, so that it divides its own tenant's cache as before, and never reaches another's.
"""

import base64
import hashlib
import hmac
from collections.abc import Collection, Mapping
from typing import Any

from router.errors import ApiError, bad_request
from router.identity.caller import Caller

FIELD = "cache_salt"
_CHARS = 22
# They compute no keys and values, so that there is nothing to find in a cache.
NO_KV_ROUTES = frozenset(("/tokenize", "/detokenize", "/v1/messages/count_tokens"))
_MOST_TENANTS = 10_000


class CacheSalts:
    """One router's. Without a secret nothing is salted."""

    def __init__(self) -> None:
        self._secret: bytes | None = None
        self._of_tenant: dict[str, str] = {}

    def set_secret(self, secret: bytes | None) -> None:
        """Salts are made with this from now on; None: none are."""
        if secret != self._secret:
            self._secret, self._of_tenant = secret, {}

    @property
    def is_on(self) -> bool:
        """Requests are salted."""
        return self._secret is not None

    def of(self, tenant: str, own: str | None = None) -> str:
        """The salt of a tenant's requests that bring this one themselves."""
        assert self._secret is not None
        if own is not None:
            return _salt(self._secret, tenant, own)
        salt = self._of_tenant.get(tenant)
        if salt is None:
            if len(self._of_tenant) >= _MOST_TENANTS:
                self._of_tenant.clear()
            salt = self._of_tenant[tenant] = _salt(self._secret, tenant, None)
        return salt

    def wanted(self, caller: Caller, route: str, fields: Mapping[str, Any], known: Collection[str]) -> str | None:
        """The salt that the request has to carry; None: it needs none.

        `known`: fields that the engines know on this route; empty: not known. Raises ApiError 400 for a salt that is
        none, and 503 where engines would share what tenants must not share.
        """
        if self._secret is None or route in NO_KV_ROUTES:
            return None
        if known and FIELD not in known:
            message = f"the engines cannot keep tenants apart on {route}: they have no {FIELD!r}"
            raise ApiError(503, "service_unavailable_error", "cache_not_isolated", message)
        own = fields.get(FIELD)
        if own is not None and (not isinstance(own, str) or not own):
            raise bad_request(f"{FIELD!r} must be a non-empty string", code="invalid_type", param=FIELD)
        return self.of(caller.tenant, own)


def spliced(raw_body: bytes, salt: str | None, priority: int | None) -> bytes:
    """The body with these fields before its closing brace; nothing is serialised anew.

    `raw_body` is a JSON object with at least one field. Of a name that is there twice the last one counts.
    """
    added = "" if salt is None else f',"{FIELD}":"{salt}"'
    if priority is not None:
        added += f',"priority":{priority}'
    end = raw_body.rindex(b"}")
    return b"".join((memoryview(raw_body)[:end], added.encode(), b"}"))


def _salt(secret: bytes, tenant: str, own: str | None) -> str:
    message = tenant.encode() if own is None else b"\0".join((tenant.encode(), own.encode(errors="surrogatepass")))
    return base64.urlsafe_b64encode(hmac.digest(secret, message, hashlib.sha256))[:_CHARS].decode()
