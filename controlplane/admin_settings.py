"""The `admin` section of the configuration."""

import ipaddress

from pydantic import BaseModel, ConfigDict, Field, model_validator

from router.settings import ListenSettings


class AdminTlsSettings(BaseModel):
    """Certificates of the admin API. Read at the start: Serve's ingress does not look again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cert_file: str = Field(min_length=1, description="PEM: the certificate and what it needs up to a root")
    key_file: str = Field(min_length=1, description="PEM: its private key, without a passphrase")


class AdminSettings(ListenSettings):
    """The admin API: where it listens, and who may use it."""

    port: int = Field(8002, ge=0, le=65535, description="TCP port; 0: any free one")
    tokens_file: str | None = Field(
        None,
        min_length=1,
        description="YAML file of those who may: {SHA-256 of a token: {name, role: viewer|operator}}; read again when "
        "it changes; none: reading from this machine only, no changes",
    )
    tls: AdminTlsSettings | None = Field(None, description="certificates; none: plain text")
    session_s: float = Field(
        43_200.0, ge=60, le=2_592_000, description="a browser's session ends this long after its start"
    )

    @property
    def url(self) -> str:
        """Where a client on this machine finds it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"{'https' if self.tls else 'http'}://{f'[{host}]' if ':' in host else host}:{self.port}"

    @model_validator(mode="after")
    def _is_closed_to_the_network(self) -> "AdminSettings":
        if self.tokens_file is None and not is_loopback(self.host):
            raise ValueError(
                f"tokens_file: none is not allowed with the host {self.host!r}, which others can reach; allowed: a "
                "file of tokens (`headrace admin token` makes one), or a loopback host such as 127.0.0.1"
            )
        return self


def is_loopback(host: str) -> bool:
    """An address that only this machine has. A name that is not `localhost` may be anything."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
