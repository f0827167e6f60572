"""What a client asked. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(slots=True)
class HttpRequest:
    """One complete request.

    Headers have lower-case names; lines of one name are joined with ", " (RFC 9110 section 5.3). Headers about the
    connection (RFC 9110 section 7.6.1) are not among them.
    """

    method: str
    path: str  # of the target, as it was sent: nothing is decoded
    query: str  # behind the "?"
    headers: Mapping[str, str]
    is_http_11: bool  # else 1.0
    keep_alive: bool  # the client means to send more
    body: bytes = b""
    peer: str = ""  # the client's address
