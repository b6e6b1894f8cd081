"""Which partitions a node works on for one sink, and under which fencing token.

With the embedded stream there is one node and it has all of them, always: no `Ownership` at all.
In a cluster leases say so (cloud/cluster/leases.py).
"""

from __future__ import annotations

from collections.abc import Mapping
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

    def working(self, tokens: Mapping[int, int]) -> None:
        """Take note of what the worker works on from here on, partitions and tokens.

        It has ended with everything else: another node may have that at once.
        """
        ...

    def fenced(self, tokens: Mapping[int, int]) -> None:
        """Take note that the store knows of newer holders than of these tokens."""
        ...
