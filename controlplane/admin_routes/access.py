"""Who may do what with the admin API. Closed by default: without tokens nothing can be changed.

Invariants
 1. A change is answered only for an operator's token, or for a session of one with the header `x-headrace-csrf`.
 2. A session ends with its token: one that is taken out of the file opens nothing from then on, by cookie either.
 3. Neither tokens nor cookies are kept: only their SHA-256.
"""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie

from controlplane.admin_routes.route import RefusedError, Route
from controlplane.admin_settings import AdminSettings, is_loopback
from router.admin_tokens import AdminRole, AdminTokens, Operator, bearer, digest_of

CSRF_HEADER = "x-headrace-csrf"
COOKIE = "headrace_session"
_MOST_SESSIONS = 1024
_NOBODY = Operator("anonymous", AdminRole.VIEWER)
_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="headrace admin"'}


@dataclass(frozen=True, slots=True)
class _Session:
    token_digest: str
    ends_at_s: float


class Access:
    """The admin API's door. `now_s`: a monotonic clock."""

    def __init__(self, settings: AdminSettings, tokens: AdminTokens, now_s: Callable[[], float]) -> None:
        self._settings = settings
        self._tokens = tokens
        self._now_s = now_s
        self._sessions: dict[str, _Session] = {}  # by the digest of the cookie, oldest first

    @property
    def is_closed(self) -> bool:
        """There are no tokens: reading from this machine only, no changes."""
        return self._tokens.is_closed

    def check(self, route: Route, headers: Mapping[str, str]) -> Operator:
        """Who asks. Raises RefusedError 401 or 403. `headers` with names in lower case."""
        if route.role is None:
            return _NOBODY
        if self.is_closed:
            return self._check_closed(route, headers)
        who, by_cookie = self._who(headers)
        if not who.may(route.role):
            message = f"{who.name} is a {who.role}: this is for operators"
            raise RefusedError(403, "not_an_operator", message, who.name)
        if by_cookie and route.is_change and not headers.get(CSRF_HEADER):
            message = f"a change by cookie needs the header {CSRF_HEADER}"
            raise RefusedError(403, "csrf_missing", message, who.name)
        return who

    def open_session(self, token: str, *, behind_tls: bool = False) -> tuple[Operator, dict[str, str]]:
        """Who has the token, and the header that gives the browser its cookie. Raises RefusedError 401 or 403.

        `behind_tls`: something in front of us says that the browser came by TLS. Who says so wrongly has a cookie that
        his browser does not send.
        """
        if self.is_closed:
            raise _closed()
        digest = digest_of(token)
        who = self._tokens.find_digest(digest)
        if who is None:
            raise _unknown()
        cookie, now_s = secrets.token_urlsafe(32), self._now_s()
        self._forget_old(now_s)
        self._sessions[digest_of(cookie)] = _Session(digest, now_s + self._settings.session_s)
        return who, self._set_cookie(cookie, round(self._settings.session_s), behind_tls=behind_tls)

    def end_session(self, headers: Mapping[str, str]) -> dict[str, str]:
        """Forget the cookie's session; the header that takes the cookie from the browser."""
        cookie = _cookie(headers)
        if cookie is not None:
            self._sessions.pop(digest_of(cookie), None)
        return self._set_cookie("", 0)

    def _check_closed(self, route: Route, headers: Mapping[str, str]) -> Operator:
        if route.role is not AdminRole.VIEWER or route.is_change:
            raise _closed()
        host = headers.get("host", "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
        if host and not is_loopback(name):
            # Somebody's page, in a browser on this machine, under a name that its owner points to 127.0.0.1.
            raise RefusedError(
                403, "admin_closed", f"without admin.tokens_file this is read by a loopback address, not {host[:64]!r}"
            )
        return _NOBODY

    def _who(self, headers: Mapping[str, str]) -> tuple[Operator, bool]:
        """Who, and whether by cookie alone."""
        token = bearer(headers.get("authorization"))
        if token is not None:
            who = self._tokens.find(token)
            if who is None:
                raise _unknown()
            return who, False
        cookie = _cookie(headers)
        if cookie is None:
            message = "a token is needed: `Authorization: Bearer TOKEN`; `headrace admin token` makes one"
            raise RefusedError(401, "token_missing", message, headers=_CHALLENGE)
        session = self._sessions.get(digest_of(cookie))
        who = self._tokens.find_digest(session.token_digest) if session is not None else None
        if session is None or who is None or session.ends_at_s <= self._now_s():
            raise RefusedError(401, "session_ended", "the session has ended: log in again", headers=_CHALLENGE)
        return who, True

    def _forget_old(self, now_s: float) -> None:
        self._sessions = {digest: session for digest, session in self._sessions.items() if session.ends_at_s > now_s}
        while len(self._sessions) >= _MOST_SESSIONS:
            del self._sessions[next(iter(self._sessions))]

    def _set_cookie(self, value: str, max_age_s: int, *, behind_tls: bool = False) -> dict[str, str]:
        secure = "; Secure" if behind_tls or self._settings.tls is not None else ""
        return {"Set-Cookie": f"{COOKIE}={value}; Path=/; Max-Age={max_age_s}; HttpOnly; SameSite=Strict{secure}"}


def _cookie(headers: Mapping[str, str]) -> str | None:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return None
    return found.value if found is not None and found.value else None


def _closed() -> RefusedError:
    message = "changes are closed by default: name a file of tokens in admin.tokens_file (`headrace admin token`)"
    return RefusedError(403, "admin_closed", message)


def _unknown() -> RefusedError:
    return RefusedError(401, "invalid_token", "nobody here has this token", headers=_CHALLENGE)
