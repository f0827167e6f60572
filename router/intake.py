"""From a client's request to what the service takes: shared by the HTTP listener and the gRPC server."""

import hashlib
import os
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import xxhash
from msgspec import Struct
from msgspec.structs import replace

from kvstore.types import RequestId
from router.class_gate import ClassGate
from router.dispatch import EngineCall
from router.errors import ApiError
from router.identity.cache_salts import FIELD, NO_KV_ROUTES, CacheSalts, spliced
from router.identity.caller import Caller
from router.identity.doorkeeper import Doorkeeper
from router.identity.usage_ledger import Ticket, UsageLedger
from router.identity_settings import IdentitySettings
from router.interfaces import RequestTrace
from router.openai import (
    CHAT_ROUTE,
    COMPLETION_ROUTE,
    EXPLAIN_HEADER,
    FORWARDED_HEADERS,
    GENERATION_ROUTES,
    ParsedBody,
    check_fields,
    parse_body,
    usable_request_id,
)
from router.prompt_index import Located, PromptIndex
from router.refusals import NO_CLASS, Refused, Tell, nobody_listens
from router.settings import RouterSettings
from router.slo import Resolved, class_name_of, resolve
from router.slo_settings import SloSettings
from router.tokens.ids import takes_ids
from router.tracing import NO_TRACE
from router.types import UNPROMISED, Request
from router.usage import asks_for_usage

_NO_TERMS = Resolved(UNPROMISED, is_implicit=True)


class Intake(Struct, frozen=True, gc=False):
    """A request that has been understood."""

    request: Request
    located: Located
    call: EngineCall
    public_id: str  # in x-request-id and the engine's logs: the client's own id, or ours
    wants_explanation: bool  # response headers that say where it ran and why
    ticket: Ticket | None = None  # what its tenant is charged on; None: nothing depends on who asks


@dataclass(frozen=True, slots=True)
class FleetFacts:
    """What the engines know, as far as it concerns one route."""

    fields: Mapping[str, frozenset[str]]  # by model, request fields that some engine of it knows; none: not known
    base_of: Mapping[str, str]  # the model of each LoRA adapter


