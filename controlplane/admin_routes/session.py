"""Sessions of browsers: a token once, then a cookie that no script can read."""

from collections.abc import Sequence

import msgspec

from controlplane.admin_routes.access import Access
from controlplane.admin_routes.route import Answer, Call, Route, json_answer
from router.admin_tokens import bearer


class LogIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /session; the token may be in `Authorization` instead."""

    token: str = ""


class Who(msgspec.Struct, frozen=True):
    """Whose session it is."""

    name: str
    role: str
    is_closed: bool = False  # there are no tokens: nobody signs in, and nothing can be changed


def routes(access: Access) -> Sequence[Route]:
    """GET, POST and DELETE /session."""

    async def log_in(call: Call) -> Answer:
        token = call.read(LogIn).token or bearer(call.headers.get("authorization")) or ""
        behind_tls = call.headers.get("x-forwarded-proto", "").lower() == "https"
        who, cookie = access.open_session(token, behind_tls=behind_tls)
        return json_answer(Who(who.name, who.role.value), headers=cookie, who=who.name)

    async def who(call: Call) -> Answer:
        return json_answer(Who(call.who.name, call.who.role.value, access.is_closed))

    async def log_out(call: Call) -> Answer:
        return json_answer({}, headers=access.end_session(call.headers))

    errors = {401: "invalid_token", 403: "admin_closed"}
    return (
        Route("GET", "/session", who, "Who asks, by token or cookie.", gives=Who),
        Route("POST", "/session", log_in, "A token for a cookie.", None, takes=LogIn, gives=Who, errors=errors),
        Route("DELETE", "/session", log_out, "Forget the cookie.", None),
    )
