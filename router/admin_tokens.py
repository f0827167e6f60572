"""Who may operate: the file of `admin.tokens_file`, read again when it changes.

    3f0a...64 hex digits: {name: ann, role: operator}

A token is looked up by its SHA-256, which nobody can steer towards a known one: how long it takes says nothing of them.
"""

import hashlib
import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

_log = logging.getLogger(__name__)
_PREFIX = "hra-"
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:@-]{0,63}$"
_Stamp = tuple[int, int, int]


class AdminTokensError(Exception):
    """The file cannot be used; says which setting names it."""


class AdminRole(StrEnum):
    """What somebody may do with the admin API."""

    VIEWER = "viewer"  # read
    OPERATOR = "operator"  # change things, too


@dataclass(frozen=True, slots=True)
class Operator:
    """Somebody with a token."""

    name: str
    role: AdminRole

    def may(self, needed: AdminRole) -> bool:
        """Operators may all that viewers may."""
        return self.role is AdminRole.OPERATOR or needed is AdminRole.VIEWER


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=NAME_PATTERN)
    role: AdminRole


_FILE = TypeAdapter(dict[Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")], _Entry])


def new_token() -> str:
    """A token that nobody guesses: 256 bits."""
    return _PREFIX + secrets.token_urlsafe(32)


def digest_of(token: str) -> str:
    """How the file names a token."""
    return hashlib.sha256(token.encode(errors="surrogatepass")).hexdigest()


class AdminTokens:
    """The tokens of one file, or none. `find` looks at the file's time and size: it is for rare calls."""

    def __init__(self, path: str | None) -> None:
        """Raises AdminTokensError for a file that cannot be used."""
        self._path = Path(path).expanduser() if path is not None else None
        self._stamp: _Stamp | None = None
        self._by_digest: Mapping[str, Operator] = {}
        if self._path is not None:
            self._stamp, self._by_digest = _stamp(self._path), _read(self._path)

    @property
    def is_closed(self) -> bool:
        """There is no file: nobody has a token."""
        return self._path is None

    def find(self, token: str) -> Operator | None:
        """Whose token this is."""
        return self.find_digest(digest_of(token))

    def find_digest(self, digest: str) -> Operator | None:
        """The same, of a token that was seen before."""
        self._look_again()
        return self._by_digest.get(digest)

    def find_bearer(self, authorization: str | None) -> Operator | None:
        """By the header `Authorization`."""
        token = bearer(authorization)
        return self.find(token) if token is not None else None

    def _look_again(self) -> None:
        if self._path is None:
            return
        try:
            stamp = _stamp(self._path)
            if stamp == self._stamp:
                return
            self._by_digest = _read(self._path)
        except AdminTokensError as error:
            if self._stamp is not None:
                _log.error("%s; going on with the tokens that were read before", error)
            self._stamp = None
            return
        self._stamp = stamp
        _log.info("admin.tokens_file: %d token(s)", len(self._by_digest))


def bearer(authorization: str | None) -> str | None:
    """The token in an `Authorization` header."""
    scheme, _, token = (authorization or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


def _stamp(path: Path) -> _Stamp:
    try:
        found = path.stat()
    except OSError as error:
        raise AdminTokensError(f"admin.tokens_file: {path} cannot be read: {error.strerror}") from None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _read(path: Path) -> dict[str, Operator]:
    """What is wrong is said without quoting the file: somebody may have put a token into it."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        entries = _FILE.validate_python({} if tree is None else tree)
    except OSError as error:
        raise AdminTokensError(f"admin.tokens_file: {path} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, yaml.YAMLError):
        raise AdminTokensError(f"admin.tokens_file: {path} is not valid YAML") from None
    except ValidationError as error:
        raise AdminTokensError(
            f"admin.tokens_file: {path}: {error.error_count()} mistake(s), the first: {error.errors()[0]['type']}; "
            "allowed: the SHA-256 of each token in hex, and with it {name: NAME, role: viewer|operator}; "
            "`headrace admin token` prints such a line"
        ) from None
    return {digest: Operator(entry.name, entry.role) for digest, entry in entries.items()}
