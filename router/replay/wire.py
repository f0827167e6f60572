"""Exact JSON forms of dataclasses, structs and named tuples, built from their type hints. Pure.

An object is an object of its fields by name; one of several kinds says its `type` too. JSON has no form for some
values: infinities and NaN are the strings "inf", "-inf", "nan", integers beyond 64 bits hexadecimal strings, bytes
hexadecimal, sets sorted lists, enums their values. So every value comes back as it was, bit by bit.

A field that is missing has its default. One that is not known comes from a newer writer, and is refused.

Invariants
 1. decode(encode(x)) equals x and encodes to the same JSON, for every value of the hinted type.
 2. A type without an exact form is refused when the form is built, not when a value of it turns up.
"""

import math
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints

import msgspec

_MOST_JSON_INT = 2**63 - 1


class Form(NamedTuple):
    """How values of one type are written and read. `decode` raises ValueError, TypeError or KeyError."""

    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]


class Forms:
    """Builds the forms of types; `special` ones take the place of what the hints would give."""

    def __init__(self, special: Mapping[type, Form] | None = None) -> None:
        self._built: dict[type, Form] = dict(special or {})

    def of(self, hint: Any) -> Form:
        """The form of a type hint; raises TypeError where there is no exact one."""
        hint = getattr(hint, "__supertype__", hint)  # of a NewType
        if hint in _SCALARS:
            return _SCALARS[hint]
        origin, arguments = get_origin(hint), get_args(hint)
        if origin in (Union, types.UnionType):
            return self._union(arguments)
        if origin is tuple and arguments[1:] == (Ellipsis,):
            return _list_of(self.of(arguments[0]), tuple)
        if origin is tuple:
            return _fixed([self.of(argument) for argument in arguments])
        if origin is frozenset:
            return _sorted_list_of(self.of(arguments[0]))
        if origin is Mapping and arguments[0] is str:
            return _mapping(self.of(arguments[1]))
        if isinstance(hint, type) and issubclass(hint, Enum):
            return Form(lambda value: value.value, hint)
        if isinstance(hint, type) and _parts(hint) is not None:
            if hint not in self._built:
                self._built[hint] = self._object(hint)
            return self._built[hint]
        raise TypeError(f"{hint!r} has no exact form in JSON")

    def _union(self, members: tuple[Any, ...]) -> Form:
        if type(None) in members:
            return _optional([self.of(member) for member in members if member is not type(None)])
        if any(_parts(member) is None for member in members):
            raise TypeError(f"a union of {members!r} has no exact form in JSON")
        forms = {member.__name__: self.of(member) for member in members}

        def encode(value: Any) -> dict[str, Any]:
            name = type(value).__name__
            return {"type": name, **forms[name].encode(value)}

        def decode(item: Any) -> Any:
            rest = dict(_of_type(dict, item))
            name = rest.pop("type")
            if name not in forms:
                raise ValueError(f"type {name!r} is not known here")
            return forms[name].decode(rest)

        return Form(encode, decode)

    def _object(self, cls: type) -> Form:
        hints, parts = get_type_hints(cls), _parts(cls) or {}
        forms = {name: self.of(hints[name]) for name in parts}
        encoders = [(name, form.encode) for name, form in forms.items()]
        required = [name for name, has_default in parts.items() if not has_default]

        def encode(value: Any) -> dict[str, Any]:
            return {name: encode_field(getattr(value, name)) for name, encode_field in encoders}

        def decode(item: Any) -> Any:
            found = _of_type(dict, item)
            for name in required:
                if name not in found:
                    raise ValueError(f"{cls.__name__} has no {name}")
            for name in found:
                if name not in forms:
                    raise ValueError(f"{cls.__name__}.{name} is not known here")
            return cls(**{name: forms[name].decode(part) for name, part in found.items()})

        return Form(encode, decode)


def _parts(cls: Any) -> dict[str, bool] | None:
    """Names of a dataclass's, struct's or named tuple's fields, and which have a default; None for other types."""
    if is_dataclass(cls):
        return {f.name: f.default is not MISSING or f.default_factory is not MISSING for f in fields(cls)}
    if isinstance(cls, type) and issubclass(cls, msgspec.Struct):
        return {f.name: not f.required for f in msgspec.structs.fields(cls)}
    defaults = getattr(cls, "_field_defaults", None)
    return None if defaults is None else {name: name in defaults for name in cls._fields}


def _optional(some: list[Form]) -> Form:
    if len(some) != 1:
        raise TypeError("a union of several types and None has no exact form in JSON")
    encode, decode = some[0]
    return Form(
        lambda value: None if value is None else encode(value),
        lambda item: None if item is None else decode(item),
    )


def _list_of(part: Form, make: Callable[[list[Any]], Any]) -> Form:
    encode, decode = part
    return Form(
        lambda value: [encode(item) for item in value],
        lambda items: make([decode(item) for item in _of_type(list, items)]),
    )


def _sorted_list_of(part: Form) -> Form:
    plain = _list_of(part, frozenset)
    return Form(lambda value: sorted(plain.encode(value)), plain.decode)


def _fixed(parts: list[Form]) -> Form:
    return Form(
        lambda value: [part.encode(item) for part, item in zip(parts, value, strict=True)],
        lambda items: tuple(part.decode(item) for part, item in zip(parts, _of_type(list, items), strict=True)),
    )


def _mapping(part: Form) -> Form:
    return Form(
        lambda value: {key: part.encode(item) for key, item in value.items()},
        lambda items: {key: part.decode(item) for key, item in _of_type(dict, items).items()},
    )


def _encode_float(value: float) -> float | str:
    value = float(value)  # an integer otherwise, or numpy's own kind
    return value if math.isfinite(value) else str(value)


def _decode_float(item: Any) -> float:
    if isinstance(item, str) and item not in ("inf", "-inf", "nan"):
        raise ValueError(f"{item!r:.80} is no number")
    return float(item)


def _encode_int(value: int) -> int | str:
    value = int(value)
    return value if -_MOST_JSON_INT <= value <= _MOST_JSON_INT else hex(value)


def _decode_int(item: Any) -> int:
    return int(item, 16) if isinstance(item, str) else int(_of_type(int, item))


def _same(kind: type) -> Form:
    return Form(kind, lambda item: _of_type(kind, item))


def _of_type(kind: type, item: Any) -> Any:
    if not isinstance(item, kind):
        raise TypeError(f"{item!r:.80} where {kind.__name__} is due")
    return item


FLOAT = Form(_encode_float, _decode_float)
_SCALARS: Mapping[Any, Form] = {
    float: FLOAT,
    int: Form(_encode_int, _decode_int),
    str: _same(str),
    bool: _same(bool),
    bytes: Form(lambda value: value.hex(), bytes.fromhex),
}
