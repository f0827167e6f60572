"""The wire form of a lease."""

import json

import pytest

from tests.builders import make_worker
from workers.lease_record import LEASE_VERSION, LeaseRecord, LeaseRecordError, decode, encode
from workers.types import Phase, Role

STATE = make_worker("décode-1 \U0001f600", Role.DECODE, phase=Phase.DRAINING, epoch=1_795_238_618_706, running_seqs=3)


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("phase", list(Phase))
def test_what_is_written_is_what_is_read(role: Role, phase: Phase) -> None:
    state = make_worker(role=role, phase=phase, waiting_seqs=7)
    assert decode(encode(state, 5)) == LeaseRecord(LEASE_VERSION, 5, state)


def test_the_record_is_json_that_a_person_can_read() -> None:
    record = json.loads(encode(STATE, 9))
    assert (record["version"], record["beat"]) == (1, 9)
    assert record["state"]["phase"] == "draining"
    assert record["state"]["spec"]["role"] == "decode"
    assert record["state"]["spec"]["id"] == STATE.spec.id
    assert record["state"]["load"]["running_seqs"] == 3


def test_fields_of_a_later_headrace_are_ignored() -> None:
    record = json.loads(encode(STATE, 9))
    record["state"]["load"]["watts"] = 300
    record["later"] = [1]
    assert decode(json.dumps(record).encode()) == decode(encode(STATE, 9))


@pytest.mark.parametrize("shape", [{}, {"beat": "nine"}, {"state": None}], ids=str)
def test_another_version_is_named_whatever_its_shape(shape: dict[str, object]) -> None:
    with pytest.raises(LeaseRecordError, match="lease record of version 2; this Headrace reads 1"):
        decode(json.dumps({"version": 2, **shape}).encode())


def without(*path: str) -> bytes:
    record = json.loads(encode(STATE, 9))
    part = record
    for name in path[:-1]:
        part = part[name]
    del part[path[-1]]
    return json.dumps(record).encode()


GARBAGE = {
    "empty": b"",
    "not json": b"hello",
    "no object": b"[]",
    "half": encode(STATE, 9)[:-1],
    "no version": without("version"),
    "no beat": without("beat"),
    "no epoch": without("state", "spec", "epoch"),
    "no load": without("state", "load"),
    "unknown role": encode(STATE, 9).replace(b'"decode"', b'"encode"'),
    "beat is text": encode(STATE, 9).replace(b'"beat":9', b'"beat":"9"'),
    "invalid UTF-8": encode(STATE, 9).replace(b"http:", b"\xff\xfe"),
    "deep": b'{"version": 1, "x": ' + b"[" * 100_000,
}


@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE)
def test_anything_else_is_a_lease_record_error(data: bytes) -> None:
    with pytest.raises(LeaseRecordError, match="not a lease record"):
        decode(data)