@dataclass(frozen=True, slots=True)
class FrontDesk:
    """Understands requests. Needs nothing of the fleet but what its engines know."""

    settings: RouterSettings
    slo: SloSettings
    prompts: PromptIndex
    digest_key: bytes = b""  # secret: a recording holds digests, and short prompts could be guessed from plain ones
    gate: ClassGate = field(default_factory=ClassGate)
    door: Doorkeeper = field(default_factory=lambda: Doorkeeper(IdentitySettings(), time.time))
    salts: CacheSalts = field(default_factory=CacheSalts)
    ledger: UsageLedger = field(default_factory=lambda: UsageLedger("one"))  # the service's
    refused: Tell = nobody_listens  # told of every request that is refused here

    async def take_in(
        self,
        route: str,
        raw_body: bytes,
        headers: Mapping[str, str],
        facts: FleetFacts,
        trace: RequestTrace = NO_TRACE,
        *,
        may_change_body: bool = True,
    ) -> Intake:
        """Understand a request; raises ApiError 400, 401, 403, 429 for a tenant over a limit, 503 for a paused class.

        `headers` with lower-case names or case-insensitive. `may_change_body`: not where a gateway carries it, whose
        tenants then share what engines have cached.
        """
        caller: Caller | None = None
        try:
            caller = self.door.ask(headers)
            return await self._take_in(caller, route, raw_body, headers, facts, trace, may_change_body)
        except ApiError as error:
            self.refused(self._refused(caller, route, headers, error))
            raise

    async def _take_in(
        self,
        caller: Caller,
        route: str,
        raw_body: bytes,
        headers: Mapping[str, str],
        facts: FleetFacts,
        trace: RequestTrace,
        may_change_body: bool,
    ) -> Intake:
        body = parse_body(route, raw_body)
        caller.check_model(body.model)
        if caller.allowance.is_limited:  # before the work; what it asks for exactly is looked at when it begins
            need = body.num_prompt_tokens + _most_output_tokens(body, route)
            self.ledger.check(caller.tenant, caller.allowance, need, time.time())
        model = facts.base_of.get(body.model, body.model)
        adapter = body.model if model != body.model else ""
        if self.settings.unknown_fields == "reject":
            check_fields(body.fields, facts.fields.get(model, frozenset()))
        has_terms = self.slo.enabled and route in GENERATION_ROUTES
        resolved = resolve(headers, self.slo, caller) if has_terms else _NO_TERMS
        if has_terms:
            self.gate.check(resolved.terms.class_name)
        if may_change_body and (self.salts.is_on or caller.allowance.priority is not None):
            raw_body, body = self._marked(caller, route, raw_body, body, facts.fields.get(model, frozenset()))
        with trace.step("tokenise") as span:
            located = await self.prompts.locate(model, route, body.fields, adapter)
            if span.is_recorded:
                span.set(counted=located.num_tokens is not None, prompt_tokens=located.num_tokens or 0)
        ticket = self._ticket(caller, located.num_tokens or body.num_prompt_tokens, body, route)
        request_id = RequestId(os.urandom(16).hex())  # never the client's: two clients may send the same
        public_id = usable_request_id(headers.get("x-request-id")) or request_id
        forwarded = {name: headers[name] for name in FORWARDED_HEADERS if name in headers}
        reads_usage = route in (CHAT_ROUTE, COMPLETION_ROUTE)
        return Intake(
            request=Request(
                id=request_id,
                model=model,
                adapter=adapter,
                route=route,
                num_prompt_tokens=located.num_tokens or body.num_prompt_tokens,
                max_output_tokens=body.max_output_tokens,
                can_hand_off=body.can_hand_off,
                terms=resolved.terms,
                terms_implicit=resolved.is_implicit,
                streamed=body.stream,
                tokens_counted=located.num_tokens is not None,
                session=forwarded.get("x-session-id", ""),
                digest=_digest(raw_body, self.digest_key) if has_terms else b"",
            ),
            located=located if located.tokens is None else replace(located, tokens=None),
            call=EngineCall(
                request_id=request_id,
                route=route,
                raw_body=raw_body,
                fields=body.fields,
                stream=body.stream,
                reads_usage=reads_usage,
                strips_usage=reads_usage and body.stream and not asks_for_usage(body.fields),
                headers={**forwarded, "content-type": "application/json", "x-request-id": public_id},
                tokens=located.tokens if not adapter and takes_ids(route, body.fields) else None,
                ticket=ticket,
            ),
            public_id=public_id,
            wants_explanation=self.settings.explain.headers and headers.get(EXPLAIN_HEADER) == "1",
            ticket=ticket,
        )

    def _refused(self, caller: Caller | None, route: str, headers: Mapping[str, str], error: ApiError) -> Refused:
        if caller is None:
            return Refused(route, error.status, error.code, NO_CLASS, None)
        has_class = self.slo.enabled and route in GENERATION_ROUTES
        class_name = class_name_of(headers, self.slo, caller) if has_class else NO_CLASS
        return Refused(route, error.status, error.code, class_name, caller.tenant)

    def _marked(
        self, caller: Caller, route: str, raw_body: bytes, body: ParsedBody, known: Collection[str]
    ) -> tuple[bytes, ParsedBody]:
        """The body with its tenant's cache salt and priority. Raises ApiError 400 or 503."""
        salt = self.salts.wanted(caller, route, body.fields, known)
        priority = caller.allowance.priority if route in GENERATION_ROUTES else None
        added: dict[str, object] = {} if salt is None else {FIELD: salt}
        if priority is not None:
            added["priority"] = priority
        if not added:
            return raw_body, body
        return spliced(raw_body, salt, priority), replace(body, fields={**body.fields, **added})

    def _ticket(self, caller: Caller, prompt_tokens: int, body: ParsedBody, route: str) -> Ticket | None:
        if not self.door.is_active:
            return None
        if route in NO_KV_ROUTES:
            return Ticket(caller.tenant, caller.allowance, 0, 0)
        return Ticket(caller.tenant, caller.allowance, prompt_tokens, _most_output_tokens(body, route))


def _most_output_tokens(body: ParsedBody, route: str) -> int:
    return body.max_output_tokens * body.num_sequences if route in GENERATION_ROUTES else 0


def _digest(raw_body: bytes, key: bytes) -> bytes:
    """Recognises a request of the same tenant. A cryptographic hash of a long prompt alone takes 100 microseconds.

    Who makes two bodies look alike gains a place that was kept for himself. Those who read a recording cannot guess a
    body: of xxh3's sum, which could be tried out, they see a keyed hash.
    """
    return hashlib.blake2b(xxhash.xxh3_128_digest(raw_body), digest_size=16, key=key).digest()
