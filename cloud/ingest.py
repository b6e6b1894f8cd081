"""The cloud front's capture: which publishes are taken into the stream, and by which way.

Two lanes of readings, both consumed: what is in the stream reaches subscribers of this node through
the live sink, after it is durable, the same way on every node. `tidegate/v1/up/{gateway}` carries
batches of gateways; topics of `ingest.topics` are readings of devices connected to this node.

Two more are not readings: commands to devices, and what gateways say of them (cloud/commands).

Invariant: the bytes taken and not yet settled are bounded: past `ingest.waiting_bytes_max` the
broker is told to stop reading until half of it is settled. Once closing, what comes is not looked
at and not answered, and nothing more is read: whoever sent it sends it again to the next node. A
refusal would tell gateways that something is wrong, and devices that they need not come again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from bridge.commands import CTL_PREFIX
from bridge.devices import DeviceIds
from cloud.config import IngestConfig
from cloud.ingest_batches import UP_PREFIX, BatchIngest, BatchTaken
from cloud.ingest_devices import DeviceIngest
from cloud.ingest_parts import Encoded
from cloud.stream.contract import Stream
from mqtt.broker.seams import PublishRun
from mqtt.reason_codes import ReasonCode
from mqtt.topics import matches
from runtime.clock import Clock

__all__ = [
    "COMMANDS_LANE",
    "CONTROL_LANE",
    "DEVICES_LANE",
    "UP_LANE",
    "CloudCapture",
    "CommandTaker",
]

UP_LANE = 0
DEVICES_LANE = 1
COMMANDS_LANE = 2
CONTROL_LANE = 3
_OWN_PREFIX = "tidegate/"


class CommandTaker(Protocol):
    """Takes commands and what gateways say of them."""

    @property
    def full(self) -> bool:
        """True while no more commands can be kept."""
        ...

    def take(self, run: PublishRun) -> None:
        """Take a run of either lane; it is settled, and `release` called, once it is durable."""
        ...


class CloudCapture:
    """Takes publishes for the stream; the broker's `Capture`.

    Args:
        stream: Where entries go.
        config: What is captured, and limits.
        node_id: The gateway id of devices connected here.
        clock: Wall clock.
        command_ids: Finds the device that a command's topic names; None without commands.
        snapshots: Where gateways' contexts are kept for warm starts; None: nowhere.
        taken: Called for each batch that became durable.
        encoded: Called with each part about to be appended and its readings, for sinks.
    """

    def __init__(
        self,
        stream: Stream,
        config: IngestConfig,
        node_id: str,
        clock: Clock,
        *,
        command_ids: DeviceIds | None = None,
        snapshots: Path | None = None,
        taken: Callable[[BatchTaken], None] = lambda _taken: None,
        encoded: Encoded | None = None,
    ) -> None:
        self._stream = stream
        self._config = config
        self._command_ids = command_ids
        self.commands: CommandTaker | None = None  # set by the part that has them
        self._waiting_bytes = 0
        self._relieved: list[Callable[[], None]] = []
        self._closing = False
        self.batches = BatchIngest(
            stream,
            clock,
            batch_bytes_max=config.batch_bytes_max,
            contexts_max=config.contexts_max,
            decoders=config.decoders,
            snapshots=snapshots,
            snapshot_bytes_max=config.snapshot_bytes_max,
            released=self.release,
            taken=taken,
            encoded=encoded,
        )
        self.devices = DeviceIngest(
            stream,
            node_id,
            DeviceIds(config.devices),
            released=self.release,
            encoded=encoded,
        )

    async def start(self) -> None:
        """Begin to take.

        Raises:
            StreamError: the stream cannot be read.
        """
        await self.devices.start()

    async def close(self) -> None:
        """Answer nothing that comes, finish the batches that were taken."""
        self._closing = True
        await self.batches.close()
        await self.devices.close()

    @property
    def waiting_bytes(self) -> int:
        """Bytes of publishes taken and not yet settled."""
        return self._waiting_bytes

    # ---- the broker's side -----------------------------------------------------------------------

    @property
    def durability(self) -> str:
        return self._stream.durability

    def lane(self, topic_name: str) -> int | None:
        if topic_name.startswith(UP_PREFIX):
            return UP_LANE
        if topic_name.startswith(CTL_PREFIX):
            return CONTROL_LANE
        if topic_name.startswith((_OWN_PREFIX, "$")):
            return None
        if self._command_ids is not None and self._command_ids.device(topic_name, ""):
            return COMMANDS_LANE
        if any(matches(topic_filter, topic_name) for topic_filter in self._config.topics):
            return DEVICES_LANE
        return None

    def exclusive(self, lane: int) -> bool:
        return lane != COMMANDS_LANE  # a device that is connected here gets it right away

    def take(self, run: PublishRun) -> int:
        if self._closing:
            return 0
        if run.lane == DEVICES_LANE and self.devices.full:
            return ReasonCode.QUOTA_EXCEEDED
        if run.lane >= COMMANDS_LANE:
            return self._take_command(run)
        self._waiting_bytes += len(run.frames)
        (self.batches if run.lane == UP_LANE else self.devices).take(run)
        return 0

    def _take_command(self, run: PublishRun) -> int:
        if self.commands is None:
            return ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR
        if run.lane == COMMANDS_LANE and self.commands.full:
            return ReasonCode.QUOTA_EXCEEDED
        self._waiting_bytes += len(run.frames)
        self.commands.take(run)
        return 0

    def saturated(self) -> bool:
        return self._closing or self._waiting_bytes >= self._config.waiting_bytes_max

    def when_relieved(self, callback: Callable[[], None]) -> None:
        self._relieved.append(callback)

    def release(self, size: int) -> None:
        """Note that a run of so many bytes is settled."""
        self._waiting_bytes -= size
        self.relieve()

    def relieve(self) -> None:
        """Have those asked back who wait for room, if there is some."""
        if self._closing:
            return
        if self._relieved and self._waiting_bytes <= self._config.waiting_bytes_max // 2:
            callbacks, self._relieved = self._relieved, []
            for callback in callbacks:
                callback()
