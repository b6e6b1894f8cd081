"""From readings to a batch's payload, with the connection's context and the effort that pays.

One encoder, whose context is one connection's (docs/link-format.md section 3), writes the envelope.
The body is either columnar, made here on the loop, or structured, which edge/uplink_bodies.py has
made elsewhere. How hard zstd tries follows what the link carries (bridge/link_level.py).

Invariant: `reset` is called with the first batch of a new context, before anything of it is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bridge.batch import Encoder, link_columns
from bridge.envelope import Mode, Tombstone
from bridge.link_level import LEVEL_BESIDE, LevelGovernor
from bridge.readings import Readings
from bridge.uplink_events import Grant
from bridge.uplink_state import UplinkState
from edge.contract import JournalReader
from edge.uplink_bodies import UplinkBodies
from edge.uplink_config import UplinkConfig
from runtime.clock import Clock

__all__ = ["BatchMaker"]

_SETTLED_EVERY_S = 10.0  # a few bytes each


class BatchMaker:
    """Makes the batches of one uplink.

    Args:
        config: Mode, time resolution, compression.
        gateway: The gateway's id.
        journal: Tells epoch and the highest seq assigned.
        state: Tells what the link carries.
        clock: Measures what encoding takes.
        snapshot_path: Where what the cloud knows is kept, so that a connection starts warm.

    Attributes:
        bodies: Makes the structured ones.
    """

    def __init__(
        self,
        config: UplinkConfig,
        gateway: str,
        journal: JournalReader,
        state: UplinkState,
        clock: Clock,
        snapshot_path: Path | None,
    ) -> None:
        self._journal = journal
        self._state = state
        self._clock = clock
        self._level = LevelGovernor(config.zstd_level)
        self._resolution_us = max(1, round(config.time_resolution_ms * 1000))
        self._gateway = gateway
        self._encoder = self._encoder_of(journal.epoch)
        self._settled_due_s = 0.0  # when the cloud is told again what waits no more
        level = config.zstd_level or LEVEL_BESIDE
        budget = config.budget
        self.bodies = UplinkBodies(
            config.mode,
            self._resolution_us,
            level,
            snapshot_path,
            metered=bool(budget.day_bytes or budget.month_bytes),
        )

    @property
    def zstd_level(self) -> int:
        """The level of the next columnar batch."""
        return self._level.level

    def reset(self) -> None:
        """Start a new context."""
        self._settled_due_s = 0.0
        if self._journal.epoch != self._epoch:
            self._encoder = self._encoder_of(self._journal.epoch)
        self._encoder.reset()
        self.bodies.reset()

    def _encoder_of(self, epoch: int) -> Encoder:
        self._epoch = epoch
        return Encoder(
            self._gateway,
            epoch,
            resolution_us=self._resolution_us,
            level=self._level.level,
            run=self._journal.run,
        )

    async def body(self, grant: Grant, readings: Readings | None) -> tuple[Grant, bytes | None]:
        """Return a structured body if there is to be one, and the grant with the mode it has.

        Args:
            grant: What the batch may be.
            readings: What it holds; None: only tombstones.
        """
        if readings is None or grant.mode != Mode.STRUCTURED:
            return replace(grant, mode=int(Mode.COLUMNAR)), None
        columns = link_columns(readings, self._resolution_us)
        made = await self.bodies.encode(columns, self._encoder.last_time)
        if made is None:
            return replace(grant, mode=int(Mode.COLUMNAR)), None
        mode, body = made
        return replace(grant, mode=mode), body

    def payload(
        self,
        grant: Grant,
        readings: Readings,
        body: bytes | None,
        stones: Sequence[Tombstone],
        *,
        historical: bool,
    ) -> bytes:
        """Return a batch as it goes over the link.

        Args:
            grant: As `body` returned it.
            readings: What the batch holds.
            body: As `body` returned it; None: a columnar one is made.
            stones: What the cloud is told of losses.
            historical: Whether the readings waited through an outage.
        """
        self._encoder.level = self._level.level
        began_s = self._clock.monotonic_s()
        payload = self._encoder.encode(
            readings,
            lane=grant.lane,
            historical=historical,
            mode=grant.mode,
            body=body,
            assigned=self._journal.last_seq,
            tombstones=stones,
            settled=self._settled(began_s),
        )
        if body is None and len(readings):
            took_s = self._clock.monotonic_s() - began_s
            state = self._state
            full = 2 * state.bytes_in_flight >= state.window_bytes
            self._level.encoded(took_s, len(payload), state.speed.rate_bytes_s, full=full)
        return payload

    def _settled(self, now_s: float) -> int | None:
        """Return what the cloud is told of that, if it is time to."""
        if now_s < self._settled_due_s:
            return None
        settled = self._journal.settled_seq
        if settled is not None:
            self._settled_due_s = now_s + _SETTLED_EVERY_S
        return settled
