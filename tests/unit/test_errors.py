"""The one table from errors to what a client sees."""

import json
import pickle

import grpc
import pytest

from kvstore.types import RequestId
from router.errors import ApiError, bad_request, broken_stream, from_reject, grpc_code, internal, too_large
from router.events import Reject, RejectReason

EXPECTED = {
    RejectReason.UNKNOWN_MODEL: (404, "model_not_found", "model"),
    RejectReason.ROUTE_NOT_SERVED: (404, "route_not_served", None),
    RejectReason.NO_WORKER: (503, "no_worker", None),
    RejectReason.ATTEMPTS_EXHAUSTED: (502, "attempts_exhausted", None),
    RejectReason.TTFT_INFEASIBLE: (429, "ttft_infeasible", None),
    RejectReason.TPOT_INFEASIBLE: (429, "tpot_infeasible", None),
    RejectReason.KV_FULL: (429, "kv_full", None),
    RejectReason.OVER_SHARE: (429, "over_share", None),
    RejectReason.QUEUE_FULL: (429, "queue_full", None),
    RejectReason.DEADLINE_PASSED: (408, "deadline_passed", None),
    RejectReason.EXPIRED: (503, "expired", None),
}


@pytest.mark.parametrize("reason", list(RejectReason))
def test_every_reject_has_its_answer(reason: RejectReason) -> None:
    error = from_reject(Reject(RequestId("r"), reason, "why", 2.0))
    assert (error.status, error.code, error.param) == EXPECTED[reason]
    assert error.message == str(error) == "why"
    assert error.retry_after_s == 2.0


def test_the_body_is_the_openai_error_object() -> None:
    error = bad_request("no 'model' \"\n\U0001f600", code="invalid_model", param="model")
    assert json.loads(error.body()) == {
        "error": {
            "message": "no 'model' \"\n\U0001f600",
            "type": "invalid_request_error",
            "param": "model",
            "code": "invalid_model",
        }
    }


@pytest.mark.parametrize(
    ("retry_after_s", "expected"),
    [(None, {}), (0.1, {"Retry-After": "1"}), (2.0, {"Retry-After": "2"}), (2.01, {"Retry-After": "3"})],
)
def test_retry_after_is_whole_seconds_and_never_too_early(
    retry_after_s: float | None, expected: dict[str, str]
) -> None:
    assert from_reject(Reject(RequestId("r"), RejectReason.NO_WORKER, "", retry_after_s)).headers() == expected


def test_statuses() -> None:
    assert too_large(10).status == 413
    assert "10 bytes (router.max_body_bytes)" in too_large(10).message
    assert broken_stream("worker x: gone").status == 502
    assert internal().status == 500


def test_an_error_behaves_as_an_exception() -> None:
    """Hashable (logging and tracing libraries keep sets of them), told apart by identity, and it can be pickled."""
    one, other = internal(), internal()
    assert len({one, other}) == 2
    assert pickle.loads(pickle.dumps(ApiError(400, "t", "c", "m"))).status == 400


@pytest.mark.parametrize("status", [*range(400, 432), *range(500, 512), 499, 302])
def test_every_status_has_a_real_grpc_code(status: int) -> None:
    assert getattr(grpc.StatusCode, grpc_code(status)) is not grpc.StatusCode.OK


def test_grpc_codes_that_clients_retry_on_are_those_of_our_own_failures() -> None:
    assert {s for s in range(400, 600) if grpc_code(s) == "UNAVAILABLE"} == {502, 503}
    assert grpc_code(400) == "INVALID_ARGUMENT"
    assert grpc_code(404) == "NOT_FOUND"
    assert grpc_code(500) == "INTERNAL"
