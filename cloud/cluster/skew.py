"""Says it when the clocks of two nodes are apart; nothing is decided by them.

Times of arrival, slices of storage and what is kept for replay go by the clock of the node that
took a reading, so that readings of nodes whose clocks differ lie in the wrong order of time.

Each announcement of a node (cloud/cluster/lease_keys.py) says what its clock shows. One that comes
late, because a server or this node hung, is no proof, nor are many that come at once then: several
in a row are, each some time after the one before it.
"""

from __future__ import annotations

import structlog

from runtime.logs import limited

__all__ = ["SkewWatch"]

log = structlog.get_logger(component="leases")

_APART_S = 5.0  # an announcement is seen within about one
_TIMES = 3
_BETWEEN_US = 1_000_000  # half of what lies between two announcements
_LOG_EVERY_S = 600.0


class SkewWatch:
    """The clocks of the other nodes, against this one's."""

    def __init__(self) -> None:
        self._apart: dict[str, tuple[int, int]] = {}  # times in a row and when last, by node

    def saw(self, node: str, their_us: int, our_us: int) -> None:
        """Take what another node's clock showed just now, and what this one's shows."""
        apart_s = (their_us - our_us) / 1e6
        if abs(apart_s) < _APART_S:
            self._apart.pop(node, None)
            return
        times, last_us = self._apart.get(node, (0, 0))
        if abs(our_us - last_us) < _BETWEEN_US:
            return
        self._apart[node] = (times + 1, our_us)
        if times + 1 >= _TIMES:
            limited(log, ("skew", node), _LOG_EVERY_S).warning(
                "clocks_differ",
                node=node,
                ahead_s=round(apart_s, 1),
                hint="set the clocks of both nodes, by NTP; times of arrival go by them",
            )
