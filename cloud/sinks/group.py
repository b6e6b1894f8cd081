"""All sinks of a node: started and stopped together, and the stream trimmed behind the slowest.

Invariant: no entry is trimmed before every sink has passed it, durably; after that it stays for
`stream.replay_s`, or less when more than `stream.replay_bytes` would be kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import structlog

from cloud.config import SinksConfig, StreamConfig
from cloud.sinks.contract import Sink
from cloud.sinks.decoded import DecodedEntries
from cloud.sinks.runner import SinkRunner, SinkStats
from cloud.stream.contract import Stream, StreamError
from runtime.clock import Clock

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
    ) -> None:
        self._stream = stream
        self._stream_config = stream_config
        self._clock = clock
        if decoded is None:
            decoded = DecodedEntries(config.decoded_readings_max)
        self.runners = {sink.name: SinkRunner(sink, stream, decoded, config) for sink in sinks}
        self._trimming: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start every sink; when one cannot, those before it are stopped.

        Raises:
            Exception: what the sink's `open` raised.
        """
        started: list[SinkRunner] = []
        try:
            for runner in self.runners.values():
                started.append(runner)
                await runner.start()
        except BaseException:
            for runner in reversed(started):
                await runner.stop()
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

    async def drained(self) -> None:
        """Return when every sink has taken what was in the stream at the call."""
        await asyncio.gather(*(runner.drained() for runner in self.runners.values()))

    async def stats(self) -> list[SinkStats]:
        """Return how each sink does."""
        return [await runner.stats() for runner in self.runners.values()]

    async def passed(self) -> dict[int, int]:
        """Return, by partition, the position that every sink has passed durably."""
        passed = dict((await self._stream.stats()).last_positions)
        for runner in self.runners.values():
            positions = runner.positions
            for partition, position in passed.items():
                passed[partition] = min(position, positions.get(partition, 0))
        return passed

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
