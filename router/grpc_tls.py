"""Certificates of the gRPC ports, read again when their files change, and looked at when a client connects."""

import threading
import time
from pathlib import Path

import grpc

from router.tls import Certificates
from router.tls_settings import TlsSettings


def build_credentials(settings: TlsSettings, setting: str) -> grpc.ServerCredentials:
    """For one port. Raises TlsError, which names `setting`: gRPC itself would refuse every client instead."""
    files = _Files(settings, setting)
    return grpc.dynamic_ssl_server_credentials(
        files.read(),
        files.read_if_changed,  # type: ignore[arg-type]  # None is documented: go on with what there is
        require_client_authentication=settings.client_ca_file is not None,
    )


class _Files:
    """gRPC asks at each handshake, in threads of its own; the disk is asked every `reload_check_s` at most."""

    def __init__(self, settings: TlsSettings, setting: str) -> None:
        self._settings = settings
        self._certificates = Certificates(settings, setting)
        self._lock = threading.Lock()
        self._look_at_s = time.monotonic() + settings.reload_check_s

    def read(self) -> grpc.ServerCertificateConfiguration:
        """What the files hold."""
        settings = self._settings
        authorities = _bytes(settings.client_ca_file) if settings.client_ca_file is not None else None
        return grpc.ssl_server_certificate_configuration(
            [(_bytes(settings.key_file), _bytes(settings.cert_file))], root_certificates=authorities
        )

    def read_if_changed(self) -> grpc.ServerCertificateConfiguration | None:
        """None: go on with what is there; so too where the new files cannot be used."""
        with self._lock:
            now_s = time.monotonic()
            if now_s < self._look_at_s:
                return None
            self._look_at_s = now_s + self._settings.reload_check_s
            return self.read() if self._certificates.reload(if_changed=True) is not None else None


def _bytes(name: str) -> bytes:
    return Path(name).expanduser().read_bytes()
