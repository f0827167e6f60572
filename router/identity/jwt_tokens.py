"""Tokens of an OpenID Connect provider (RFC 7519): checked by its public keys (RFC 7517), remembered by digest.

Invariants
 1. A token counts only if one of the provider's own keys signed it, by the algorithm that this kind of key has: what
    the token says of itself chooses among the keys, never the algorithm. `none` and shared secrets are none of ours.
 2. `iss`, `aud` and `exp` are there and right, `nbf` and `iat` not in the future, by `leeway_s`.
 3. A token that was found valid is not checked again until it expires or the keys change. One that was not is not
    remembered.
"""

import hashlib
import logging
from collections.abc import Mapping
from typing import Any

import jwt
import msgspec
from jwt import PyJWK
from jwt.exceptions import PyJWTError

from router.identity.doorkeeper import Claims
from router.identity_settings import JwtSettings

_log = logging.getLogger(__name__)
_ALGORITHMS = {("RSA", None): "RS256", ("EC", "P-256"): "ES256", ("OKP", "Ed25519"): "EdDSA"}
_MOST_REMEMBERED = 10_000
_MOST_CHARS = 16 << 10
_MOST_KEYS = 64
_LEAST_RSA_BITS = 2048


class JwksError(Exception):
    """The provider's keys cannot be used; says why."""


class _Jwks(msgspec.Struct):
    keys: list[dict[str, Any]]


class JwtTokens:
    """One router's. Has no keys before `set_jwks`."""

    def __init__(self, settings: JwtSettings) -> None:
        self._settings = settings
        self._raw: bytes | None = None
        self._keys: Mapping[str, PyJWK] = {}  # by `kid`
        self._known: dict[bytes, Claims] = {}
        self.wants_keys = False  # a token named a key that is not known: the provider may have a new one

    def set_jwks(self, raw: bytes) -> int:
        """The provider's keys, as its document has them; how many can be used. Raises JwksError; then the old stay."""
        if raw == self._raw:
            return len(self._keys)
        try:
            found = msgspec.json.decode(raw, type=_Jwks).keys
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise JwksError(f"it is no JWK set: {error}") from None
        keys = {kid: key for kid, key in map(_key, found[:_MOST_KEYS]) if key is not None}
        if not keys:
            raise JwksError("none of its keys is RSA (2048 bits or more), P-256 or Ed25519, and for signatures")
        self._raw, self._keys, self._known = raw, keys, {}
        return len(keys)

    def claims(self, token: str, digest: bytes, now_s: float) -> Claims | None:
        """Of a valid token; None: it is none."""
        known = self._known.get(digest)
        if known is not None:
            if now_s < known.ends_at_s:
                return known
            del self._known[digest]
        if len(token) > _MOST_CHARS:
            return None
        found = self._check(token)
        if found is not None:
            if len(self._known) >= _MOST_REMEMBERED:
                del self._known[next(iter(self._known))]
            self._known[digest] = found
        return found

    def _check(self, token: str) -> Claims | None:
        settings = self._settings
        try:
            header = jwt.get_unverified_header(token)
            key = self._keys.get(str(header.get("kid", "")))
            if key is None:
                self.wants_keys = True
                return None
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=[_algorithm(key)],
                audience=settings.audience,
                issuer=settings.issuer,
                leeway=settings.leeway_s,
                options={"require": ["exp", "iss", "aud"]},
            )
        except (PyJWTError, ValueError, TypeError, RecursionError, UnicodeError):
            return None  # which of the many is nobody's business
        tenant = claims.get(settings.tenant_claim)
        service_class = claims.get(settings.class_claim) if settings.class_claim is not None else None
        if not isinstance(tenant, str) or not (service_class is None or isinstance(service_class, str)):
            return None
        return Claims(tenant, service_class, float(claims["exp"]) + settings.leeway_s)


def _key(jwk: Mapping[str, Any]) -> tuple[str, PyJWK | None]:
    """By its `kid`, "" where it has none; None: it is for something else (invariant 1)."""
    kid = str(jwk.get("kid", ""))
    algorithm = _ALGORITHMS.get((str(jwk.get("kty")), jwk.get("crv") if jwk.get("kty") != "RSA" else None))
    if algorithm is None or jwk.get("use", "sig") != "sig" or jwk.get("alg", algorithm) != algorithm:
        return kid, None
    public = {name: value for name, value in jwk.items() if name in ("kty", "kid", "n", "e", "crv", "x", "y")}
    try:
        key = PyJWK(public, algorithm)
    except (PyJWTError, ValueError, TypeError) as error:
        _log.warning("identity.jwt: the key %s cannot be used: %s", hashlib.sha256(kid.encode()).hexdigest()[:8], error)
        return kid, None
    if algorithm == "RS256" and getattr(key.key, "key_size", 0) < _LEAST_RSA_BITS:
        return kid, None
    return kid, key


def _algorithm(key: PyJWK) -> str:
    return str(key.algorithm_name)
