"""TLS between routers and engines: what the engine is told, and the context of whoever asks it.

KV events (ZeroMQ) and the KV transfer (NIXL) are not HTTP: their ports stay plain, for networks of the engines' own.
"""

import ssl
from pathlib import Path
from typing import Never, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class EngineTlsError(Exception):
    """Certificates for engines cannot be used; says which setting names the file."""


class EngineTlsSettings(BaseModel):
    """Certificates (PEM) of engines and of those who ask them. Engines that join by address have their own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cert_file: str | None = Field(None, min_length=1, description="engines started here: certificate, with its chain")
    key_file: str | None = Field(None, min_length=1, description="engines started here: private key")
    ca_file: str | None = Field(
        None, min_length=1, description="authorities that sign engines' certificates; none: those of the system"
    )
    client_cert_file: str | None = Field(None, min_length=1, description="what routers and probes show to engines")
    client_key_file: str | None = Field(None, min_length=1, description="its private key")
    client_ca_file: str | None = Field(
        None, min_length=1, description="engines started here: clients must show a certificate of these authorities"
    )
    check_hostname: bool = Field(True, description="certificates must name the host or address that is connected to")

    @property
    def serves(self) -> bool:
        """Engines that are started here speak HTTPS."""
        return self.cert_file is not None

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file are given together or not at all")
        if (self.client_cert_file is None) != (self.client_key_file is None):
            raise ValueError("client_cert_file and client_key_file are given together or not at all")
        if self.client_ca_file is not None and not self.serves:
            raise ValueError("client_ca_file is for engines that have a certificate themselves: cert_file is missing")
        if self.client_ca_file is not None and self.client_cert_file is None:
            raise ValueError("client_ca_file: nobody here could ask such engines without client_cert_file")
        return self


def engine_arguments(settings: EngineTlsSettings) -> list[str]:
    """What vLLM is started with. It reads the files again when they change."""
    if settings.cert_file is None or settings.key_file is None:
        return []
    arguments = ["--ssl-certfile", _path(settings.cert_file), "--ssl-keyfile", _path(settings.key_file)]
    arguments.append("--enable-ssl-refresh")
    if settings.client_ca_file is not None:
        arguments += ["--ssl-ca-certs", _path(settings.client_ca_file)]
        arguments += ["--ssl-cert-reqs", str(int(ssl.CERT_REQUIRED))]
    return arguments


def client_context(settings: EngineTlsSettings | None) -> ssl.SSLContext | None:
    """For whoever asks engines; None: as the system has it. Raises EngineTlsError."""
    if settings is None:
        return None
    try:
        context = ssl.create_default_context(cafile=_path(settings.ca_file) if settings.ca_file else None)
    except (OSError, ValueError) as error:
        raise EngineTlsError(f"engine.tls.ca_file: {settings.ca_file}: {error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = settings.check_hostname
    if settings.client_cert_file is not None and settings.client_key_file is not None:
        try:
            context.load_cert_chain(
                _path(settings.client_cert_file), _path(settings.client_key_file), password=_no_passphrase
            )
        except (OSError, ValueError) as error:
            raise EngineTlsError(f"engine.tls.client_cert_file: {settings.client_cert_file}: {error}") from error
    return context


def _path(name: str) -> str:
    return str(Path(name).expanduser())


def _no_passphrase() -> Never:
    raise ValueError("the key has a passphrase, which nobody is there to type")
