"""What a route of the admin API is, what it is called with and what it answers. One table of them is the whole API.

A route says who may use it, how it is described in the OpenAPI document, and whether it changes something: what changes
something is audited. A new subject is a module with a function that returns its routes, and a line in
`controlplane/admin.py`.
"""

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import unquote

import msgspec

from router.admin_tokens import AdminRole, Operator

_T = TypeVar("_T")
_PARAMETER = re.compile(r"\{(\w+)\}")
NAME = r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}"  # of a worker, a class, a tenant


@dataclass(frozen=True, slots=True)
class Answer:
    """Of one request. A `stream` is sent as it comes, in place of the body; it ends when the client goes away."""

    status: int
    body: bytes = b""
    media_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    stream: AsyncIterator[bytes] | None = None
    who: str | None = None  # for the audit, where it was not known before
    about: Mapping[str, str] = field(default_factory=dict)  # for the audit: what the path does not say


@dataclass(slots=True, eq=False)  # eq would take away the hash that every exception has
class RefusedError(Exception):
    """An answer that is an error. `who` asked, if that is known; `headers` of the answer."""

    status: int
    code: str
    message: str
    who: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message

    def answer(self) -> Answer:
        """What the client gets."""
        return json_answer({"error": {"message": self.message, "code": self.code}}, self.status, self.headers)


@dataclass(frozen=True, slots=True)
class Call:
    """One request that may be answered."""

    who: Operator
    path: Mapping[str, str]  # the path's parameters, decoded
    query: Mapping[str, str]  # the last of each name
    headers: Mapping[str, str]  # names in lower case
    body: bytes

    def read(self, kind: type[_T]) -> _T:
        """The JSON body; an empty one is an empty object. Raises RefusedError 400."""
        try:
            return msgspec.json.decode(self.body or b"{}", type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise RefusedError(400, "bad_body", f"the body is not as it should be: {error}") from None

    def number(self, name: str, default: float, least: float, most: float) -> float:
        """A number in the query. Raises RefusedError 400."""
        text = self.query.get(name)
        if text is None:
            return default
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not least <= value <= most:
            raise RefusedError(
                400, "bad_query", f"{name}: {text[:64]!r} is not allowed; allowed: {least:g} to {most:g}"
            )
        return value


Handle = Callable[[Call], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Query:
    """A parameter in the query, for the OpenAPI document."""

    name: str
    description: str
    kind: str = "string"


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one path. `{name}` in the path is a parameter. `role`: who may; None: everybody."""

    method: str
    path: str
    handle: Handle
    summary: str
    role: AdminRole | None = AdminRole.VIEWER
    query: Sequence[Query] = ()
    takes: type | None = None  # the JSON body
    gives: type | None = None  # the JSON answer; None: any
    media_type: str = "application/json"
    errors: Mapping[int, str] = field(default_factory=dict)  # codes by status, beyond those of access

    @property
    def is_change(self) -> bool:
        """It is audited, and a browser has to prove that the page asks."""
        return self.method != "GET"

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the path's parameters."""
        return tuple(_PARAMETER.findall(self.path))


class RouteTable:
    """All routes, found by path and method."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self.routes = tuple(routes)
        self._patterns = [(re.compile(_PARAMETER.sub(r"(?P<\1>[^/]+)", route.path)), route) for route in routes]

    def find(self, method: str, path: str) -> tuple[Route, Mapping[str, str]]:
        """The route and the path's parameters, decoded. Raises RefusedError 404 or 405."""
        allowed: list[str] = []
        for pattern, route in self._patterns:
            if (match := pattern.fullmatch(path)) is None:
                continue
            if route.method == method:
                return route, {name: unquote(value) for name, value in match.groupdict().items()}
            allowed.append(route.method)
        if allowed:
            names = ", ".join(sorted(set(allowed)))
            message = f"{method} is not allowed on {path[:128]}; use {names}"
            raise RefusedError(405, "method_not_allowed", message, headers={"Allow": names})
        raise RefusedError(404, "unknown_route", f"there is no {path[:128]} here; GET /openapi.json says what there is")


def json_answer(
    value: Any,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    who: str | None = None,
    about: Mapping[str, str] | None = None,
) -> Answer:
    """A value as JSON."""
    return Answer(status, msgspec.json.encode(value), headers=headers or {}, who=who, about=about or {})
