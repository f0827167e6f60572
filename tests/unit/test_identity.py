"""Who asks: keys, tokens, tenants, salts. Numbers: invariants of router/identity/doorkeeper.py and jwt_tokens.py."""

import base64
import contextlib
import hashlib
import hmac
import json
import sys
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import jwt
import msgspec
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import get_default_algorithms
from pydantic import ValidationError

from kvstore.key_store import KeyRecord
from router.admin_tokens import digest_of
from router.errors import ApiError, grpc_code
from router.identity.cache_salts import CacheSalts, spliced
from router.identity.caller import ANYBODY, Caller
from router.identity.doorkeeper import Doorkeeper
from router.identity.jwt_tokens import JwksError, JwtTokens
from router.identity_settings import IdentitySettings, JwtSettings, TenantSettings
from router.openai import CHAT_ROUTE

KEY, OTHER, MADE = "hr-acme", "hr-other", "hr-made"
NOW_S = 1_800_000_000.0
SETTINGS: dict[str, Any] = {
    "required": True,
    "keys": {
        digest_of(KEY): {"tenant": "acme", "class": "batch"},
        digest_of(OTHER): {"tenant": "other", "expires_at": "2027-01-15T08:00:00Z"},  # NOW_S
    },
    "tenants": {"acme": {"weight": 3, "models": ["small"], "requests_per_min": 5}, "default": {"tokens_per_min": 9}},
}


def door(now_s: float = NOW_S - 1, *, trusts: bool = False, **changed: Any) -> Doorkeeper:
    settings = IdentitySettings.model_validate({**SETTINGS, **changed})
    return Doorkeeper(settings, lambda: now_s, trusts_tenant_header=trusts)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def refusal(keeper: Doorkeeper, headers: dict[str, str]) -> ApiError:
    with pytest.raises(ApiError) as caught:
        keeper.ask(headers)
    return caught.value


def test_a_key_names_its_tenant_and_class() -> None:
    caller = door().ask(bearer(KEY))
    assert (caller.tenant, caller.service_class, caller.allowance.weight) == ("acme", "batch", 3.0)
    assert door().ask({"authorization": f"bearer   {KEY} "}) == door().ask({"x-api-key": KEY}) == caller
    other = door().ask(bearer(OTHER))
    assert (other.tenant, other.allowance.tokens_per_min) == ("other", 9), "without an entry: those of `default`"


@pytest.mark.parametrize(
    "headers",
    [{}, bearer("hr-wrong"), bearer(OTHER), bearer(MADE), bearer(""), bearer("\udcff"),
     {"authorization": f"Basic {KEY}"}, {"authorization": KEY}, bearer(digest_of(KEY)), bearer("a.b.c")],
)  # fmt: skip
def test_invariant_1_missing_wrong_expired_and_revoked_are_refused_alike(headers: dict[str, str]) -> None:
    keeper = door(NOW_S)
    keeper.set_made({digest_of(MADE): KeyRecord("acme", revoked_at_s=5.0)}, {})
    error, nothing = refusal(keeper, headers), refusal(keeper, {})
    assert (error.status, error.code, grpc_code(error.status)) == (401, "invalid_api_key", "UNAUTHENTICATED")
    assert (error.body(), error.headers()) == (nothing.body(), {"WWW-Authenticate": "Bearer"})
    assert keeper.refused == 2


def test_invariant_1_wrong_expired_and_revoked_take_the_same_steps() -> None:
    """No clock: the opcodes that are executed, and those of an accepted key to compare with."""
    keeper = door(NOW_S)
    keeper.set_made({digest_of(MADE): KeyRecord("acme", revoked_at_s=5.0)}, {})
    steps = {key: _opcodes(partial(keeper.ask, bearer(key))) for key in (KEY, KEY[:-1], "hr-0000", OTHER, MADE)}
    assert len(steps[KEY]) > 20
    refused = [steps[key] for key in steps if key != KEY]
    assert all(one == refused[0] != steps[KEY] for one in refused)


def _opcodes(work: Callable[[], Any]) -> list[tuple[str, int]]:
    """Function and offset of everything that runs in Python."""
    seen: list[tuple[str, int]] = []

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        frame.f_trace_opcodes = True
        if event == "opcode":
            seen.append((frame.f_code.co_qualname, frame.f_lasti))
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with contextlib.suppress(ApiError):
            work()
    finally:
        sys.settrace(before)
    return seen


