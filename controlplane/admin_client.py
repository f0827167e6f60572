"""How commands ask the admin API: one address, one token, one way to say what went wrong."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import quote

import aiohttp
import msgspec
import typer

from controlplane.cli_error import fail

_T = TypeVar("_T")
DEFAULT_URL = "http://127.0.0.1:8002"
_TIMEOUT_S = 10.0

AdminOption = Annotated[
    str, typer.Option("--admin", envvar="HEADRACE_ADMIN_URL", help="URL of the control plane's admin API")
]
TokenOption = Annotated[
    Path | None,
    typer.Option("--token-file", envvar="HEADRACE_ADMIN_TOKEN_FILE", help="file with a token (`headrace admin token`)"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="machine-readable")]


class AdminError(Exception):
    """The admin API does not answer, or refuses. `status`: its answer's; 0 if there was none."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class AdminClient:
    """One admin API."""

    url: str
    token_file: Path | None = None

    async def ask(self, method: str, path: str, body: bytes | None = None, timeout_s: float = _TIMEOUT_S) -> bytes:
        """The body of a 200. Raises AdminError."""
        url = self.url.rstrip("/") + path
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout, headers=self._headers()) as session,
                session.request(method, url, data=body, allow_redirects=False) as response,
            ):
                answer = await response.read()
                if response.status == 200:
                    return answer
                raise AdminError(self._refusal(response.status, answer), response.status)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            what = str(error) or type(error).__name__
            raise AdminError(
                f"no answer from {self.url}: {what}; is Headrace up, and is --admin its admin address?"
            ) from error

    async def read(self, path: str, kind: type[_T]) -> _T:
        """A GET's answer. Raises AdminError."""
        return self.decode(await self.ask("GET", path), kind)

    def decode(self, answer: bytes, kind: type[_T]) -> _T:
        """An answer. Raises AdminError for one of another version."""
        try:
            return msgspec.json.decode(answer, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise AdminError(f"{self.url} is of another version of headrace: {error}") from error

    def _headers(self) -> dict[str, str]:
        if self.token_file is None:
            return {}
        try:
            token = self.token_file.expanduser().read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise AdminError(f"--token-file: {self.token_file} cannot be read: {error}") from error
        return {"Authorization": f"Bearer {token}"}

    def _refusal(self, status: int, answer: bytes) -> str:
        message = _message(answer)
        if status == 401 and self.token_file is None:
            return f"{message}; give it with --token-file or HEADRACE_ADMIN_TOKEN_FILE"
        if status == 401:
            return f"{message}: {self.token_file}"
        return message


def run(client: AdminClient, method: str, path: str, body: bytes | None = None, timeout_s: float = _TIMEOUT_S) -> bytes:
    """Ask and wait; say why not, and end, where it fails."""
    try:
        return asyncio.run(client.ask(method, path, body, timeout_s))
    except AdminError as error:
        fail(str(error))


def segment(name: str) -> str:
    """A name as one part of a path."""
    return quote(name, safe="")


def _message(answer: bytes) -> str:
    try:
        found: Any = msgspec.json.decode(answer)["error"]["message"]
    except (msgspec.DecodeError, KeyError, TypeError):
        return answer.decode(errors="replace")[:300]
    return str(found)
