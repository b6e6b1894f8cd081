"""Gateways of all nodes at any of them: the others are asked whom they have heard of.

A gateway is connected to one node, which alone knows how its link is; the ledger, which all nodes
have, knows only what came. A gateway that moved is known to several: who has it, or heard of it
last, is right.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, replace
from heapq import nsmallest
from typing import Any, Final, NamedTuple

from cloud.cluster.connection import Connection
from cloud.cluster.layout import Layout
from cloud.cluster.leases import Leases
from cloud.cluster.peers import Peers
from cloud.gateways import GatewayLink, GatewaysSeen
from runtime.clock import Clock

__all__ = ["GatewayPeers", "OthersGateways"]

_ANSWER_GATEWAYS: Final = 2_000  # in one message, about 300 kB
_GOOD_FOR_S: Final = 1.0  # so that many who look ask as one


class OthersGateways(NamedTuple):
    """What the other nodes said."""

    links: dict[str, GatewayLink]  # by gateway
    silent: list[str]  # nodes that did not answer


class GatewayPeers:
    """The gateways that other nodes have heard of.

    Args:
        seen: This node's, for when others ask.
        connection: To the cluster.
        layout: Names.
        leases: Know which nodes there are.
        clock: Time.
    """

    def __init__(
        self,
        seen: GatewaysSeen,
        connection: Connection,
        layout: Layout,
        leases: Leases,
        clock: Clock,
    ) -> None:
        self._seen = seen
        self._clock = clock
        self._asking = asyncio.Lock()
        self._found = OthersGateways({}, [])
        self._found_s = -_GOOD_FOR_S
        self._peers = Peers("gateways", connection, layout, leases, self._answer)
        self.start = self._peers.start
        self.stop = self._peers.stop

    @property
    def silent(self) -> list[str]:
        """The nodes that did not answer when they were last asked."""
        return self._found.silent

    async def links(self) -> OthersGateways:
        """Return how the gateways' links to the other nodes are."""
        async with self._asking:
            if self._clock.monotonic_s() - self._found_s >= _GOOD_FOR_S:
                self._found = await self._ask_all()
                self._found_s = self._clock.monotonic_s()
            return self._found

    async def _ask_all(self) -> OthersGateways:
        others = self._peers.others()
        answers = await asyncio.gather(*(self._links_of(one.instance) for one in others))
        found = OthersGateways({}, [])
        for other, links in zip(others, answers, strict=True):
            if links is None:
                found.silent.append(other.node)
                continue
            for link in links:
                known = found.links.get(link.gateway)
                if known is None or link.newer_than(known):
                    found.links[link.gateway] = replace(link, node=other.node)
        return found

    async def _links_of(self, instance: str) -> list[GatewayLink] | None:
        found: list[GatewayLink] = []
        while True:
            last = found[-1].gateway if found else ""
            said = await self._peers.ask(instance, [len(found), last])
            if said is None:
                return None
            try:
                found += (GatewayLink(**one) for one in said)
            except TypeError as error:  # of another version
                self._peers.log_unread(instance, error)
                return None
            if len(said) < _ANSWER_GATEWAYS:
                return found

    async def _answer(self, question: Sequence[Any]) -> list[dict[str, Any]]:
        """Answer with a page: names past one, in order, for others come and go between two pages.

        An older node says only how many it has had, and takes what follows for the next page.
        """
        links = self._seen.links()
        if len(question) == 1:
            skip = int(question[0])
            page = links[skip : skip + _ANSWER_GATEWAYS]
        else:
            following = (one for one in links if one.gateway > question[1])
            page = nsmallest(_ANSWER_GATEWAYS, following, key=lambda one: one.gateway)
        return [asdict(one) for one in page]