def test_where_none_is_asked_for_an_unknown_key_is_nobodys() -> None:
    keeper = door(NOW_S, required=False)
    for headers in ({}, bearer("hr-wrong"), bearer(OTHER)):
        caller = keeper.ask(headers)
        assert (caller.tenant, caller.allowance.tokens_per_min) == ("default", 9)
    assert keeper.ask(bearer(KEY)).tenant == "acme"


def test_nothing_configured_costs_nothing_and_knows_nobody() -> None:
    keeper = Doorkeeper(IdentitySettings(), lambda: NOW_S)
    assert not keeper.is_active and not keeper.has_many_tenants
    assert keeper.ask(bearer(KEY)) is ANYBODY
    keeper.set_made({digest_of(MADE): KeyRecord("acme")}, {})
    assert keeper.is_active and keeper.has_many_tenants, "acme, and those without a key"
    assert keeper.ask(bearer(MADE)).tenant == "acme"


def test_invariant_2_a_revocation_anywhere_counts_and_the_files_say_goes_first() -> None:
    keeper = door()
    keeper.set_made({digest_of(KEY): KeyRecord("thief"), digest_of(MADE): KeyRecord("acme", None, NOW_S)}, {})
    assert keeper.ask(bearer(KEY)).tenant == "acme"
    assert keeper.ask(bearer(MADE)).tenant == "acme"
    keeper.set_made({digest_of(KEY): KeyRecord("acme", revoked_at_s=1.0)}, {"other": TenantSettings(weight=7)})
    assert refusal(keeper, bearer(KEY)).status == 401
    assert refusal(keeper, bearer(MADE)).status == 401
    assert keeper.ask(bearer(OTHER)).allowance.weight == 7.0, "a tenant set at run time goes before the file"
    keeper.set_file_keys(IdentitySettings.model_validate({"keys": {digest_of(MADE): {"tenant": "filed"}}}).keys)
    assert keeper.ask(bearer(MADE)).tenant == "filed"


def test_the_tenant_header_is_believed_only_where_it_is_trusted() -> None:
    headers = {**bearer(KEY), "x-headrace-tenant": "team-1"}
    assert door().ask(headers).tenant == "acme"
    caller = door(trusts=True).ask(headers)
    assert (caller.tenant, caller.service_class, caller.allowance.tokens_per_min) == ("team-1", "batch", 9)
    assert refusal(door(trusts=True), {**headers, "x-headrace-tenant": "a b"}).code == "bad_tenant"
    assert refusal(door(trusts=True), {"x-headrace-tenant": "team-1"}).code == "invalid_api_key"


def test_more_than_one_tenant_can_ask() -> None:
    one = {digest_of(KEY): {"tenant": "acme"}}
    assert door().has_many_tenants
    assert not door(keys=one).has_many_tenants
    assert door(keys=one, required=False).has_many_tenants
    assert door(keys=one, trusts=True).has_many_tenants
    assert not door(keys=one | {digest_of(OTHER): {"tenant": "acme"}}).has_many_tenants


