"""The `router.http` section of the configuration: where the router listens, and what one client may take of it."""

from pydantic import BaseModel, ConfigDict, Field

from router.tls_settings import TlsSettings

_MODEL_CONFIG = ConfigDict(frozen=True, extra="forbid")


class HttpSettings(BaseModel):
    """The HTTP listener."""

    model_config = _MODEL_CONFIG

    host: str = Field("127.0.0.1", min_length=1, description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="TCP port; 0: any free one")
    tls: TlsSettings | None = Field(None, description="certificates; none: plain HTTP")

    max_target_bytes: int = Field(8192, ge=64, le=1 << 20, description="longer request targets get 414")
    max_head_bytes: int = Field(65_536, ge=1024, le=1 << 20, description="request line and headers; more gets 431")
    max_header_bytes: int = Field(16_384, ge=64, le=1 << 20, description="one header line; longer ones get 431")
    max_headers: int = Field(100, ge=4, le=10_000, description="header lines; more get 431")

    head_timeout_s: float = Field(10.0, gt=0, le=3600, description="from the first byte of a head to its end; then 408")
    body_timeout_s: float = Field(
        30.0, gt=0, le=3600, description="for a body, and longer by what arrived at min_body_bytes_per_s; then 408"
    )
    min_body_bytes_per_s: int = Field(1024, ge=1, description="slowest upload of a body that is waited for")
    keep_alive_s: float = Field(75.0, gt=0, le=86_400, description="a connection without a request is closed after it")
    write_timeout_s: float = Field(
        60.0, gt=0, le=86_400, description="a client that takes nothing this long is cut off"
    )
    linger_s: float = Field(
        2.0, ge=0, le=60, description="after a refusal the rest of a request is thrown away this long, then cut"
    )

    write_buffer_bytes: int = Field(
        65_536, ge=1024, le=1 << 26, description="unsent bytes of one client at which its answer's source is paused"
    )
    max_pipelined_bytes: int = Field(
        65_536, ge=1024, le=1 << 26, description="kept of later requests while one is served; then reading stops"
    )
    max_buffered_bytes: int = Field(
        1 << 30, ge=1 << 16, description="all request bodies that came in pieces, together; more get 503"
    )
    max_connections: int = Field(16_384, ge=1, le=1_000_000, description="open connections; requests on more get 503")
    shed_lag_s: float = Field(
        0.1, gt=0, le=10, description="a turn of the event loop that never gets shorter: part of the requests get 503"
    )
    shed_window_s: float = Field(0.5, gt=0, le=60, description="for how long it must not, and how often that is judged")

    @property
    def scheme(self) -> str:
        """Of the URLs that clients use."""
        return "https" if self.tls is not None else "http"
