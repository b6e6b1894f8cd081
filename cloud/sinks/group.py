"""All sinks of a node: started and stopped together, and the stream trimmed behind the slowest.

In a cluster most sinks share their partitions with the other nodes, by leases; some are each
node's own and take everything. How far the shared ones are is kept in the stream too, for all to
see, and a partition is trimmed by the node that works on it.

Invariant: no entry is trimmed before every sink has passed it, durably; after that it stays for
`stream.replay_s`, or less when more than `stream.replay_bytes` would be kept. A node that is away
does not hold back the trimming: what is its own has a gap when it comes back later than that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import structlog

from cloud.config import SinksConfig, StreamConfig
from cloud.sinks.contract import Sink
from cloud.sinks.decoded import DecodedEntries
from cloud.sinks.ownership import Ownership
from cloud.sinks.runner import SinkRunner, SinkStats
from cloud.stream.contract import Stream, StreamError
from runtime.clock import Clock

if TYPE_CHECKING:
    from cloud.cluster.leases import Leases  # NATS is an extra

__all__ = ["Sinks"]

log = structlog.get_logger(component="sinks")

_TRIM_INTERVAL_S = 30.0
_TRIM_STEPS = 6  # halvings of the age before all that may go goes


class Sinks:
    """The sinks of one stream.

    Args:
        stream: What they read.
        sinks: In the order they are started.
        config: Bounds and pauses of the runners.
        stream_config: What is kept for replay.
        clock: Wall clock, for the age of entries.
        decoded: Shared with ingest, which hands over what it appends; None: of their own.
        leases: Of a node of a cluster; started and stopped with the sinks.
        per_node: Names of the sinks that are not shared; True: the stream keeps entries until
            those of all nodes have passed them.
    """

    def __init__(
        self,
        stream: Stream,
        sinks: Iterable[Sink],
        config: SinksConfig,
        stream_config: StreamConfig,
        clock: Clock,
        *,
        decoded: DecodedEntries | None = None,
        leases: Leases | None = None,
        per_node: Mapping[str, bool] | None = None,
    ) -> None:
        self._stream = stream
        self._stream_config = stream_config
        self._clock = clock
        if decoded is None:
            decoded = DecodedEntries(config.decoded_readings_max)
        self.leases = leases
        self._per_node = per_node or {}
        self.runners: dict[str, SinkRunner] = {}
        for sink in sinks:
            ownership, mirror = self._turns_of(sink.name)
            self.runners[sink.name] = SinkRunner(sink, stream, decoded, config, ownership, mirror)
        self._trimming: asyncio.Task[None] | None = None

    def _turns_of(self, name: str) -> tuple[Ownership | None, str]:
        """Return who says when a sink may work, and its name for the cursors it keeps itself."""
        if self.leases is None:
            return None, ""
        if name not in self._per_node:
            return self.leases.of(name), name
        if not self._per_node[name]:
            return None, ""
        self.leases.tell(_everywhere(name))
        return None, _of_node(name, self.leases.node)

    async def start(self) -> None:
        """Start every sink; when one cannot, those before it are stopped.

        Raises:
            Exception: what the sink's `open` raised.
        """
        started: list[SinkRunner] = []
        if self.leases is not None:
            await self.leases.start()
        try:
            for runner in self.runners.values():
                started.append(runner)
                await runner.start()
        except BaseException:
            for runner in reversed(started):
                await runner.stop()
            if self.leases is not None:
                await self.leases.stop()
            raise
        self._trimming = asyncio.create_task(self._trim_for_ever(), name="stream-trim")

    async def stop(self) -> None:
        """Stop every sink after its present write."""
        if self._trimming is not None:
            self._trimming.cancel()
            await asyncio.gather(self._trimming, return_exceptions=True)
            self._trimming = None
        for runner in reversed(self.runners.values()):
            await runner.stop()
        if self.leases is not None:
            await self.leases.stop()

    async def drained(self) -> None:
        """Return when every sink has taken what was in the stream at the call."""
        await asyncio.gather(*(runner.drained() for runner in self.runners.values()))

    async def stats(self) -> list[SinkStats]:
        """Return how each sink does."""
        return [await runner.stats() for runner in self.runners.values()]

    async def passed(self) -> dict[int, int]:
        """Return, by partition, the position that every sink has passed durably.

        In a cluster only of the partitions that it is this node's turn to trim.
        """
        passed = dict((await self._stream.stats()).last_positions)
        shared = [name for name in self.runners if name not in self._per_node]
        if self.leases is not None and shared:
            mine = self.runners[shared[0]].tokens
            passed = {p: position for p, position in passed.items() if p in mine}
        for name, runner in self.runners.items():
            for positions in await self._known_positions(name, runner):
                for partition, position in passed.items():
                    passed[partition] = min(position, positions.get(partition, 0))
        return passed

    async def positions(self) -> dict[str, dict[int, int]]:
        """Return how far each sink is known to be; in a cluster also with what others work on."""
        found: dict[str, dict[int, int]] = {}
        for name, runner in self.runners.items():
            shared = self.leases is not None and name not in self._per_node
            told = await self._stream.cursors(name) if shared else {}
            found[name] = {**told, **runner.positions}
        return found

    async def _known_positions(self, name: str, runner: SinkRunner) -> list[Mapping[int, int]]:
        """Return how far a sink is known to be: on this node, or on each."""
        if self.leases is None:
            return [runner.positions]
        if name not in self._per_node:
            told = await self._stream.cursors(name)
            return [{**told, **runner.positions}]
        if not self._per_node[name]:
            return []  # in memory: it is made from storage again
        nodes = [one.node for one in self.leases.nodes() if _everywhere(name) in one.sinks]
        return [await self._stream.cursors(_of_node(name, node)) for node in nodes]

    # ---- trimming --------------------------------------------------------------------------------

    async def trim(self) -> None:
        """Forget what all sinks have passed and nobody is likely to replay."""
        passed = await self.passed()
        now_us = self._clock.wall_us()
        age_us = round(self._stream_config.replay_s * 1_000_000)
        await self._stream.trim(passed, now_us - age_us)
        for _ in range(_TRIM_STEPS):
            if (await self._stream.stats()).bytes <= self._stream_config.replay_bytes:
                return
            age_us //= 2
            await self._stream.trim(passed, now_us - age_us)
        if (await self._stream.stats()).bytes > self._stream_config.replay_bytes:
            await self._stream.trim(passed)

    async def _trim_for_ever(self) -> None:
        while True:
            await asyncio.sleep(_TRIM_INTERVAL_S)
            try:
                await self.trim()
            except StreamError as error:
                log.warning("trim_failed", error=str(error))


def _everywhere(name: str) -> str:
    """Return how a node tells the others that it has a sink of its own."""
    return f"{name}@"


def _of_node(name: str, node: str) -> str:
    """Return the name of the cursors of a node's own sink."""
    return f"{name}@{node}"
