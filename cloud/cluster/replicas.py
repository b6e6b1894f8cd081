"""How the servers keep the cluster's streams: who leads which, and where a replica is behind.

Asked of the servers every `_LOOK_S`, for metrics, status and the API. Nothing is decided by it: a
leader that lost its quorum goes on naming itself for a while (readiness is an append that was
acknowledged, cloud/service.py).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from cloud.cluster.connection import ClusterError, Connection
from cloud.cluster.layout import Layout
from runtime.background import Background

__all__ = ["Kept", "Replicas", "kept_of"]

_LOOK_S = 10.0
_SLOW_S = 0.25  # some ten times what an append takes on a busy disk


@dataclass(slots=True, frozen=True)
class Kept:
    """How one stream is kept."""

    leader: str  # the server's name; empty when there is none, or nobody answers
    current: int  # replicas that have everything, the leader's among them
    replicas: int
    append_s: float = 0.0  # an append's mean since the last look, answered or not; 0: none

    @property
    def quorum(self) -> bool:
        """True while more than half of the replicas have everything."""
        return bool(self.leader) and 2 * self.current > self.replicas


class Replicas:
    """The streams of a cluster, as looked at last.

    Args:
        connection: To the cluster.
        layout: Which streams.

    Attributes:
        streams: By name; empty before the first look.
    """

    def __init__(self, connection: Connection, layout: Layout) -> None:
        self.streams: Mapping[str, Kept] = {}
        self._connection = connection
        self._subjects = {spec.name: spec.config["subjects"] for spec in layout.specs()}
        self._replicas = layout.replicas
        background = Background(self._work, "replicas")
        self.start = background.start
        self.stop = background.stop

    async def look(self) -> None:
        """Ask the servers once."""
        found = await asyncio.gather(*map(self._ask, self._subjects))
        times: dict[str, float] = {}
        for name, took_s in self._connection.times.take().items():
            stream = self._stream_of(name)
            times[stream] = max(took_s, times.get(stream, 0.0))
        self.streams = {
            name: replace(kept, append_s=times.get(name, 0.0))
            for name, kept in zip(self._subjects, found, strict=True)
        }

    def leaders(self) -> dict[str, int]:
        """Return how many streams each server leads."""
        return dict(Counter(kept.leader for kept in self.streams.values() if kept.leader))

    def figures(self) -> dict[str, Any]:
        """Return what an operator looks for, as JSON values."""
        return {
            "streams_led": dict(sorted(self.leaders().items())),
            "without_quorum": sorted(n for n, kept in self.streams.items() if not kept.quorum),
            "replicas_behind": sorted(
                name for name, kept in self.streams.items() if kept.current < kept.replicas
            ),
            "slow": [
                f"{name} led by {kept.leader or 'nobody'}: {kept.append_s:.1f} s an append"
                for name, kept in sorted(self.streams.items())
                if kept.append_s >= _SLOW_S
            ],
        }

    async def _work(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(_LOOK_S)

    def _stream_of(self, name: str) -> str:
        """Return the stream that a stream's name, or a subject, is of."""
        for stream, subjects in self._subjects.items():
            if name == stream or any(
                name == subject or (subject.endswith(">") and name.startswith(subject[:-1]))
                for subject in subjects
            ):
                return stream
        return name

    async def _ask(self, name: str) -> Kept:
        try:
            info = await self._connection.api(f"STREAM.INFO.{name}")
        except ClusterError:
            return Kept("", 0, self._replicas)
        return kept_of(info, self._connection.server)


def kept_of(info: Mapping[str, Any], server: str) -> Kept:
    """Return how a stream is kept, as its info says.

    Args:
        info: The answer of STREAM.INFO.
        server: Who answered, which leads it where there is no cluster of servers.
    """
    cluster = info.get("cluster") or {"leader": server}
    others = cluster.get("replicas") or ()
    current = sum(bool(one.get("current")) and not one.get("offline") for one in others)
    leader = str(cluster.get("leader") or "")
    replicas = int(info["config"].get("num_replicas") or 1)
    return Kept(leader, current + bool(leader), replicas)
