"""The operators' page: the files of `controlplane/dashboard/`, read once, at the start.

They hold nothing of the fleet, so everybody who reaches the port may have them. What the page shows, it asks for with
its reader's own session.

Invariants
 1. A file's path holds the digest of all files: what a browser keeps under it never changes.
 2. The page may load, run and ask nothing but what comes from here.
"""

import gzip
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable

from controlplane.admin_routes.route import Answer, Call, RefusedError, Route

_MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_SAFE = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_FOREVER = {**_SAFE, "Cache-Control": "public, max-age=31536000, immutable", "Vary": "Accept-Encoding"}


@dataclass(frozen=True, slots=True)
class _File:
    media_type: str
    body: bytes
    zipped: bytes

    def answer(self, call: Call, headers: Mapping[str, str]) -> Answer:
        """Compressed for those who take it."""
        if "gzip" in call.headers.get("accept-encoding", ""):
            return Answer(200, self.zipped, self.media_type, {**headers, "Content-Encoding": "gzip"})
        return Answer(200, self.body, self.media_type, headers)


def dashboard_routes() -> Sequence[Route]:
    """GET / and the files that the page loads."""
    folder = resources.files("controlplane") / "dashboard"
    files = {
        f"{prefix}{entry.name}": _file(entry)
        for prefix, entries in (("", folder), ("vendor/", folder / "vendor"))
        for entry in entries.iterdir()
        if _suffix(entry.name) in _MEDIA_TYPES
    }
    text = (folder / "index.html").read_text(encoding="utf-8")
    digest = hashlib.sha256(text.encode())
    for name, file in sorted(files.items()):
        digest.update(name.encode() + b"\0" + file.body)
    version = digest.hexdigest()[:16]
    index = _packed("text/html; charset=utf-8", text.replace("{version}", version).encode())
    tag = f'W/"{version}"'
    fresh = {**_SAFE, "Cache-Control": "no-cache", "ETag": tag, "Vary": "Accept-Encoding"}

    async def page(call: Call) -> Answer:
        if tag in call.headers.get("if-none-match", ""):
            return Answer(304, media_type=index.media_type, headers=fresh)
        return index.answer(call, fresh)

    async def asset(call: Call) -> Answer:
        return _found(call, version, files, call.path["name"])

    async def vendored(call: Call) -> Answer:
        return _found(call, version, files, f"vendor/{call.path['name']}")

    missing = {404: "unknown_file"}
    words = "A file of the page, of this version of it."
    return (
        Route("GET", "/", page, "The operators' page.", None, media_type="text/html"),
        Route("GET", "/assets/{version}/{name}", asset, words, None, media_type="*/*", errors=missing),
        Route(
            "GET",
            "/assets/{version}/vendor/{name}",
            vendored,
            "The same, of others' code.",
            None,
            media_type="*/*",
            errors=missing,
        ),
    )


def _found(call: Call, version: str, files: Mapping[str, _File], name: str) -> Answer:
    file = files.get(name)
    if file is None or call.path["version"] != version:
        raise RefusedError(404, "unknown_file", f"there is no {name[:64]!r} in version {version} of the page")
    return file.answer(call, _FOREVER)


def _file(entry: Traversable) -> _File:
    return _packed(_MEDIA_TYPES[_suffix(entry.name)], entry.read_bytes())


def _packed(media_type: str, body: bytes) -> _File:
    return _File(media_type, body, gzip.compress(body, mtime=0))


def _suffix(name: str) -> str:
    return name[name.rfind(".") :] if "." in name else ""
