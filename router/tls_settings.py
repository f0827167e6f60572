"""Certificates in the configuration: of `router.http`, `router.grpc` and `router.endpoint_picker`."""

from pydantic import BaseModel, ConfigDict, Field


class TlsSettings(BaseModel):
    """Certificates of one listening socket. The files are read again when they change."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cert_file: str = Field(min_length=1, description="PEM: the certificate and what it needs up to a root")
    key_file: str = Field(min_length=1, description="PEM: its private key, without a passphrase")
    client_ca_file: str | None = Field(
        None, min_length=1, description="PEM: clients must show a certificate of one of these authorities; none: no"
    )
    reload_check_s: float = Field(10.0, ge=0.1, le=3600, description="how often the files are looked at for a change")