def test_models_are_closed_to_those_who_may_not_have_them() -> None:
    caller = door().ask(bearer(KEY))
    caller.check_model("small")
    with pytest.raises(ApiError) as caught:
        caller.check_model("large")
    error = caught.value
    assert (error.status, error.code, error.param) == (403, "model_not_allowed", "model")
    assert error.message == "the model 'large' is not open to you; allowed: small"
    assert grpc_code(403) == "PERMISSION_DENIED"


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"keys": {"hr-plain": {"tenant": "a"}}}, "should match pattern"),
        ({"keys": {digest_of(KEY): {"tenant": "a", "expires_at": "2027-01-15T08:00:00"}}}, "it has no time zone"),
        ({"tenants": {"a b": {}}}, "should match pattern"),
        ({"tenants": {"a": {"class": "chat", "classes": ["batch"]}}}, "'chat' is not among its classes, batch"),
        ({"tenants": {"a": {"budget_tokens": 0}}}, "greater than or equal to 1"),
        ({"tenants": {"a": {"budget": 5}}}, "Extra inputs"),
        ({"jwt": {"issuer": "i", "audience": "a"}}, "jwks_file or jwks_url"),
        ({"jwt": {"issuer": "i", "audience": "a", "jwks_url": "http://keys.example"}}, "who changes it on its way"),
    ],
)
def test_settings_that_cannot_be_are_refused(tree: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        IdentitySettings.model_validate(tree)
    assert words in str(caught.value)


def test_on_and_off_need_no_quotes_in_a_file() -> None:
    for text, wanted in (("on", "on"), ("off", "off"), ("auto", "auto"), ("'on'", "on")):
        tree = yaml.safe_load(f"isolate_caches: {text}")
        assert IdentitySettings.model_validate(tree).isolate_caches == wanted


JWT = JwtSettings(issuer="https://id.example", audience="headrace", jwks_url="https://id.example/keys", leeway_s=10)
CLAIMS = {"iss": "https://id.example", "aud": "headrace", "sub": "acme", "exp": 4_000_000_000}
RSA, WEAK = rsa.generate_private_key(65537, 2048), rsa.generate_private_key(65537, 1024)
EC, ED = ec.generate_private_key(ec.SECP256R1()), ed25519.Ed25519PrivateKey.generate()


def jwk(private: Any, algorithm: str, **added: str) -> dict[str, Any]:
    made: Any = get_default_algorithms()[algorithm]
    return {**json.loads(made.to_jwk(private.public_key())), **added}


JWKS = {
    "keys": [
        jwk(RSA, "RS256", kid="r"), jwk(EC, "ES256", kid="e"), jwk(ED, "EdDSA", kid="o"),
        jwk(WEAK, "RS256", kid="weak"), jwk(RSA, "RS256", kid="enc", use="enc"),
        jwk(RSA, "RS256", kid="ps", alg="PS256"),
        {"kty": "oct", "kid": "shared", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"},
    ]
}  # fmt: skip


def tokens(settings: JwtSettings = JWT) -> JwtTokens:
    made = JwtTokens(settings)
    assert made.set_jwks(json.dumps(JWKS).encode()) == 3
    return made


def ask(checker: JwtTokens, token: str, now_s: float = NOW_S) -> Any:
    return checker.claims(token, hashlib.sha256(token.encode()).digest(), now_s)


@pytest.mark.parametrize(("private", "algorithm", "kid"), [(RSA, "RS256", "r"), (EC, "ES256", "e"), (ED, "EdDSA", "o")])
def test_a_token_of_the_provider_names_its_tenant(private: Any, algorithm: str, kid: str) -> None:
    checker = tokens(JWT.model_copy(update={"class_claim": "tier"}))
    token = jwt.encode({**CLAIMS, "tier": "batch"}, private, algorithm, {"kid": kid})
    found = ask(checker, token)
    assert (found.tenant, found.service_class, found.ends_at_s) == ("acme", "batch", 4_000_000_010.0)
    assert ask(checker, token) is found, "invariant 3: not checked twice"


BAD_CLAIMS: list[dict[str, Any]] = [
    {"iss": "https://evil.example"}, {"aud": "other"}, {"exp": 1}, {"nbf": 4_000_000_000}, {"iat": 4_000_000_000},
    {"iss": None}, {"aud": None}, {"exp": None}, {"sub": None}, {"sub": 5}, {"exp": "soon"},
]  # fmt: skip


@pytest.mark.parametrize("claims", BAD_CLAIMS)
def test_invariant_2_claims_that_are_wrong_or_missing(claims: dict[str, Any]) -> None:
    made = {name: value for name, value in {**CLAIMS, **claims}.items() if value is not None}
    key = get_default_algorithms()["RS256"]
    header = {"alg": "RS256", "typ": "JWT", "kid": "r"}
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, made)]
    signed = b".".join(parts)
    signature = base64.urlsafe_b64encode(key.sign(signed, RSA)).rstrip(b"=")
    assert ask(tokens(), (signed + b"." + signature).decode()) is None


def test_invariant_1_the_key_says_the_algorithm_not_the_token() -> None:
    checker = tokens()
    pem = RSA.public_key().public_numbers().n.to_bytes(256, "big")
    forged = [
        jwt.encode(CLAIMS, "", "none", {"kid": "r"}),
        jwt.encode(CLAIMS, RSA, "RS512", {"kid": "r"}),
        jwt.encode(CLAIMS, RSA, "PS256", {"kid": "r"}),
        jwt.encode(CLAIMS, pem, "HS256", {"kid": "r"}),
        jwt.encode(CLAIMS, "secretsecretsecretsecretsecretse", "HS256", {"kid": "shared"}),
        jwt.encode(CLAIMS, EC, "ES256", {"kid": "r"}),
        jwt.encode(CLAIMS, rsa.generate_private_key(65537, 2048), "RS256", {"kid": "r"}),
        jwt.encode(CLAIMS, RSA, "RS256", {"kid": "enc"}),
        jwt.encode(CLAIMS, RSA, "RS256"),
        "a.b.c", "..", "é.é.é", "eyJhbGciOiJub25lIn0.e30.", "x" * 20_000 + "..",
    ]  # fmt: skip
    assert [ask(checker, token) for token in forged] == [None] * len(forged)
    good = jwt.encode(CLAIMS, RSA, "RS256", {"kid": "r"})
    head, body, signature = good.split(".")
    flipped = ("A" if signature[0] != "A" else "B") + signature[1:]
    assert ask(checker, f"{head}.{body}.{flipped}") is None
    assert ask(checker, good) is not None


