"""One limit, held by several routers without asking anybody: a tenant's part in it as one router sees it. Pure.

Each router adds its own use to what the others last said of theirs. What it lets in before the others can know of it
(`unseen`) is bounded, so that all together exceed a limit by a known amount only:

    excess <= (routers - 1) * max(limit / routers, largest request)

For the last request that is let in, at any router: own + seen of others <= limit, and every other router's unseen use
is at most its share of what was left, or one request. Estimates that turn out too low come on top.
"""

from datetime import UTC, datetime, timedelta

from msgspec import Struct

MINUTE_S = 60.0


def fits(need: float, limit: float, used: float, unseen: float, routers: int) -> bool:
    """Whether `need` more may be let in.

    `used`: by all routers, requests in flight too; `unseen`: what of this router's own no other has been told;
    `routers`: how many there are, this one included.
    """
    if used + need > limit:
        return False
    # One request at a time goes through even where a share is less than that.
    return unseen <= 0 or unseen + need <= (limit - used + unseen) / routers


class Window(Struct):
    """A count over the last minute: this clock minute's, and of the one before the part that is not a minute ago."""

    minute: int = 0  # since the epoch
    now: float = 0.0
    before: float = 0.0

    def turn(self, minute: int) -> None:
        """It is this minute now. A clock that was set back is waited for."""
        if minute > self.minute:
            self.before = self.now if minute == self.minute + 1 else 0.0
            self.minute, self.now = minute, 0.0

    def add(self, count: float) -> None:
        """More in this minute, or less where an estimate was too high; never below zero."""
        self.now = max(0.0, self.now + count)

    def over_last_minute(self, now_s: float) -> float:
        """The count, taking the minute before as even. `now_s`: Unix time, of this minute."""
        return self.now + self.before * max(0.0, 1.0 - (now_s / MINUTE_S - self.minute))


def fits_again_in_s(own: Window, others: Window, need: float, limit: float, now_s: float) -> float | None:
    """Seconds until `need` fits if nobody asks for more; None: never, it is more than the limit."""
    if need > limit:
        return None
    now, before = own.now + others.now, own.before + others.before
    part = max(0.0, now_s / MINUTE_S - own.minute)  # of this minute, gone
    if now + need <= limit:
        part_then = 1.0 - (limit - need - now) / before if before > 0 else 0.0
        return max(0.0, part_then - part) * MINUTE_S
    part_then = 1.0 - (limit - need) / now
    return (1.0 - part + part_then) * MINUTE_S


def period_of(kind: str, now_s: float) -> str:
    """The UTC day (2027-01-31) or month (2027-01) of a Unix time."""
    return datetime.fromtimestamp(now_s, UTC).strftime("%Y-%m-%d" if kind == "day" else "%Y-%m")


def seconds_left(period: str, now_s: float) -> float:
    """Until the period is over."""
    year, month, *day = map(int, period.split("-"))
    start = datetime(year, month, day[0] if day else 1, tzinfo=UTC)
    end = start + timedelta(days=1) if day else datetime(year + month // 12, month % 12 + 1, 1, tzinfo=UTC)
    return max(1.0, end.timestamp() - now_s)
