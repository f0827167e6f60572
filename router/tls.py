"""Certificates of the front doors: a context from files, and a new one when they change."""

import logging
import ssl
from pathlib import Path
from typing import Never

from router.tls_settings import TlsSettings

_log = logging.getLogger(__name__)
_Stamp = tuple[tuple[int, int, int], ...]


class TlsError(Exception):
    """The certificates cannot be used; says which setting names the file."""


def build_context(settings: TlsSettings, setting: str) -> ssl.SSLContext:
    """A server's context, TLS 1.2 at least, offering HTTP/1.1 only. Raises TlsError, which names `setting`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(_path(settings.cert_file), _path(settings.key_file), password=_no_passphrase)
    except (OSError, ValueError) as error:
        raise TlsError(f"{setting}: {settings.cert_file} with {settings.key_file}: {error}") from error
    if settings.client_ca_file is not None:
        try:
            context.load_verify_locations(_path(settings.client_ca_file))
        except (OSError, ValueError) as error:
            raise TlsError(f"{setting}.client_ca_file: {settings.client_ca_file}: {error}") from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class Certificates:
    """The files that `settings` names, as they were read last. Its methods block on the disk."""

    def __init__(self, settings: TlsSettings, setting: str) -> None:
        """Raises TlsError, which names `setting`: a router does not start with certificates that it cannot use."""
        self._settings = settings
        self._setting = setting
        self._stamp = self._look()
        self.context = build_context(settings, setting)

    def reload(self, *, if_changed: bool = False) -> ssl.SSLContext | None:
        """The context of the files as they are now. None: unchanged, or not usable, which is logged once."""
        stamp = self._look()
        if if_changed and stamp == self._stamp:
            return None
        self._stamp = stamp
        try:
            self.context = build_context(self._settings, self._setting)
        except TlsError as error:
            _log.error("%s; connections go on with the certificate read before", error)
            return None
        _log.info("the certificate was read again from %s", self._settings.cert_file)
        return self.context

    def _look(self) -> _Stamp:
        names = (self._settings.cert_file, self._settings.key_file, self._settings.client_ca_file)
        return tuple(_stamp(name) for name in names if name is not None)


def _stamp(name: str) -> tuple[int, int, int]:
    try:
        status = _path(name).stat()
    except OSError:
        return (0, 0, 0)
    return (status.st_mtime_ns, status.st_size, status.st_ino)


def _path(name: str) -> Path:
    return Path(name).expanduser()


def _no_passphrase() -> Never:
    raise ValueError("the key has a passphrase, which nobody is there to type")
