"""What files and Redis say of keys, tenants and secrets: read and checked."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml
from pydantic import TypeAdapter, ValidationError

from router.identity_settings import IdentitySettings, KeyDigest, KeySettings, TenantSettings

_KEYS = TypeAdapter(dict[KeyDigest, KeySettings])
_LEAST_SECRET_BYTES = 16


class IdentityError(Exception):
    """A file that the configuration names cannot be used; says which setting."""


def parse_keys(text: str, name: str) -> dict[str, KeySettings]:
    """The keys in a file's text. Raises IdentityError, without a word of what is in it: it may be a key."""
    try:
        tree = yaml.safe_load(text)
        return _KEYS.validate_python({} if tree is None else tree)
    except yaml.YAMLError:
        raise IdentityError(f"identity.keys_file: {name} is not valid YAML") from None
    except ValidationError as error:
        raise IdentityError(
            f"identity.keys_file: {name}: {error.error_count()} mistake(s), the first: {error.errors()[0]['type']}; "
            "allowed: the SHA-256 of each key in hex, and with it {tenant: NAME, class: NAME, expires_at: TIME}"
        ) from None


def written_keys(settings: IdentitySettings) -> dict[str, KeySettings]:
    """The keys of the configuration and of `keys_file`, as it is now. Raises IdentityError."""
    name = settings.keys_file
    in_file = parse_keys(read_text(name, "identity.keys_file"), name) if name is not None else {}
    return {**in_file, **settings.keys}


def file_problems(settings: IdentitySettings) -> Iterator[str]:
    """What a router that starts with them would say of the files that are named."""
    try:
        written_keys(settings)
    except IdentityError as error:
        yield str(error)
    try:
        if settings.salt_secret_file is not None:
            read_secret(settings.salt_secret_file)
        if settings.jwt is not None and settings.jwt.jwks_file is not None:
            read_text(settings.jwt.jwks_file, "identity.jwt.jwks_file")
    except IdentityError as error:
        yield str(error)


def read_text(name: str, setting: str) -> str:
    """A file that `setting` names. Raises IdentityError."""
    try:
        return Path(name).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise IdentityError(f"{setting}: {name} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def read_secret(name: str) -> bytes:
    """What `identity.salt_secret_file` holds. Raises IdentityError."""
    secret = read_text(name, "identity.salt_secret_file").strip().encode()
    if len(secret) < _LEAST_SECRET_BYTES:
        raise IdentityError(
            f"identity.salt_secret_file: {name} has {len(secret)} bytes; allowed: {_LEAST_SECRET_BYTES} or more"
        )
    return secret


def made_settings(tenants: Mapping[str, bytes]) -> dict[str, TenantSettings]:
    """Settings kept in Redis that can be read."""
    found: dict[str, TenantSettings] = {}
    for name, raw in tenants.items():
        with contextlib.suppress(ValidationError):
            found[name] = TenantSettings.model_validate_json(raw)
    return found
