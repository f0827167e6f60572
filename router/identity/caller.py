"""Who asks, and what they may have: what a request needs of a tenant's settings. Pure."""

from collections.abc import Mapping

from msgspec import Struct

from router.errors import ApiError, bad_request
from router.identity_settings import DEFAULT_TENANT, TenantSettings

# One text for missing, wrong, expired and revoked: nobody learns which keys there were.
_UNAUTHORISED = "a valid API key is needed: `Authorization: Bearer KEY`"


class Allowance(Struct, frozen=True, gc=False):
    """A tenant's settings, in the form in which requests read them."""

    weight: float = 1.0
    value: float = 1.0
    service_class: str | None = None
    classes: tuple[str, ...] | None = None  # None: all; the first is taken where none is named
    models: frozenset[str] | None = None
    requests_per_min: int | None = None
    tokens_per_min: int | None = None
    budget_tokens: int | None = None
    budget_period: str = "month"
    priority: int | None = None

    @property
    def is_limited(self) -> bool:
        """Some use of it is bounded."""
        return not (self.requests_per_min is None and self.tokens_per_min is None and self.budget_tokens is None)


class Caller(Struct, frozen=True, gc=False):
    """Whoever sent a request."""

    tenant: str
    allowance: Allowance
    service_class: str | None = None  # of the key or token, else of the tenant

    def check_model(self, name: str) -> None:
        """Raise ApiError 403 for a model that the tenant may not ask for."""
        models = self.allowance.models
        if models is not None and name not in models:
            allowed = ", ".join(sorted(models))
            message = f"the model {name[:64]!r} is not open to you; allowed: {allowed}"
            raise ApiError(403, "permission_error", "model_not_allowed", message, "model")

    def check_class(self, name: str, param: str | None) -> None:
        """Raise ApiError 403 for a class that the tenant may not have."""
        classes = self.allowance.classes
        if classes is not None and name not in classes:
            allowed = ", ".join(classes)
            message = f"the class {name!r} is not open to you; allowed: {allowed}"
            raise ApiError(403, "permission_error", "class_not_allowed", message, param)

    def may_see(self, model: str) -> bool:
        """Whether it is listed."""
        return self.allowance.models is None or model in self.allowance.models


ANYBODY = Caller(DEFAULT_TENANT, Allowance())


def allowance_of(settings: TenantSettings) -> Allowance:
    """Of settings as they are written."""
    return Allowance(
        weight=settings.weight,
        value=settings.value,
        service_class=settings.service_class,
        classes=settings.classes,
        models=None if settings.models is None else frozenset(settings.models),
        requests_per_min=settings.requests_per_min,
        tokens_per_min=settings.tokens_per_min,
        budget_tokens=settings.budget_tokens,
        budget_period=settings.budget_period,
        priority=settings.priority,
    )


def unauthorised() -> ApiError:
    """No valid credential, whatever is wrong with it."""
    return bad_request(_UNAUTHORISED, code="invalid_api_key", status=401)


def credential(headers: Mapping[str, str]) -> str | None:
    """The key or token of a request: `Authorization: Bearer`, or `x-api-key` as Anthropic's clients send it."""
    scheme, _, found = headers.get("authorization", "").partition(" ")
    if found and (scheme == "Bearer" or scheme.lower() == "bearer"):
        return found.strip() or None
    return headers.get("x-api-key") or None
