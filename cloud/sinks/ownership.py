"""Which partitions a node works on for one sink, and under which fencing token.

With the embedded stream there is one node and it has all of them, always: no `Ownership` at all.
In a cluster leases say so (cloud/cluster/leases.py).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

__all__ = ["Ownership"]


class Ownership(Protocol):
    """The partitions of one sink on one node."""

    def held(self) -> Mapping[int, int]:
        """Return the fencing token of each partition that may be worked on at this moment.

        A lease that ran out on this node's own clock is not among them, whatever others know.
        """
        ...

    async def changed(self, known: Mapping[int, int]) -> None:
        """Return once `held` is not `known` any more."""
        ...

    def let_go(self, partitions: Collection[int]) -> None:
        """Take note that the worker has ended with partitions that are not `held` any more.

        Another node may have them at once.
        """
        ...

    def fenced(self, partitions: Collection[int]) -> None:
        """Take note that the store says others hold these partitions by now."""
        ...
