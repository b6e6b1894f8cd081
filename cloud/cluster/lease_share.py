"""How many partitions a node has, and which lie free though some node lacks them.

A node that is there, says so and is too slow to take anything leaves its share without a worker.
What has been free for as long as a dead node's would have been is anybody's.
"""

from __future__ import annotations

from collections.abc import Collection

from bridge.partition import PARTITIONS

__all__ = ["LyingFree", "share_of"]


def share_of(nodes: int, rank: int) -> int:
    """Return how many partitions the node of a rank has: they differ by one at most."""
    return PARTITIONS // nodes + (1 if rank < PARTITIONS % nodes else 0)


class LyingFree:
    """The partitions of one sink that nobody holds, and since when each was seen so."""

    __slots__ = ("_since_s",)

    def __init__(self) -> None:
        self._since_s: dict[int, float] = {}

    def look(self, taken: Collection[int], now_s: float, wait_s: float) -> list[int]:
        """Take note of those that are not `taken`; return those free for `wait_s` or longer."""
        if len(taken) == PARTITIONS:
            self._since_s.clear()
            return []
        free = (partition for partition in range(PARTITIONS) if partition not in taken)
        self._since_s = {one: self._since_s.get(one, now_s) for one in free}
        return [one for one, since_s in self._since_s.items() if now_s - since_s >= wait_s]
