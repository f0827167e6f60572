"""How a worker fails a request, seen from the router. Each becomes an event of the core, never a client's traceback."""

from kvstore.types import WorkerId


class WorkerError(Exception):
    """Root of a worker's failures; says which worker."""

    def __init__(self, worker_id: WorkerId, detail: str) -> None:
        super().__init__(f"worker {worker_id}: {detail}")
        self.worker_id = worker_id
        self.detail = detail


class WorkerUnreachableError(WorkerError):
    """No connection, or it broke before the answer was complete."""


class WorkerFailedError(WorkerError):
    """The engine answered, with a server error or with something that is no answer."""


class WorkerLostError(WorkerError):
    """Its lease ended while it worked on the request, or just before."""


class EngineStartError(Exception):
    """The engine did not come up; the message ends with its last log lines."""


class KvEventsUnavailableError(Exception):
    """An engine's KV events cannot be listened to. Its worker is then chosen by load only."""
