"""When a gateway that dials may come in: a fleet that comes back at once is spread. Pure.

Theory of operation. So many gateways a second are let in. One that comes when the second's are in
is given a place in the row, and told after how many seconds it is its turn (docs/link-format.md
section 1.4). The place is kept for it: when it comes back in its time it is let in at once, so that
each dials twice at most, however many there are. Who comes too early is told what is left.

Invariant: places are given out in the order of arrival, `1 / rate_s` apart, and at most
`WAIT_MAX_S` ahead: past that, gateways are told that time without a place.
"""

from __future__ import annotations

from collections import OrderedDict

__all__ = ["Admission"]

WAIT_MAX_S = 300.0
BURST_S = 1.0
KEPT_S = 120.0  # how long a place is kept for who does not come
_EARLY_S = 0.05


class Admission:
    """The row before one node.

    Args:
        rate_s: Gateways let in a second; 0 = any number.
    """

    __slots__ = ("_free_s", "_places", "_rate_s")

    def __init__(self, rate_s: float) -> None:
        self._rate_s = rate_s
        self._free_s = float("-inf")  # when the next place is free
        self._places: OrderedDict[str, float] = OrderedDict()  # by client id, in order of time

    def wait_s(self, client_id: str, now_s: float) -> float:
        """Return 0 when a gateway may come in now, else after how long it should come again."""
        if not self._rate_s:
            return 0.0
        self._forget(now_s)
        place_s = self._places.get(client_id)
        if place_s is not None:
            if now_s < place_s - _EARLY_S:
                return place_s - now_s
            del self._places[client_id]
            return 0.0
        place_s = max(self._free_s, now_s - BURST_S)
        if place_s > now_s + WAIT_MAX_S:
            return WAIT_MAX_S
        self._free_s = place_s + 1 / self._rate_s
        if place_s <= now_s:
            return 0.0
        self._places[client_id] = place_s
        return place_s - now_s

    def waiting(self, now_s: float) -> int:
        """Return how many gateways are expected."""
        self._forget(now_s)
        return len(self._places)

    def _forget(self, now_s: float) -> None:
        """Give up places that nobody came for; there are no more than fit into the times kept."""
        places = self._places
        while places and next(iter(places.values())) < now_s - KEPT_S:
            places.popitem(last=False)
