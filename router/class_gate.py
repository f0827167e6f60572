"""Classes that operators have paused: their new requests are turned away at the door. Pure."""

from collections.abc import Mapping

from router.errors import ApiError

CODE = "class_paused"


class ClassGate:
    """Open for every class until told otherwise. Requests that are in already are left alone."""

    def __init__(self) -> None:
        self._paused: Mapping[str, float] = {}

    @property
    def paused(self) -> tuple[str, ...]:
        """Classes that are closed."""
        return tuple(self._paused)

    def set_paused(self, paused: Mapping[str, float]) -> None:
        """From now on these classes are closed, and no others; with each the seconds to tell its clients."""
        self._paused = paused

    def check(self, class_name: str) -> None:
        """Raise ApiError 503 for a request of a closed class. Who closed it and why is not the client's business."""
        retry_after_s = self._paused.get(class_name)
        if retry_after_s is None:
            return
        raise ApiError(
            503,
            "service_unavailable_error",
            "class_paused",  # CODE
            f"requests of the class {class_name!r} are not taken at the moment",
            retry_after_s=retry_after_s,
        )
