"""The one table from what went wrong to what the client sees: HTTP status, OpenAI-shaped body, gRPC code. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from router.events import Reject, RejectReason


@dataclass(slots=True, eq=False)  # eq would take away the hash that every exception has
class ApiError(Exception):
    """An answer that is an error. Raised at the edges only; the core says Reject."""

    status: int
    type: str
    code: str
    message: str
    param: str | None = None
    retry_after_s: float | None = None
    allow: str | None = None  # methods, where another one was used

    def body(self) -> bytes:
        """The OpenAI error object."""
        return msgspec.json.encode(
            {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}
        )

    def headers(self) -> dict[str, str]:
        """Retry-After in whole seconds, rounded up, where it helps; Allow, WWW-Authenticate (RFC 9110, 15.5)."""
        headers = {} if self.allow is None else {"Allow": self.allow}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(max(1, -int(-self.retry_after_s // 1)))
        return headers

    def __str__(self) -> str:
        return self.message


_REJECTS = {
    RejectReason.UNKNOWN_MODEL: (404, "invalid_request_error", "model_not_found", "model"),
    RejectReason.ROUTE_NOT_SERVED: (404, "invalid_request_error", "route_not_served", None),
    RejectReason.NO_WORKER: (503, "service_unavailable_error", "no_worker", None),
    RejectReason.ATTEMPTS_EXHAUSTED: (502, "upstream_error", "attempts_exhausted", None),
    # 429: the client may come back, and is told when. 503: it was let in, and the promise could not be kept.
    RejectReason.TTFT_INFEASIBLE: (429, "rate_limit_error", "ttft_infeasible", None),
    RejectReason.TPOT_INFEASIBLE: (429, "rate_limit_error", "tpot_infeasible", None),
    RejectReason.KV_FULL: (429, "rate_limit_error", "kv_full", None),
    RejectReason.OVER_SHARE: (429, "rate_limit_error", "over_share", None),
    RejectReason.QUEUE_FULL: (429, "rate_limit_error", "queue_full", None),
    RejectReason.DEADLINE_PASSED: (408, "invalid_request_error", "deadline_passed", None),
    RejectReason.EXPIRED: (503, "service_unavailable_error", "expired", None),
}

# Names of grpc.StatusCode: this module does not import grpc.
_GRPC_CODES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    408: "DEADLINE_EXCEEDED",
    413: "RESOURCE_EXHAUSTED",
    422: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


def from_reject(reject: Reject) -> ApiError:
    """What a client is told about a rejection."""
    status, kind, code, param = _REJECTS[reject.reason]
    return ApiError(status, kind, code, reject.detail, param, reject.retry_after_s)


def bad_request(message: str, *, code: str, param: str | None = None, status: int = 400) -> ApiError:
    """The client's mistake."""
    return ApiError(status, "invalid_request_error", code, message, param)


def malformed_request(what: str) -> ApiError:
    """The bytes are no HTTP request that all readers understand alike."""
    return bad_request(f"malformed HTTP request: {what}", code="malformed_request")


def unknown_route(path: str) -> ApiError:
    """No such path."""
    return bad_request(f"there is no {path} here", code="unknown_route", status=404)


def method_not_allowed(method: str, path: str, allowed: Iterable[str]) -> ApiError:
    """The path has other methods."""
    names = ", ".join(sorted(allowed))
    error = bad_request(f"{method} is not allowed on {path}; use {names}", code="method_not_allowed", status=405)
    error.allow = names
    return error


def too_large(max_body_bytes: int) -> ApiError:
    """The body is over the limit."""
    return bad_request(
        f"the request body is larger than {max_body_bytes} bytes (router.max_body_bytes)",
        code="body_too_large",
        status=413,
    )


def broken_stream(detail: str) -> ApiError:
    """The engine was lost after the client had part of the answer."""
    return ApiError(502, "upstream_error", "stream_broken", f"the answer broke off: {detail}")


def internal() -> ApiError:
    """Our own bug; details are in the log, under the request id."""
    return ApiError(500, "internal_error", "internal", "internal error; the router's log has it under this request id")


def reject_codes() -> Mapping[int, tuple[str, ...]]:
    """Error codes of rejections, by HTTP status."""
    codes: dict[int, tuple[str, ...]] = {}
    for status, _, code, _ in _REJECTS.values():
        codes[status] = (*codes.get(status, ()), code)
    return codes


def grpc_code(status: int) -> str:
    """Name of the gRPC status code for an HTTP status."""
    return _GRPC_CODES.get(status, "INTERNAL" if status >= 500 else "FAILED_PRECONDITION")
