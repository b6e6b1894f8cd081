"""Which of the cloud's endpoints is dialled next, and when.

They are tried in the order of the configuration, one after the other without a pause; a pause,
which grows, lies between two rounds. One that has said when to come again is left out until then,
and asked a random while later than told, so that those who were told together come apart. After a
connection that worked the first one is tried first.
"""

from __future__ import annotations

from bridge.backoff import DecorrelatedJitter, Rng

__all__ = ["RETRY_AFTER_MAX_S", "RETRY_AFTER_SPREAD", "EndpointRotation"]

RETRY_AFTER_MAX_S = 3600.0
RETRY_AFTER_SPREAD = 1.25  # a gateway comes between what it was told and so much of it


class EndpointRotation:
    """The next dial of one uplink.

    Args:
        count: How many endpoints there are, at least 1.
        backoff: Gives the pauses between rounds.
        rng: Spreads those who were told when to come again.

    Attributes:
        index: The endpoint in use or to dial next.
        dial_at_s: When to dial it; meaningless while connected.
    """

    __slots__ = ("_backoff", "_busy_until_s", "_count", "_rng", "dial_at_s", "index")

    def __init__(self, count: int, backoff: DecorrelatedJitter, rng: Rng) -> None:
        self._count = count
        self._backoff = backoff
        self._rng = rng
        self._busy_until_s: dict[int, float] = {}  # by endpoint that has said when to come again
        self.index = 0
        self.dial_at_s = 0.0

    def replace(self, count: int) -> None:
        """Take other endpoints; the first of them is dialled next."""
        self._count = count
        self._busy_until_s.clear()
        self.index = 0

    def worked(self, now_s: float) -> None:
        """Note that a connection ended that had carried something."""
        self.index = 0
        self.dial_at_s = now_s + self._backoff.next_s()

    def failed(self, now_s: float, retry_after_s: float = 0.0) -> None:
        """Note that a dial failed, or a connection ended before anything got through.

        Args:
            now_s: Now.
            retry_after_s: After how long the server wants it to come again; 0: it did not say.
        """
        if retry_after_s > 0:
            told_s = min(retry_after_s, RETRY_AFTER_MAX_S)
            told_s = self._rng.uniform(told_s, told_s * RETRY_AFTER_SPREAD)
            self._busy_until_s[self.index] = now_s + told_s
        self._turn(now_s)

    def _turn(self, now_s: float) -> None:
        """Turn to the next endpoint that has not said to come later; where all have, wait."""
        busy = {at: until for at, until in self._busy_until_s.items() if until > now_s}
        self._busy_until_s = busy
        self.dial_at_s = now_s
        if len(busy) >= self._count:
            self.index = min(busy, key=lambda at: busy[at])
            self.dial_at_s = busy[self.index]
            return
        waits = False
        while True:
            self.index += 1
            if self.index >= self._count:
                self.index, waits = 0, True
            if self.index not in busy:
                break
        if waits:
            self.dial_at_s += self._backoff.next_s()
