"""Everything that one router tells Prometheus."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from router.core import RouterCore
from router.identity.doorkeeper import Doorkeeper
from router.identity.usage_ledger import UsageLedger
from router.metrics.counted import Count, Distribution, gauge
from router.metrics.identity import IdentityCollector
from router.metrics.listener import Listener, ListenerCollector
from router.metrics.state import FollowingCollector, IndexFollowing, StateCollector
from router.metrics.tenants import TenantCounts
from router.prompt_index import PromptIndex
from router.refusals import NO_CLASS, REASONS, UNAUTHORISED, Refused

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_TPOT_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0)
_QUEUE_SECONDS = (0.001, *_SECONDS)


class RouterMetrics(Collector):
    """All series are `headrace_*`. Labels are bounded: routes, classes and outcomes of ours, workers and models of the
    fleet, the largest tenants."""

    def __init__(
        self, core: RouterCore, prompts: PromptIndex, redis_up: Callable[[], bool], num_in_flight: Callable[[], int]
    ) -> None:
        self.requests = Count("headrace_requests", "Requests by route and status the client got", ("route", "status"))
        self.cancelled = Count("headrace_requests_cancelled", "Requests whose client went away or ran out of time")
        self.attempts = Count("headrace_attempts", "Attempts by kind (hand_off, local)", ("kind",))
        self.failed_attempts = Count("headrace_failed_attempts", "Attempts that a worker failed", ("worker",))
        self.failed_hand_offs = Count(
            "headrace_failed_hand_offs", "Hand-offs that a worker failed, by the step", ("step",)
        )
        self.retries = Count("headrace_retries", "Attempts after the first, by how the one before failed", ("reason",))
        self.ttft = Distribution(
            "headrace_ttft_seconds", "Arrival to the first byte of the answer, streamed requests", _SECONDS
        )
        self.ttft_error = Distribution(
            "headrace_ttft_error_seconds",
            "Real against predicted TTFT at dispatch, by whether the first byte came early or late",
            _SECONDS,
            ("direction",),
        )
        self.e2e = Distribution("headrace_e2e_seconds", "Arrival to the end of the answer", _SECONDS)
        self.tpot = Distribution(
            "headrace_tpot_seconds", "Mean gap between tokens after the first, streamed requests", _TPOT_SECONDS
        )
        self.queue = Distribution(
            "headrace_queue_seconds", "Arrival to the first dispatch, by class", _QUEUE_SECONDS, ("service_class",)
        )
        self.rejected = Count(
            "headrace_rejected", "Requests turned away, by class and reason", ("service_class", "reason")
        )
        self.slo = Count(
            "headrace_slo_requests",
            "Streamed requests that ended, by class, whether their targets were promised, and whether both were met",
            ("service_class", "promised", "met"),
        )
        self.tenants = TenantCounts()
        self.cached = _CachedTokens()
        self._num_in_flight = num_in_flight
        self._num_unauthorised: Callable[[], int] = lambda: 0
        self.registry = CollectorRegistry()
        self.registry.register(self)
        self.registry.register(StateCollector(core, prompts, redis_up))
        ProcessCollector(namespace="headrace", registry=self.registry)

    def watch_listener(self, listener: Listener) -> None:
        """Show what an HTTP listener has to do with."""
        self.registry.register(ListenerCollector(listener))

    def watch_index(self, follower: IndexFollowing) -> None:
        """Show how far the prefix index is behind."""
        self.registry.register(FollowingCollector(follower))

    def watch_identity(self, door: Doorkeeper, ledger: UsageLedger, sources: Callable[[], Mapping[str, bool]]) -> None:
        """Show refused credentials, what is left of budgets, and whether what says who may ask can be read."""
        self._num_unauthorised = lambda: door.refused
        self.registry.register(IdentityCollector(door, ledger, sources, lambda: self.tenants.shown))

    def refuse(self, refused: Refused) -> None:
        """A request of which the core never hears."""
        self.requests.inc(refused.route, str(refused.status))
        if refused.code in REASONS:
            self.rejected.inc(refused.class_name, refused.code)
            if refused.tenant is not None:
                self.tenants.refuse(refused.tenant, refused.code)

    def refused(self) -> dict[tuple[str, str], int]:
        """Requests of which the core has not heard, by class and reason, since the start."""
        refused = {(name, reason): number for (name, reason), number in self.rejected.items() if reason in REASONS}
        return {**refused, (NO_CLASS, UNAUTHORISED): self._num_unauthorised()}

    def observe_slo(self, service_class: str, promised: bool, met: bool, tpot_s: float) -> None:
        """A streamed request has ended well."""
        self.tpot.observe(tpot_s)
        self.slo.inc(service_class, _yes_no(promised), _yes_no(met))

    def observe_first_token(self, ttft_s: float, predicted_s: float) -> None:
        """The first byte of a stream has come; both from the request's arrival."""
        self.ttft.observe(ttft_s)
        late_s = ttft_s - predicted_s
        self.ttft_error.observe(abs(late_s), "late" if late_s > 0 else "early")

    def exposition(self) -> bytes:
        """The text format."""
        return generate_latest(self.registry)

    def exposition_for(self, accept: str) -> tuple[str, bytes]:
        """Content type and text: OpenMetrics 1.0, which has exemplars, for a scraper that names it as acceptable."""
        if "application/openmetrics-text" in accept:
            return openmetrics.CONTENT_TYPE_LATEST, openmetrics.generate_latest(self.registry)
        return "text/plain; version=0.0.4", self.exposition()

    def collect(self) -> Iterator[Metric]:
        """What has been counted."""
        for count in (self.requests, self.cancelled, self.attempts, self.failed_attempts, self.failed_hand_offs):
            yield count.collect()
        for (service_class, promised, _), _ in tuple(self.slo.items()):
            for met in ("yes", "no"):  # where all were missed, a share of nothing would be no share
                self.slo.add(0, service_class, promised, met)
        for count in (self.retries, self.slo):
            yield count.collect()
        rejected = self.rejected.collect()
        rejected.add_metric([NO_CLASS, UNAUTHORISED], float(self._num_unauthorised()))
        yield rejected
        yield from self.tenants.collect()
        yield from self.cached.collect()
        for distribution in (self.ttft, self.ttft_error, self.e2e, self.tpot, self.queue):
            yield distribution.collect()
        yield gauge("headrace_requests_in_flight", "Requests not yet ended", self._num_in_flight())


class _CachedTokens:
    """Tokens of answered prompts, by model: all, those expected in the prefilling worker's cache, those found there."""

    def __init__(self) -> None:
        self._prompt = Count(
            "headrace_prompt_tokens", "Prompt tokens of answers that report their cached ones", ("model",)
        )
        self._predicted = Count("headrace_cached_tokens_predicted", "Of these, expected to be cached", ("model",))
        self._reported = Count("headrace_cached_tokens_reported", "Of these, cached as the engine said", ("model",))

    def observe(self, model: str, prompt_tokens: int, predicted_tokens: int, reported_tokens: int) -> None:
        """An engine has answered."""
        self._prompt.add(prompt_tokens, model)
        self._predicted.add(predicted_tokens, model)
        self._reported.add(reported_tokens, model)

    def collect(self) -> Iterator[Metric]:
        """As they are now."""
        yield from (self._prompt.collect(), self._predicted.collect(), self._reported.collect())


def _yes_no(value: bool) -> str:
    return "yes" if value else "no"
