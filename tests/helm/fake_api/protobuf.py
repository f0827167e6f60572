"""The few protobuf bodies that helm sends: its release Secrets. Everything else it sends as JSON or YAML.

Kubernetes wraps a message: b"k8s\\0", then runtime.Unknown {1: TypeMeta {1: apiVersion, 2: kind}, 2: raw}
(k8s.io/apimachinery/pkg/runtime/generated.proto).
"""

import base64
from collections.abc import Iterator
from typing import Any

_META = {1: "name", 2: "generateName", 3: "namespace", 6: "resourceVersion"}
_META_MAPS = {11: "labels", 12: "annotations"}


def decode(raw: bytes) -> dict[str, Any]:
    """The object; raises ValueError for a kind or a field that is not known here."""
    if raw[:4] != b"k8s\0":
        raise ValueError("not a Kubernetes protobuf body")
    unknown = {number: value for number, value in _fields(raw[4:])}
    meta = {number: value for number, value in _fields(_bytes(unknown[1]))}
    api_version, kind = _bytes(meta[1]).decode(), _bytes(meta[2]).decode()
    if kind != "Secret":
        raise ValueError(f"{kind} as protobuf")
    decoded: dict[str, Any] = {"apiVersion": api_version, "kind": kind, "data": {}}
    for number, value in _fields(_bytes(unknown[2])):
        if number == 1:
            decoded["metadata"] = _metadata(_bytes(value))
        elif number == 2:
            key, content = _entry(_bytes(value))
            decoded["data"][key] = base64.b64encode(content).decode()
        elif number == 3:
            decoded["type"] = _bytes(value).decode()
        else:
            raise ValueError(f"field {number} of a Secret")
    return decoded


def _metadata(raw: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for number, value in _fields(raw):
        if number in _META_MAPS:
            key, content = _entry(_bytes(value))
            found.setdefault(_META_MAPS[number], {})[key] = content.decode()
        elif number in _META and value:
            found[_META[number]] = _bytes(value).decode()
    return found


def _entry(raw: bytes) -> tuple[str, bytes]:
    parts = {number: value for number, value in _fields(raw)}
    return _bytes(parts.get(1, b"")).decode(), _bytes(parts.get(2, b""))


def _bytes(value: bytes | int) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where bytes were expected")  # noqa: TRY004
    return value


def _fields(raw: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Field numbers and values; only varints and bytes occur."""
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = raw[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while position < len(raw):
        tag = varint()
        match tag & 7:
            case 0:
                yield tag >> 3, varint()
            case 2:
                length = varint()
                position += length
                yield tag >> 3, raw[position - length : position]
            case other:
                raise ValueError(f"wire type {other}")