def test_keys_that_change_forget_what_they_signed_and_unknown_ones_are_asked_for() -> None:
    checker = tokens()
    token = jwt.encode(CLAIMS, RSA, "RS256", {"kid": "r"})
    assert ask(checker, token) is not None
    assert not checker.wants_keys
    assert ask(checker, jwt.encode(CLAIMS, RSA, "RS256", {"kid": "new"})) is None
    assert checker.wants_keys
    for useless in (b"{", b"[]", b'{"keys": []}', json.dumps({"keys": [JWKS["keys"][-1]]}).encode()):
        with pytest.raises(JwksError):
            checker.set_jwks(useless)
    assert ask(checker, token) is not None, "what cannot be used changes nothing"
    checker.set_jwks(json.dumps({"keys": [JWKS["keys"][1]]}).encode())
    assert ask(checker, token) is None


def test_a_door_with_a_provider_takes_its_tokens_and_refuses_names_that_are_none() -> None:
    keeper = door(jwt={"issuer": JWT.issuer, "audience": "headrace", "jwks_url": JWT.jwks_url})
    keeper.tokens = tokens()
    caller = keeper.ask(bearer(jwt.encode(CLAIMS, RSA, "RS256", {"kid": "r"})))
    assert (caller.tenant, caller.allowance.requests_per_min) == ("acme", 5)
    assert refusal(keeper, bearer(jwt.encode({**CLAIMS, "sub": "a b"}, RSA, "RS256", {"kid": "r"}))).status == 401


SALTS = CacheSalts()
SALTS.set_secret(b"s" * 32)


def caller(tenant: str) -> Caller:
    return Caller(tenant, ANYBODY.allowance)


def test_a_salt_is_the_tenants_and_nobody_elses() -> None:
    salt = SALTS.wanted(caller("acme"), CHAT_ROUTE, {}, ())
    digest = hmac.new(b"s" * 32, b"acme", hashlib.sha256).digest()
    assert salt == base64.urlsafe_b64encode(digest)[:22].decode()
    others = {
        SALTS.wanted(caller(f"t{n}"), CHAT_ROUTE, {"cache_salt": own}, ()) for n in range(9) for own in (None, "a", "b")
    }
    assert len(others | {salt}) == 28
    assert all(other is not None and not set("@/\\\0") & set(other) for other in others), "vLLM takes none of these"
    same = SALTS.wanted(caller("t1"), CHAT_ROUTE, {"cache_salt": "a"}, ())
    assert same in others, "a client's own salt divides its tenant's cache as before"
    fresh = CacheSalts()
    assert fresh.wanted(caller("acme"), CHAT_ROUTE, {}, ()) is None


def test_routes_and_engines_without_the_field() -> None:
    assert SALTS.wanted(caller("acme"), "/tokenize", {}, ("prompt",)) is None
    assert SALTS.wanted(caller("acme"), "/v1/embeddings", {}, ("input", "cache_salt")) is not None
    with pytest.raises(ApiError) as caught:
        SALTS.wanted(caller("acme"), "/v1/embeddings", {}, ("input",))
    assert (caught.value.status, caught.value.code) == (503, "cache_not_isolated")
    for own in ("", 5, ["a"], False):
        with pytest.raises(ApiError) as caught:
            SALTS.wanted(caller("acme"), CHAT_ROUTE, {"cache_salt": own}, ())
        assert (caught.value.status, caught.value.param) == (400, "cache_salt")


@pytest.mark.parametrize("body", [b'{"a":1}', b' { "a" : "}" } \n', b'{"cache_salt":"mine","a":{"cache_salt":"x"}}'])
def test_the_body_keeps_its_bytes_and_says_the_salt_last(body: bytes) -> None:
    found = spliced(body, "salt", None)
    assert msgspec.json.decode(found) == {**msgspec.json.decode(body), "cache_salt": "salt"}
    assert json.loads(found)["cache_salt"] == "salt"
    assert found.startswith(body[: body.rindex(b"}")])
    assert json.loads(spliced(body, "salt", -3))["priority"] == -3
    assert json.loads(spliced(body, None, 4)) == {**json.loads(body), "priority": 4}
