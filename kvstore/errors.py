"""Failures of the shared store, named for the person who has to fix them."""


class KvStoreError(Exception):
    """Root of every failure raised by this package."""


class RedisUrlError(KvStoreError):
    """A Redis URL that cannot be used. `url` carries no password."""

    def __init__(self, url: str, problem: str, allowed: str) -> None:
        super().__init__(f"Redis URL {url!r}: {problem}; allowed: {allowed}")
        self.url = url
        self.problem = problem
        self.allowed = allowed


class RedisUnavailableError(KvStoreError):
    """Redis did not answer, or refused. `url` carries no password.

    At start this is fatal; later it is not: routers go on with the workers they know (architecture law 5).
    """

    def __init__(self, url: str, cause: str) -> None:
        super().__init__(f"Redis at {url} does not answer: {cause}")
        self.url = url
        self.cause = cause


class KvRecordError(KvStoreError):
    """Bytes that are no record which this version understands."""
